"""Doctor: what this machine has, which engines can use it, and what to install where one cannot."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from importlib.metadata import version

from edgepack import extras
from edgepack.device.hardware import Hardware, detect
from edgepack.device.seconds import by_type
from edgepack.engines import Runtimes, probe_all
from edgepack.isolation.probing import known_rates
from edgepack.runtime import Support

TELEMETRY = "ORT_DISABLE_TELEMETRY"


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """The facts. ``telemetry`` says how ONNX Runtime's own is switched off; ``installs`` are the commands that give
    this machine an engine or its accelerator, by engine; ``notes`` are things to know. ``unpacked`` are the packages
    without which this machine packs no model, not even the demo's. ``types`` says by engine what a weight of each type
    costs an answer on the CPU, in times of the fastest, of the types that a plan had timed so far."""

    edgepack: str
    python: str
    platform: str
    hardware: Hardware
    threads: int
    runtimes: dict[str, Support]
    telemetry: str
    installs: dict[str, str]
    notes: tuple[str, ...]
    unpacked: tuple[str, ...] = ()
    types: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def steps(self) -> list[tuple[str, str]]:
        """What to do, in this order: a reason and a command each."""
        missing = [
            (f"{name}: {self.runtimes[name].reason or 'more can run here.'}", self.installs[name])
            for name in self.installs
        ]
        better = [(name, support.better) for name, support in self.runtimes.items() if support.better]
        lacking = f"packing, which an application does without: {', '.join(self.unpacked)} not installed."
        return [
            *missing,
            *([(lacking, f"pip install '{extras.spelled('build')}'")] if self.unpacked else []),
            *((f"{name}: an engine compiled for this processor is faster.", line) for name, line in better),
        ]


def doctor(runtimes: Runtimes | None = None) -> DoctorReport:
    """Examine the machine and ask every runtime whether it can run here. Never raises, loads no model."""
    hardware = detect()
    # Read first: the probe of the onnx runtime may set it.
    setting = os.environ.get(TELEMETRY)
    supports = probe_all(hardware, runtimes=runtimes)
    return DoctorReport(
        edgepack=version("edgepack"),
        python=f"{platform.python_implementation()} {platform.python_version()}, {_bits()}-bit",
        platform=platform.platform(terse=True),
        hardware=hardware,
        threads=hardware.threads,
        runtimes=supports,
        telemetry=telemetry(setting),
        installs=installs(hardware, supports),
        notes=notes(hardware, supports, _bits()),
        unpacked=tuple(extras.missing("build")),
        types={
            name: costs
            for name, support in supports.items()
            if runtimes is None and "cpu" in support.devices and (costs := by_type(known_rates(name, hardware)))
        },
    )


def telemetry(setting: str | None) -> str:
    """Return what a value of ``ORT_DISABLE_TELEMETRY`` in the environment (None: unset) means."""
    if setting == "1":
        return f"off: {TELEMETRY}=1 in the environment"
    return f"off: the onnx runtime sets {TELEMETRY}=1 before it imports ONNX Runtime"


def installs(hardware: Hardware, supports: dict[str, Support]) -> dict[str, str]:
    """Return the commands that change what an engine can do on this machine: run, or use its accelerator."""
    found = {}
    for name, support in supports.items():
        complete = bool(support.devices) and not _unused(hardware, support)
        # On a CPU it is an oracle for small models, and no engine to answer anybody.
        oracle = name == "mlx" and "metal" not in hardware.accelerators
        if support.install and not complete and not oracle:
            found[name] = support.install
    return found


def notes(hardware: Hardware, supports: dict[str, Support], bits: int) -> tuple[str, ...]:
    """Return what a user of this machine should know, one sentence each."""
    found = []
    if bits == 32:
        way = "Python" if hardware.machine in ("x86_64", "arm64") else "system"
        found.append(f"This Python is 32-bit, and no engine has wheels for it: install a 64-bit {way}.")
    elif hardware.machine not in ("x86_64", "arm64"):
        found.append(f"No engine has wheels for {hardware.machine}.")
    if not any(support.devices for support in supports.values()):
        found.append("No engine can run here: install at least one.")
    if hardware.quota is not None and hardware.threads < min(hardware.affinity, hardware.physical_cores):
        found.append(f"A control group grants {hardware.quota:g} cores: engines get {hardware.threads} thread(s).")
    for accelerator in hardware.accelerators:
        if not any(accelerator in support.devices for support in supports.values()):
            found.append(f"This machine has {accelerator}, and no installed engine can use it.")
    for name, support in supports.items():
        if support.devices and support.reason and _unused(hardware, support):
            found.append(f"{name} leaves {', '.join(_unused(hardware, support))} idle: {support.reason}")
    if any("CMAKE_ARGS" in command for command in installs(hardware, supports).values()):
        found.append("CMAKE_ARGS means compiling: it takes minutes, a C++ compiler and NVIDIA's CUDA toolkit (nvcc).")
    if not hardware.memory_total:
        found.append("The system does not say how much memory it has: plans cannot check it.")
    return tuple(found)


def _unused(hardware: Hardware, support: Support) -> list[str]:
    return [accelerator for accelerator in hardware.accelerators if accelerator not in support.devices]


def _bits() -> int:
    return 64 if sys.maxsize > 2**32 else 32
