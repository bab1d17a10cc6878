"""Devices to plan for: the memory that a model may take on each, and the engines that serve it there.

The memory that a device leaves is an assumption, named beside each entry: it depends on what else runs. Whoever knows
better says so with ``--memory``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType

from edgepack.device.hardware import Hardware
from edgepack.device.memory import human
from edgepack.errors import UsageError
from edgepack.runtime import KvCache

GIB = 1 << 30

# The engines by the runtime's name, best first, and the KV caches that each offers.
Engines = Mapping[str, tuple[KvCache, ...]]
CPU: Engines = MappingProxyType({"gguf": ("f16", "f32"), "onnx": ("f32",)})
METAL: Engines = MappingProxyType({"mlx": ("f16", "f32"), **CPU})


@dataclass(frozen=True, slots=True)
class Device:
    """``memory`` is in bytes: what a load may take (weights, KV cache, working memory, engine). ``basis`` says why.

    ``bandwidth`` is what the memory's bus can carry, in bytes per second, as the maker states it or as transfers times
    width: no program reaches it. None where that is not known. ``bus`` names it.
    """

    name: str
    memory: int
    basis: str
    engines: Engines
    bandwidth: float | None = None
    bus: str = ""


_PI_BUS: Mapping[int, tuple[float, str]] = MappingProxyType(
    {4: (12.8e9, "LPDDR4-3200, 32 bits"), 5: (17.07e9, "LPDDR4X-4267, 32 bits")}
)
"""raspberrypi.com, product briefs of the Raspberry Pi 4 and 5: MT/s times four bytes."""

_JETSON_BUS: Mapping[str, tuple[float, str]] = MappingProxyType(
    {"orin-nano": (102.4e9, "LPDDR5-6400, 128 bits"), "orin-nx": (102.4e9, "LPDDR5-6400, 128 bits")}
)
"""NVIDIA, "Jetson Orin Nano Super Developer Kit" and "Jetson Orin NX Series" data sheets; the Nano has 68 GB/s before
JetPack 6.1."""


def _pi(generation: int, size: int) -> Device:
    """A headless Raspberry Pi OS takes some 200 MiB, firmware and kernel as much, Python with an engine the rest."""
    basis = f"{size} GiB, less 1 GiB for the firmware, a headless system and the process"
    return Device(f"pi{generation}-{size}gb", (size - 1) * GIB, basis, CPU, *_PI_BUS[generation])


def _jetson(module: str, size: int) -> Device:
    """Of 8 GiB, 5.2 GB are reported as free for models: the GPU shares the memory, and JetPack is large."""
    basis = f"{size} GiB shared with the GPU, less 3 GiB for JetPack and the process"
    return Device(f"jetson-{module}-{size}gb", (size - 3) * GIB, basis, CPU, *_JETSON_BUS[module])


def _mac(size: int) -> Device:
    """Metal's ``recommendedMaxWorkingSetSize``: 5461 of 8192 MiB, 10922 of 16384, 21845 of 32768; newer systems allow
    more."""
    basis = f"{size} GiB, of which Metal recommends two thirds for the GPU's working set"
    return Device(f"mac-{size}gb", size * GIB * 2 // 3, basis, METAL)


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        device.name: device
        for device in (
            *(_pi(4, size) for size in (2, 4, 8)),
            *(_pi(5, size) for size in (2, 4, 8, 16)),
            _jetson("orin-nano", 8),
            _jetson("orin-nx", 16),
            *(_mac(size) for size in (8, 16, 24, 32)),
        )
    }
)


def find(name: str) -> Device:
    """Return a device of the table. Raises ``UsageError`` for a name that is not in it."""
    if name in DEVICES:
        return DEVICES[name]
    close = get_close_matches(name, DEVICES, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    raise UsageError(
        f"No device is called {name!r}.", hint=f"{meant}There are: {', '.join(DEVICES)}. Or give its --memory."
    )


def with_memory(memory: int, device: Device | None = None) -> Device:
    """Return a device whose memory for a model is given; without a device, one that has a CPU's engines."""
    if device is None:
        return Device("a CPU", memory, "as given", CPU)
    return replace(device, memory=memory, basis="as given")


def this_machine(hardware: Hardware) -> Device:
    """Return the machine that this runs on, with the memory that is available now."""
    engines = METAL if "metal" in hardware.accelerators else CPU
    basis = f"available now, of {human(hardware.memory_total)}"
    return Device("this machine", hardware.memory_available, basis, engines)


def read_memory(text: str) -> int:
    """Return the bytes of a size such as "4GB" (10^9), "4GiB" (2^30) or "512MiB". Raises ``UsageError`` for others."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([KMGT])(i?)B", text.strip())
    size = float(found[1]) * (1024 if found[3] else 1000) ** (" KMGT".index(found[2])) if found else 0
    if size < 1:
        raise UsageError(f"{text!r} is no size of a memory.", hint="Write it as 4GB, 4GiB or 512MiB.")
    return int(size)
