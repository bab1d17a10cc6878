"""What an install lacks for what is asked of it, in one sentence and one command.

The packages of an extra are read from edgepack's own metadata, so that there is no list beside pyproject.toml.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version

from edgepack.errors import ExtraMissingError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRAS = re.compile(r"^edgepack\[([^]]*)\]")
_COMMAND = re.compile(r"pip install 'edgepack\[([\w,-]+)\]'")
_OF = re.compile(r"extra == ['\"]([^'\"]+)['\"]")
_SYSTEM = re.compile(r"sys_platform == ['\"]([^'\"]+)['\"]")


@contextmanager
def needed(what: str, *extras: str) -> Iterator[None]:
    """Turn an import of another package that fails in the block into ``ExtraMissingError``: of all that is missing.

    ``what`` begins the sentence, as "The edgepack command".
    """
    try:
        yield
    except ImportError as error:
        if error.name is None or error.name.startswith("edgepack"):  # a fault of our own
            raise
        require(what, *extras)
        raise ExtraMissingError(
            f"{what} needs {error.name}, which cannot be imported: {error}.",
            hint=f"pip install --force-reinstall '{spelled(*extras)}'",
        ) from error


def require(what: str, *extras: str) -> None:
    """Raise ``ExtraMissingError`` where packages of ``extras`` are missing: it names all of them, and one command."""
    lacking = {extra: found for extra in extras if (found := missing(extra))}
    if lacking:
        names = list(dict.fromkeys(name for found in lacking.values() for name in found))
        last = f" and {names[-1]}" if len(names) > 1 else ""
        are = "are" if last else "is"
        raise ExtraMissingError(
            f"{what} needs {', '.join(names[:-1] if last else names)}{last}, which {are} not installed.",
            hint=f"pip install '{spelled(*lacking)}'",
        )


def missing(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed, sorted."""
    return sorted(name for name in packages(extra) if not _installed(name))


def packages(extra: str, given: list[str] | None = None) -> set[str]:
    """Return the names of the packages that an extra asks for on this system, those of extras in it included.

    ``given`` are requirements as a distribution's metadata has them; None: edgepack's own.
    """
    lines = requires("edgepack") or [] if given is None else given
    found: set[str] = set()
    for line in lines:
        system = _SYSTEM.search(line)
        if extra in _OF.findall(line) and (system is None or system[1] == sys.platform):
            if inner := _EXTRAS.match(line):
                others = (other.strip() for other in inner[1].split(","))
                found |= {name for other in others for name in packages(other, lines)}
            elif name := _NAME.match(line):
                found.add(name[0])
    return found


def spelled(*extras: str) -> str:
    """Return what pip is to install for extras: "edgepack[cli,gguf]"."""
    return f"edgepack[{','.join(sorted(extras))}]"


def together(commands: Iterable[str]) -> str:
    """Return the commands as one: those that install extras become one of all these extras."""
    each = list(dict.fromkeys(commands))
    found = [_COMMAND.fullmatch(command) for command in each]
    names = {name for match in found if match for name in match[1].split(",")}
    one = [f"pip install '{spelled(*names)}'"] if names else []
    return " && ".join([*one, *(command for command, match in zip(each, found, strict=True) if not match)])


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
