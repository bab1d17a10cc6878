"""The wheels of what a device needs, resolved for it from the index, and the lock that names each by its hash."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from edgepack.errors import BuildError, UsageError, brief
from edgepack_ship.kit.platforms import Platform
from edgepack_ship.reading import blocks_of

_WHEEL = re.compile(r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.!+]+)(?:-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl")


def own_wheel(given: Path | None, folder: Path) -> Path | None:
    """Return a wheel of this edgepack: the one that is given, else one made of what it was installed from; None where
    that was an index, which then has it. Raises ``UsageError`` and ``BuildError``."""
    if given is not None:
        if not given.is_file() or given.suffix != ".whl":
            raise UsageError(f"{given} is no wheel.", hint="Make one with: pip wheel --no-deps EDGEPACK")
        return given
    told = distribution("edgepack").read_text("direct_url.json")
    if told is None:
        return None
    url = urlsplit(json.loads(told)["url"])
    source = Path(unquote(url.path))
    if url.scheme != "file" or not source.exists():
        raise UsageError(
            "What this edgepack was installed from is no longer there.", hint="Give its wheel with --edgepack."
        )
    if source.suffix == ".whl":
        return source
    _pip("Making edgepack's wheel", ["wheel", "--no-deps", "--wheel-dir", str(folder), str(source)])
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

    Only wheels are taken, since a device compiles nothing. Raises ``BuildError`` with pip's reason where one is not to
    be had.
    """
    with TemporaryDirectory() as scratch:
        own = own_wheel(wheel, Path(scratch))
        named = f"edgepack[{','.join(extras)}]"
        wanted = f"{named} @ {own.resolve().as_uri()}" if own else f"{named}=={distribution('edgepack').version}"
        tags = [part for tag in platform.tags for part in ("--platform", tag)]
        said(f"Resolving {named} for {platform.name}, Python {python}")
        fixed = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
        _pip("Resolving the wheels", ["download", *fixed, *tags, wanted])
    return sorted(folder.glob("*.whl"))


def lock(wheels: Sequence[Path]) -> str:
    """Return the requirements of a device: each wheel's name, version and sha256, as ``pip --require-hashes`` asks."""
    lines = []
    for wheel in wheels:
        found = _WHEEL.fullmatch(wheel.name)
        if found is None:
            raise BuildError(f"{wheel.name} is not named as wheels are.", hint="Remove it, and make the kit again.")
        name = re.sub(r"[-_.]+", "-", found["name"]).lower()
        lines.append(f"{name}=={found['version']} --hash=sha256:{sha256_of(wheel)}")
    return "".join(f"{line}\n" for line in sorted(lines))


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
