"""The main way: sources, a compiler, libraries, a wheel; and pip where the engine is for this machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgepack.bundle import work
from edgepack.device.hardware import Hardware, detect
from edgepack.device.state import state_folder
from edgepack.errors import BuildError
from edgepack.isolation.process import words
from edgepack_packager import programs
from edgepack_packager.engine import compile, processors, sources, toolchain, wheel
from edgepack_packager.engine.toolchain import Accelerator, Compiler
from edgepack_packager.engine.wheel import Facts
from edgepack_packager.progress import Progress, Silent

LLAMA: Final = "0.5.0"
GGML: Final = "0.25.3"
"""What the pinned sources call themselves."""

_MEMORY_OF_A_JOB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Built:
    """What a build left: a wheel that was kept, None where it was only installed; and its facts and version."""

    wheel: Path | None
    installed: bool
    version: str
    facts: Facts
    log: Path


def build(
    name: str = processors.THIS,
    *,
    source: Path | None = None,
    out: Path | None = None,
    accelerators: frozenset[Accelerator] = frozenset(),
    compiler: Compiler | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Built:
    """Compile llama.cpp for a processor and make a wheel of it.

    For ``this``, it is installed in this environment, and kept in ``out`` where that is given; for others it is written
    to ``out``, the working folder by default. ``source`` is the sdist, for machines without an index. Raises
    ``UsageError``, ``SourceError``, ``EngineMissingError`` (a tool is missing) or ``BuildError``; nothing is left then
    but the log of the compiler, in the state folder.
    """
    progress = progress or Silent()
    hardware = detect()
    processor = processors.find(name, hardware)
    toolchain.accelerators(accelerators, processor, hardware)
    tools = toolchain.find(processor, hardware, compiler)
    given = compile.settings(processor, tools, accelerators)
    facts = Facts(
        source=f"{sources.PACKAGE} {sources.VERSION}",
        sha256=sources.SHA256,
        llama=LLAMA,
        ggml=GGML,
        processor=processor.name,
        what=processor.what,
        system=processor.system,
        machine=processor.machine,
        accelerators=tuple(sorted(accelerators)),
        compiler=tools.version,
        settings={name: value for name, value in given.items() if name not in ("CMAKE_AR", "CMAKE_RANLIB")},
    )
    install = name == processors.THIS
    kept = None if install and out is None else (out or Path()) / wheel.file_name(facts, tools.platform)
    log = state_folder() / "engine-build.log"
    with work.refusals(log):
        log.parent.mkdir(parents=True, exist_ok=True)
    place = kept or Path(tempfile.gettempdir()) / wheel.file_name(facts, tools.platform)
    with work.folder(place) as folder:
        if source is None:
            progress.stage(f"Fetching {facts.source}", 1)
            source = sources.fetch(folder)
        progress.stage("Unpacking", 1)
        root = sources.unpack(source, folder)
        sources.change(root)
        jobs = jobs or _jobs(hardware)
        libraries = compile.compile(root, folder, tools, given, log=log, jobs=jobs, progress=progress)
        made = wheel.write(folder, facts, tools.platform, libraries, root / "LICENSE")
        if install:
            progress.stage("Installing", 1)
            _install(made)
        if kept is not None:
            work.publish(made, kept)
    return Built(kept, install, facts.version, facts, log)


def _jobs(hardware: Hardware) -> int:
    most = hardware.memory_available // _MEMORY_OF_A_JOB if hardware.memory_available else hardware.threads
    return max(1, min(hardware.threads, most))


def _install(made: Path) -> None:
    _pip("install", "--no-deps", "--no-index", "--force-reinstall", str(made))


def remove() -> None:
    """Uninstall the engine from this environment. Raises ``BuildError``."""
    _pip("uninstall", "--yes", wheel.DISTRIBUTION)


def _pip(action: str, *options: str) -> None:
    command = programs.pip(sys.executable, action, *options)
    if command is None:
        raise BuildError("This Python has neither pip nor uv.", hint="Install one: python -m ensurepip")
    try:
        programs.to_end(command)
    except (subprocess.CalledProcessError, OSError) as error:
        said = words(error.output) if isinstance(error, subprocess.CalledProcessError) else f": {error}"
        raise BuildError(
            f"pip cannot {action} the engine{said}.",
            hint="Keep the wheel with --out, and see what pip says.",
        ) from None
