"""From the sources to shared libraries: CMake's settings, and ninja's progress."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edgepack.errors import BuildError
from edgepack.isolation.process import words
from edgepack_packager import programs
from edgepack_packager.engine import toolchain
from edgepack_packager.engine.processors import Processor
from edgepack_packager.engine.toolchain import Accelerator, Toolchain
from edgepack_packager.progress import Progress

_STEP: Final = re.compile(rb"\[(\d+)/(\d+)\]")

_SETTINGS: Final = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    # The library alone: no tools, no server, nothing that opens a connection.
    "LLAMA_BUILD_COMMON": "OFF",
    "LLAMA_BUILD_TOOLS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_OPENSSL": "OFF",
    # ggml's own threads, whose waiting can be set; and no library of the system's.
    "GGML_OPENMP": "OFF",
    "GGML_CCACHE": "OFF",
    "GGML_ACCELERATE": "OFF",
    "GGML_BLAS": "OFF",
    # The processor is said to the compiler, for all of the code; see ``settings``.
    "GGML_NATIVE": "OFF",
    "GGML_SSE42": "OFF",
    "GGML_AVX": "OFF",
    "GGML_AVX2": "OFF",
    "GGML_BMI2": "OFF",
    "GGML_FMA": "OFF",
    "GGML_F16C": "OFF",
    # The same wherever it is compiled: no names with versions, no folder, no commit of a repository around it.
    "CMAKE_PLATFORM_NO_VERSIONED_SONAME": "ON",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "LLAMA_BUILD_NUMBER": "0",
    "LLAMA_BUILD_COMMIT": "edgepack",
}


def settings(processor: Processor, tools: Toolchain, accelerators: frozenset[Accelerator]) -> dict[str, str]:
    """Return what CMake is to be told, without what depends on a folder."""
    # Contracted products and sums round otherwise on every processor; the kernels say themselves where they fuse.
    flags = f"{processor.gcc if tools.compiler == 'system' else ''} -ffp-contract=off".strip()
    made = _SETTINGS | dict(tools.settings) | {"CMAKE_C_FLAGS": flags, "CMAKE_CXX_FLAGS": flags}
    made["CMAKE_INSTALL_RPATH"] = "@loader_path" if processor.system == "darwin" else "$ORIGIN"
    if processor.system == "linux":
        made |= dict.fromkeys(("CMAKE_SHARED_LINKER_FLAGS", "CMAKE_MODULE_LINKER_FLAGS"), "-Wl,-s")
    if processor.variants:
        made |= {"GGML_BACKEND_DL": "ON", "GGML_CPU_ALL_VARIANTS": "ON"}
    made["GGML_METAL"] = "OFF"
    made |= {f"GGML_{name.upper()}": "ON" for name in accelerators}
    return made


_LIBRARIES_OF_ZIG: Final = 109
"""Files of its C and C++ libraries that zig 0.17 compiles for a processor of ARM, before it first links a program."""


class _Heard:
    """What ninja prints: kept, and its count of steps shown."""

    def __init__(self, keep: Callable[[bytes], object], progress: Progress) -> None:
        self._keep, self._progress, self._total, self._done = keep, progress, 0, 0

    def __call__(self, line: bytes) -> None:
        self._keep(line)
        if step := _STEP.match(line):
            done, total = int(step[1]), int(step[2])
            if total != self._total:
                self._progress.stage("Compiling llama.cpp", total)
                self._total, self._done = total, 0
            self._progress.advance(done - self._done)
            self._done = done


def compile(
    source: Path,
    folder: Path,
    tools: Toolchain,
    given: Mapping[str, str],
    *,
    log: Path,
    jobs: int,
    progress: Progress,
) -> dict[str, Path]:
    """Compile in a folder, and return the shared libraries by name. What the tools print goes to ``log``.

    Raises ``BuildError`` with the compiler's last words.
    """
    folder = folder.absolute()  # CMake takes no other path for a compiler
    prefix = f"-ffile-prefix-map={folder}=."
    compilers = {
        "CMAKE_C_COMPILER": str(toolchain.wrapper(folder, "cc", tools.c, tools.spelling)),
        "CMAKE_CXX_COMPILER": str(toolchain.wrapper(folder, "c++", tools.cxx, tools.spelling)),
        "CMAKE_MAKE_PROGRAM": tools.ninja,
        "CMAKE_C_FLAGS": f"{given['CMAKE_C_FLAGS']} {prefix}",
        "CMAKE_CXX_FLAGS": f"{given['CMAKE_CXX_FLAGS']} {prefix}",
    }
    for name in ("CMAKE_AR", "CMAKE_RANLIB"):
        if name in given:
            command = (given[name], name.removeprefix("CMAKE_").lower())
            compilers[name] = str(toolchain.wrapper(folder, command[1], command))
    made = folder / "made"
    options = [f"-D{name}={value}" for name, value in ({**given} | compilers).items()]
    with log.open("wb", buffering=0) as kept:
        try:
            if tools.compiler == "zig":
                _libraries(folder, compilers["CMAKE_CXX_COMPILER"], kept.write, progress)
            progress.stage("Configuring llama.cpp", 1)
            programs.follow([tools.cmake, "-G", "Ninja", "-S", str(source), "-B", str(made), *options], kept.write)
            programs.follow([tools.ninja, "-C", str(made), f"-j{jobs}", "llama"], _Heard(kept.write, progress))
        except subprocess.CalledProcessError as error:
            raise BuildError(f"llama.cpp could not be compiled{words(error.output)}.", hint=f"See {log}.") from None
        except OSError as error:
            raise BuildError(f"llama.cpp could not be compiled: {error}.", hint=f"See {log}.") from None
    return {path.name: path for path in sorted((made / "bin").iterdir()) if path.suffix in (".so", ".dylib")}


def _libraries(folder: Path, compiler: str, keep: Callable[[bytes], object], progress: Progress) -> None:
    """Let zig compile its own libraries, which it keeps: CMake's first question would have it do so in silence."""

    def hear(line: bytes) -> None:
        keep(line)
        progress.advance(line.count(b" clang "))

    progress.stage("Compiling zig's libraries", _LIBRARIES_OF_ZIG)
    program = folder / "empty.cpp"
    program.write_text("int main() { return 0; }\n")
    programs.follow([compiler, str(program), "-o", str(folder / "empty")], hear, environment={"ZIG_VERBOSE_CC": "1"})
