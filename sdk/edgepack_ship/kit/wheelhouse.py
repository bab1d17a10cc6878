"""The wheels of what a device needs, resolved for it from the index, and the lock that names each by its hash."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

from edgepack.errors import BuildError, UsageError, brief
from edgepack_ship.kit import requirements
from edgepack_ship.kit.platforms import Platform
from edgepack_ship.reading import blocks_of

ROUNDS = 8


def own_wheel(given: Path | None, folder: Path) -> Path:
    """Return a wheel of this edgepack: the one that is given, else one made of what it was installed from, be it an
    index, a wheel or a checkout. Raises ``UsageError`` and ``BuildError``."""
    if given is not None:
        if not given.is_file() or given.suffix != ".whl":
            raise UsageError(f"{given} is no wheel.", hint="Make one with: pip wheel --no-deps EDGEPACK")
        return given
    told = distribution("edgepack").read_text("direct_url.json")
    if told is None:
        source = f"edgepack=={distribution('edgepack').version}"
    else:
        url = urlsplit(json.loads(told)["url"])
        source = unquote(url.path)
        if url.scheme != "file" or not Path(source).exists():
            raise UsageError(
                "What this edgepack was installed from is no longer there.", hint="Give its wheel with --edgepack."
            )
        if source.endswith(".whl"):
            return Path(source)
    _pip("Making edgepack's wheel", ["wheel", "--no-deps", "--wheel-dir", str(folder), source])
    return next(folder.glob("edgepack-*.whl"))


def gather(
    extras: Sequence[str],
    platform: Platform,
    python: str,
    folder: Path,
    wheel: Path | None = None,
    said: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Fetch the wheels that edgepack with these extras needs on a device into a folder; return them by name.

    Only wheels are taken, since a device compiles nothing. pip resolves them, which compares markers with the machine
    that it runs on; so it is asked for what edgepack needs by the device's markers, and again until all that its
    packages need by them is there. Raises ``BuildError`` with pip's reason where a wheel is not to be had.
    """
    named = f"edgepack[{','.join(extras)}]"
    said(f"Resolving {named} for {platform.name}, Python {python}")
    fixed = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    tags = [part for tag in platform.tags for part in ("--platform", tag)]
    with TemporaryDirectory() as scratch:
        own = own_wheel(wheel, Path(scratch) / "own")
        known = requirements.read([own])
        asked = list(requirements.needed(known, Requirement(named), platform.markers(python)).lacking)
        for round in range(ROUNDS):
            place = Path(scratch) / str(round)
            _pip("Resolving the wheels", ["download", *fixed, *tags, "--dest", str(place), str(own), *asked])
            wheels = requirements.read(place.glob("*.whl"))
            needs = requirements.needed(wheels, Requirement(named), platform.markers(python))
            if not needs.lacking:
                return sorted(Path(shutil.copy(each, folder)) for each in needs.wheels)
            asked += needs.lacking
    raise BuildError(
        f"What {platform.name} needs could not be settled: {', '.join(needs.lacking)}.", hint="Please report this."
    )


def lock(wheels: Sequence[Path]) -> str:
    """Return the requirements of a device: each wheel's name, version and sha256, as ``pip --require-hashes`` asks."""
    named = sorted((*parse_wheel_filename(wheel.name)[:2], wheel) for wheel in wheels)
    return "".join(f"{name}=={version} --hash=sha256:{sha256_of(wheel)}\n" for name, version, wheel in named)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex. Raises ``BundleError`` where it cannot be read."""
    digest = hashlib.sha256()
    for block in blocks_of(path):
        digest.update(block)
    return digest.hexdigest()


def _pip(what: str, words: Sequence[str]) -> None:
    quiet = ["--disable-pip-version-check", "--no-input", "--quiet"]
    done = subprocess.run([sys.executable, "-m", "pip", *words, *quiet], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = brief((lines or done.stderr.splitlines() or ["pip said nothing"])[-1].removeprefix("ERROR: "), 200)
        raise BuildError(
            f"{what} failed: {reason.rstrip('.')}.", hint="Is the index reachable, and has it such wheels?"
        )
