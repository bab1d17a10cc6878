"""The packages that edgepack asks for with a range: their names, or a table of ranges and what is installed.

python .ci/newest.py names|table
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
PINNED = {"gguf", "mlx", "engine", "test", "oracle", "all"}
"""Extras of what is bound by its memory layout, and of what is no part of edgepack."""


def ranges() -> dict[str, str]:
    """Return the range of each package, by its name."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for name in extras if name not in PINNED for line in extras[name])]
    found = (re.match(r"([\w.-]+)([<>=!,.\w]*)$", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def within(found: str, range_: str) -> bool:
    """Say whether a version is below the upper bound of a range."""
    bound = re.search(r"<([\d.]+)", range_)
    return bound is None or _numbers(found) < _numbers(bound[1])


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]


def main() -> None:
    """Print what the first argument asks for."""
    found = ranges()
    if sys.argv[1:] == ["names"]:
        print(*found, sep="\n")
        return
    for name, range_ in sorted(found.items()):
        newest = version(name)
        print(f"{name:<18}{range_:<16}{newest:<14}{'' if within(newest, range_) else 'above its range'}")


if __name__ == "__main__":
    main()
