"""What compiles an engine: the system's compiler, or zig's from a wheel, which also compiles for other machines.

CMake and ninja are taken from this Python's wheels where they are installed, else from the system.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edgepack.device.hardware import Hardware
from edgepack.errors import EngineMissingError, UsageError
from edgepack_packager import programs
from edgepack_packager.engine.processors import Processor

Accelerator = Literal["cuda", "metal", "vulkan"]
Compiler = Literal["system", "zig"]

INSTALL: Final = "pip install 'edgepack[engine]'"
GLIBC: Final = 2, 28
"""The oldest C library that runs what zig compiled: Debian 10, RHEL 8, Raspberry Pi OS of 2020."""

_KITS: Final = {
    "cuda": ("nvcc", "NVIDIA's CUDA toolkit"),
    "vulkan": ("glslc", "the Vulkan SDK: its headers, and the shader compiler glslc"),
    "metal": ("xcrun", "Apple's command line tools (xcode-select --install)"),
}


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The programs: ``c`` and ``cxx`` are commands with their arguments, ``version`` what the compiler says of itself.

    ``platform`` is the tag of the wheel that they make; ``settings`` are what CMake has to know besides; ``spelling``
    are lines of shell that spell the arguments of other compilers as this one takes them.
    """

    compiler: Compiler
    version: str
    c: tuple[str, ...]
    cxx: tuple[str, ...]
    cmake: str
    ninja: str
    platform: str
    settings: tuple[tuple[str, str], ...] = ()
    spelling: str = ""


def find(processor: Processor, hardware: Hardware, asked: Compiler | None = None) -> Toolchain:
    """Return what compiles for a processor on this machine: the system's compiler where it can, else zig.

    Raises ``EngineMissingError`` with what to install where something is missing, ``UsageError`` where a processor is
    another system's.
    """
    if processor.system != hardware.system:
        raise UsageError(
            f"An engine for {processor.what} is compiled on {_SYSTEMS[processor.system]} alone.",
            hint=f"Run there: edgepack engine build --for {processor.name}",
        )
    cmake, ninja = _program("cmake"), _program("ninja")
    own = processor.machine == hardware.machine
    c, cxx = shutil.which("cc"), shutil.which("c++")
    if asked != "zig" and own and c and cxx:
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        return Toolchain("system", _said(c), (c,), (cxx,), cmake, ninja, platform)
    if asked == "system":
        missing = "cc and c++ are not there" if own else f"the system's compiles for {hardware.machine}"
        raise EngineMissingError(f"No compiler for {processor.what}: {missing}.", hint=f"Take zig's instead: {INSTALL}")
    return _zig(processor, cmake, ninja)


def accelerators(asked: frozenset[Accelerator], processor: Processor, hardware: Hardware) -> None:
    """Raise ``EngineMissingError`` or ``UsageError`` where an accelerator cannot be compiled for here."""
    for name in sorted(asked):
        program, kit = _KITS[name]
        if (name == "metal") != (processor.system == "darwin"):
            where = "Apple's alone" if name == "metal" else "not Apple's"
            raise UsageError(f"--{name} is not for {processor.what}: the accelerator is {where}.")
        if processor.machine != hardware.machine:
            raise UsageError(
                f"--{name} needs the kit of the machine itself, and {processor.what} is another one.",
                hint=f"Run there: edgepack engine build --{name}",
            )
        if shutil.which(program) is None:
            raise EngineMissingError(f"--{name} needs {kit}, and {program} is not on PATH.", hint="Install it.")


_SYSTEMS: Final = {"linux": "Linux", "darwin": "macOS"}

OF_ZIG: Final = """\
for word do
    shift
    case $word in
    -march=armv*)
        word=-mcpu=generic+$(echo "${word#-march=arm}" | sed 's/[.]/_/; s/-a/a/; s/+fp16/+fullfp16/')
        ;;
    esac
    set -- "$@" "$word"
done
"""
"""ggml asks for its variants of ARM as GCC and Clang know them: ``-march=armv8.2-a+dotprod+fp16``. To zig that version
is something that a processor has: ``-mcpu=generic+v8_2a+dotprod+fullfp16``."""


def _zig(processor: Processor, cmake: str, ninja: str) -> Toolchain:
    spec = importlib.util.find_spec("ziglang")
    places = spec.submodule_search_locations if spec else None
    zig = str(Path(places[0], "zig")) if places else shutil.which("zig")
    if zig is None or processor.system != "linux":
        raise EngineMissingError(
            f"Nothing here compiles for {processor.what}: no C++ compiler and no zig.",
            hint=f"Install it with: {INSTALL}",
        )
    machine = {"arm64": "aarch64"}.get(processor.machine, processor.machine)
    old, new = GLIBC
    # Stripped, whatever is linked: else zig compiles its libraries for CMake's questions, and again for the engine.
    target = ("-target", f"{machine}-linux-gnu.{old}.{new}", f"-mcpu={processor.zig}", "-s")
    settings = (
        ("CMAKE_SYSTEM_NAME", "Linux"),
        ("CMAKE_SYSTEM_PROCESSOR", machine),
        ("CMAKE_AR", zig),  # each by a ``wrapper``, see ``compile``
        ("CMAKE_RANLIB", zig),
    )
    version = f"zig {_said(zig, 'version')}"
    tag = f"manylinux_{old}_{new}_{machine}"
    return Toolchain("zig", version, (zig, "cc", *target), (zig, "c++", *target), cmake, ninja, tag, settings, OF_ZIG)


def wrapper(folder: Path, name: str, command: tuple[str, ...], spelling: str = "") -> Path:
    """Write a program that runs a command with its arguments, for CMake, which takes a compiler for a single file.

    ``spelling`` is as in ``Toolchain``.
    """
    path = folder / name
    path.write_text(f'#!/bin/sh\n{spelling}exec {shlex.join(command)} "$@"\n')
    path.chmod(0o700)
    return path


def _program(name: str) -> str:
    own = Path(sysconfig.get_path("scripts"), name)
    found = str(own) if own.is_file() else shutil.which(name)
    if found is None:
        raise EngineMissingError(f"An engine is compiled with {name}: it is not here.", hint=f"Install it: {INSTALL}")
    return found


def _said(*command: str) -> str:
    arguments = command if len(command) > 1 else (*command, "--version")
    try:
        return programs.to_end(arguments).decode(errors="replace").splitlines()[0].strip()
    except (subprocess.CalledProcessError, OSError, IndexError) as error:
        raise EngineMissingError(f"{command[0]} does not run: {error}.", hint=f"Take zig's: {INSTALL}") from None
