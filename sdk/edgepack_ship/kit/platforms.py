"""Devices as pip calls them: which wheels fit a system, a processor and a C library."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgepack.errors import UsageError

GLIBC = (2, 35)
"""The oldest C library that every engine has wheels for; Raspberry Pi OS 12 and Debian 12 have 2.36."""
_OLDEST = 5
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True)
class Platform:
    """A kind of device: ``name`` as it is typed, ``machine`` as ``uname -m`` prints it, and the tags of wheels that fit
    it, the best first."""

    name: str
    machine: str
    tags: tuple[str, ...]

    def markers(self, python: str) -> dict[str, str]:
        """Return what the markers of requirements are compared with there, of a version of Python as "3.11".

        Its patch is taken for 0, and nothing is said of the version of the system.
        """
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{python}.0",
            "python_version": python,
            "sys_platform": "linux",
        }


def platform(name: str, glibc: tuple[int, int] = GLIBC) -> Platform:
    """Return the platform of a name, as "linux-aarch64". Raises ``UsageError`` for any other."""
    system, _, processor = name.lower().partition("-")
    machine = _MACHINES.get(processor)
    if system != "linux" or machine is None:
        raise UsageError(f"There is no kit for {name!r}.", hint="Choose linux-x86_64 or linux-aarch64.")
    major, minor = glibc
    tags = [f"manylinux_{major}_{each}_{machine}" for each in range(minor, _OLDEST - 1, -1)]
    older = ("manylinux2010", "manylinux1") if machine == "x86_64" else ()
    names = [f"{each}_{machine}" for each in ("manylinux2014", *older, "linux")]
    return Platform(f"linux-{machine}", machine, (*tags, *names))


def glibc_of(text: str) -> tuple[int, int]:
    """Read the version of a C library, as "2.36". Raises ``UsageError`` for any other text."""
    found = re.fullmatch(r"(2)\.([0-9]{1,2})", text)
    if found is None or int(found[2]) < 17:
        raise UsageError(f"glibc cannot be {text!r}.", hint="Give 2.17 or newer, as ldd --version prints it there.")
    return int(found[1]), int(found[2])


def python_of(text: str) -> str:
    """Read a version of Python, as "3.11". Raises ``UsageError`` for one that edgepack does not run on."""
    found = re.fullmatch(r"3\.([0-9]{1,2})", text)
    if found is None or int(found[1]) < 11:
        raise UsageError(
            f"python cannot be {text!r}.", hint="Give 3.11 or newer, as python3 --version prints it there."
        )
    return text
