"""Which platforms and Pythons an install reaches, as the package index has wheels for them: one table.

    pip install uv && python benchmarks/platforms.py [EXTRAS ...]

uv resolves edgepack's requirements by wheels alone for each platform and each Python, with the markers of that
platform; nothing is installed. A cell is "yes", or for which Pythons which package has no wheel: the first that stands
in the way; "-" is an extra that asks for nothing there. For 32-bit ARM, which uv does not know, pip is asked. Whether
an engine runs there is another question: a wheel is what an install needs where nothing is compiled.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = ("", "structured", "cli", "gguf", "onnx", "mlx", "build")
ARM_32 = "armv7l"
PLATFORMS = {
    "Linux x86-64, glibc 2.28 (Debian 10, RHEL 8)": "x86_64-manylinux_2_28",
    "Linux x86-64, glibc 2.31 (Debian 11)": "x86_64-manylinux_2_31",
    "Linux x86-64, glibc 2.35 (Ubuntu 22.04)": "x86_64-manylinux_2_35",
    "Linux aarch64, glibc 2.28": "aarch64-manylinux_2_28",
    "Linux aarch64, glibc 2.31 (Pi OS 11, 64-bit)": "aarch64-manylinux_2_31",
    "Linux aarch64, glibc 2.35 (Pi OS 12, Jetson)": "aarch64-manylinux_2_35",
    "Alpine x86-64 (musl)": "x86_64-unknown-linux-musl",
    "Alpine aarch64 (musl)": "aarch64-unknown-linux-musl",
    "Linux armv7 (Pi OS, 32-bit)": ARM_32,
    "macOS 14, Apple Silicon": "aarch64-apple-darwin",
    "macOS 14, Intel": "x86_64-apple-darwin",
    "Windows x64": "x86_64-pc-windows-msvc",
    "Windows arm64": "aarch64-pc-windows-msvc",
}
MACOS = "14.0"
# What uv says, and pip.
_NO_WHEEL = re.compile(
    r"([A-Za-z][\w.-]*)(?:\[[\w,]+\])?(?:\{[^}]*\})?(?:[=<>]\S*)? has no (?:usable )?wheels"
    r"|No matching distribution found for ([\w.-]+)"
)


def requirements(extra: str) -> list[str]:
    """Return the lines of every install and, unless it is "", of an extra with those in it."""
    lines = list(PROJECT["dependencies"])
    for line in PROJECT["optional-dependencies"].get(extra, ()):
        inner = re.match(r"edgepack\[([^]]*)\]", line)
        lines += [each for name in inner[1].split(",") for each in requirements(name.strip())] if inner else [line]
    return list(dict.fromkeys(lines))


def lacking(extra: str, platform: str, python: str) -> str:
    """Return the package that has no wheel there, "" where every one has. Raises ``RuntimeError`` for anything else."""
    if platform == ARM_32:
        tags = [word for minor in range(36, 4, -1) for word in ("--platform", f"manylinux_2_{minor}_{ARM_32}")]
        tags += ["--platform", f"manylinux2014_{ARM_32}", "--implementation", "cp", "--python-version", python]
        where = ["--only-binary=:all:", "--target", tempfile.gettempdir(), "--no-deps", "--dry-run", "--quiet"]
        command = [sys.executable, "-m", "pip", "install", *where, *tags, *requirements(extra)]
    else:
        where = ["--only-binary", ":all:", "--python-version", python, "--python-platform", platform]
        command = ["uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", *where]
    done = subprocess.run(
        command,
        input="\n".join(requirements(extra)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": MACOS},
    )
    if not done.returncode:
        return ""
    said = " ".join(done.stderr.split())
    found = _NO_WHEEL.search(said)
    if found is None:
        raise RuntimeError(f"{platform}, Python {python}, {extra or 'itself'}: {said}")
    return str(found[1] or found[2])


def offered(extra: str, platform: str) -> bool:
    """Say whether an extra asks for anything of its own on a platform: the markers of pyproject.toml are of systems."""
    system = "darwin" if "apple" in platform else "win32" if "windows" in platform else "linux"
    lines = PROJECT["optional-dependencies"].get(extra, [""])
    systems = [re.search(r"sys_platform == '(\w+)'", line) for line in lines]
    return any(found is None or found[1] == system for found in systems)


def cell(found: dict[str, str]) -> str:
    """Return what a cell says of what lacks for each Python."""
    if not any(found.values()):
        return "yes"
    if len(set(found.values())) == 1:
        return f"no {next(iter(found.values()))}"
    return "; ".join(f"{python} {'no ' + lack if lack else 'yes'}" for python, lack in found.items())


def main() -> None:
    """Print a row for each platform: of each extra, the Pythons that it reaches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", default=EXTRAS)
    parser.add_argument("--workers", type=int, default=8, help="resolutions at once: they wait for the network")
    asked = parser.parse_args()
    print(
        f"| platform | {' | '.join(extra or 'itself' for extra in asked.extras)} |\n|---|{'---|' * len(asked.extras)}"
    )
    with ThreadPoolExecutor(asked.workers) as pool:
        for platform, name in PLATFORMS.items():
            asking = {
                extra: {python: pool.submit(lacking, extra, name, python) for python in PYTHONS}
                for extra in asked.extras
                if offered(extra, name)
            }
            cells = [
                cell({python: each.result() for python, each in asking[extra].items()}) if extra in asking else "-"
                for extra in asked.extras
            ]
            print(f"| {platform} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
