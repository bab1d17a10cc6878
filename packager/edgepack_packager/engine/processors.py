"""The processors that an engine is compiled for, by the names that ``--for`` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgepack.device.hardware import Hardware
from edgepack.errors import UsageError

THIS: Final = "this"


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor, or with ``variants`` all of a machine: then every one that ggml tells apart is compiled, and the
    library takes the best when it is loaded.

    ``system`` and ``machine`` are as in ``Hardware``; ``gcc`` is the flag of GCC and Clang, ``zig`` the name that zig
    has for the processor.
    """

    name: str
    what: str
    system: str
    machine: str
    gcc: str = ""
    zig: str = ""
    variants: bool = False


_NAMED: Final = (
    Processor("pi4", "Raspberry Pi 4 (Cortex-A72)", "linux", "arm64", "-mcpu=cortex-a72", "cortex_a72"),
    Processor("pi5", "Raspberry Pi 5 (Cortex-A76)", "linux", "arm64", "-mcpu=cortex-a76", "cortex_a76"),
    Processor("jetson", "Jetson Orin (Cortex-A78AE)", "linux", "arm64", "-mcpu=cortex-a78ae", "cortex_a78ae"),
    Processor("arm64", "any 64-bit ARM", "linux", "arm64", "", "generic", variants=True),
    Processor("x86-64-v3", "x86-64 with AVX2", "linux", "x86_64", "-march=x86-64-v3", "x86_64_v3"),
    Processor("x86-64-v4", "x86-64 with AVX-512", "linux", "x86_64", "-march=x86-64-v4", "x86_64_v4"),
    Processor("x86-64", "any x86-64", "linux", "x86_64", "", "x86_64", variants=True),
    Processor("apple", "Apple silicon (M1 and later)", "darwin", "arm64", "-mcpu=apple-m1", "apple_m1"),
)
NAMES: Final = (THIS, *(each.name for each in _NAMED))


def find(name: str, hardware: Hardware) -> Processor:
    """Return the processor of that name, ``this`` being the one of the machine.

    Raises ``UsageError`` for a name that is not known, and for a machine that no engine is compiled on.
    """
    if name == THIS:
        if hardware.system not in ("linux", "darwin") or hardware.machine not in ("x86_64", "arm64"):
            raise UsageError(
                f"No engine can be compiled on {hardware.system} for {hardware.machine}.",
                hint="It takes Linux or macOS, on x86-64 or 64-bit ARM.",
            )
        flag = "-march=native" if hardware.machine == "x86_64" else "-mcpu=native"
        return Processor(THIS, hardware.processor or "this machine", hardware.system, hardware.machine, flag, "native")
    for each in _NAMED:
        if each.name == name.lower():
            return each
    raise UsageError(f"{name!r} is no processor that edgepack knows.", hint=f"Choose one of {', '.join(NAMES)}.")
