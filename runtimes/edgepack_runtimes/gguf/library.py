"""Finding and loading the shared object that exports llama.cpp's C interface.

Struct layouts change between versions without notice, so an engine is bound at exactly one version. Nothing of the
engine's Python package is imported: only its files are used.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from ctypes import Structure
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgepack import threads
from edgepack.device.hardware import Hardware, narrow_python
from edgepack.errors import EngineMissingError
from edgepack_runtimes.gguf import abi, log, own
from edgepack_runtimes.gguf.own import Pools

INSTALL: Final = "pip install 'edgepack[gguf]'"
BUILD: Final = "edgepack engine build"
"""The command that compiles an engine for the processor that it runs on."""

AUTOMATIC: Final = "edgepack engine use auto"
"""The command that ends a preference, so that the best engine is taken."""

FREE: Final = f"free the choice with: {AUTOMATIC}"


@dataclass(frozen=True, slots=True)
class Engine:
    """A Python distribution that carries llama.cpp, at the one version whose struct layouts are bound here.

    ``patterns`` find the shared object inside the package; ``llama`` and ``ggml`` are the versions that the library
    reports of itself. An engine of our ``own`` has a local version besides, which says for what it was compiled.
    ``code`` is ``Support.code``, of an engine that takes less than the wheel that everybody can install.
    """

    distribution: str
    package: str
    version: str
    patterns: tuple[str, ...]
    llama: str
    ggml: str
    context_params: type[Structure]
    own: bool = False
    code: int | None = None


ENGINES: Final = (
    # Compiled by ``edgepack engine build`` for the processor that runs it.
    Engine(
        distribution="edgepack-llama",
        package="edgepack_llama",
        version="0.3.36",
        patterns=("lib/libllama.so", "lib/libllama.dylib"),
        llama="0.5.0",
        ggml="0.25.3",
        context_params=abi.ContextParams,
        own=True,
        code=22 << 20,  # a library of 6 MB beside one of 100 MB: ``benchmarks/memory.py`` finds 6 MB between them
    ),
    # Compiled on the machine that runs it, for its processor and accelerator: preferred where somebody did so.
    Engine(
        distribution="llama-cpp-python",
        package="llama_cpp",
        version="0.3.36",
        patterns=("lib/libllama.so", "lib/libllama.dylib"),
        llama="0.5.0",
        ggml="0.25.3",
        context_params=abi.ContextParams,
    ),
    Engine(
        distribution="xllamacpp",
        package="xllamacpp",
        version="2026.10.11549",
        patterns=("xllamacpp*.so",),
        llama="0.6.0",
        ggml="0.26.0",
        context_params=abi.ContextParamsMoe,
    ),
)
"""The engines that can be bound, best first."""


# Wheels of llama.cpp leave it to the system, and slim images have none.
_OPENMP: Final = "libgomp.so.1"
_OPENMP_LINES: Final[Mapping[str, str]] = {
    "debian": "apt-get install libgomp1",
    "fedora": "dnf install libgomp",
    "rhel": "dnf install libgomp",
    "alpine": "apk add libgomp",
    "suse": "zypper install libgomp1",
    "arch": "pacman -S gcc-libs",
}


def unavailable(hardware: Hardware) -> str | None:
    """Return why no engine can be installed on a machine, None where one can."""
    if narrow := narrow_python("llama.cpp"):
        return narrow
    if hardware.system == "windows":
        return "No build of llama.cpp for Windows exports its C interface."
    if hardware.machine not in ("x86_64", "arm64"):
        return f"llama.cpp has no wheel for {hardware.machine}."
    return None


def install_line(hardware: Hardware, used: Engine | None) -> str | None:
    """Return the command that gives a machine an engine, or one for its accelerator instead of the engine ``used``.

    The wheel has no CUDA, so that an NVIDIA device needs the engine that is compiled; it has Metal.
    """
    if unavailable(hardware):
        return None
    if used is None and "cuda" not in hardware.accelerators:
        return INSTALL
    compiled = next(engine for engine in ENGINES if engine.distribution == "llama-cpp-python")
    flags = 'CMAKE_ARGS="-DGGML_CUDA=on" ' if "cuda" in hardware.accelerators else ""
    # The same version is there already, and pip keeps the wheel that it once built.
    again = "--force-reinstall --no-deps --no-cache-dir " if used is compiled else ""
    return f"{flags}pip install {again}{compiled.distribution}=={compiled.version}"


def openmp_line(os_release: Path = Path("/etc/os-release")) -> str:
    """Return the command that installs GNU's OpenMP library on this system."""
    try:
        said = dict(line.split("=", 1) for line in os_release.read_text("utf-8", "replace").splitlines() if "=" in line)
    except OSError:
        said = {}
    kinds = f"{said.get('ID', '')} {said.get('ID_LIKE', '')}".replace('"', "").split()
    return next((_OPENMP_LINES[kind] for kind in kinds if kind in _OPENMP_LINES), _OPENMP_LINES["debian"])


def lacks_openmp(reason: str | None) -> bool:
    """Say whether an engine gave the absence of that library as its reason."""
    return _OPENMP in (reason or "")


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded engine: its functions are attributes of ``native``, with their signatures declared.

    ``build`` is the local version of an engine of our own, such as "this.g1a2b3c4d", with the variant of it that was
    loaded, if it has any: "x86.64.g1a2b3c4d.haswell"; ``pools`` what it has more.
    """

    engine: Engine
    native: ctypes.CDLL
    build: str = ""
    pools: Pools | None = None

    @property
    def llama_version(self) -> str:
        """llama.cpp's own version, such as "0.6.0-dev", and the build where it is one of our own."""
        version: str = self.native.llama_version().decode()
        return f"{version}+{self.build}" if self.build else version

    @property
    def version(self) -> str:
        """llama.cpp's own version and the distribution that it came in."""
        return f"llama.cpp {self.llama_version} ({self.engine.distribution} {self.engine.version})"

    def devices(self) -> tuple[str, ...]:
        """Return what the library can compute on, best first: "metal", "cuda", ..., "cpu"."""
        return (*dict.fromkeys(self.accelerators().values()), "cpu")

    def accelerators(self) -> dict[str, str]:
        """Return the names of the GPUs that the library sees, and what they are: {"CUDA0": "cuda"}."""
        native = self.native
        found: dict[str, str] = {}
        for index in range(native.ggml_backend_dev_count()):
            device = native.ggml_backend_dev_get(index)
            if native.ggml_backend_dev_type(device) in (abi.DEVICE_GPU, abi.DEVICE_INTEGRATED_GPU):
                registry = native.ggml_backend_reg_name(native.ggml_backend_dev_backend_reg(device))
                name = native.ggml_backend_dev_name(device).decode()
                found[name] = {"mtl": "metal"}.get(registry.decode().lower(), registry.decode().lower())
        return found


def installed(engine: Engine) -> str | None:
    """Return the version of the engine's distribution that is installed here, None where it is not."""
    try:
        return importlib.metadata.version(engine.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def locate(engine: Engine) -> Path:
    """Return the engine's shared object. Raises ``EngineMissingError`` where it is absent or of another version."""
    found = installed(engine)
    try:
        spec = importlib.util.find_spec(engine.package)
    except (ImportError, ValueError):
        spec = None
    if found is None or spec is None or not spec.submodule_search_locations:
        line = BUILD if engine.own else INSTALL
        raise EngineMissingError(f"{engine.distribution} is not installed.", hint=f"Install it with: {line}")
    if (found.partition("+")[0] if engine.own else found) != engine.version:
        raise EngineMissingError(
            f"{engine.distribution} {found} is installed, but only {engine.version} can be bound.",
            hint=f"Install it with: {INSTALL}",
        )
    for folder in spec.submodule_search_locations:
        for pattern in engine.patterns:
            for path in sorted(Path(folder).glob(pattern)):
                return path
    raise EngineMissingError(
        f"{engine.distribution} {found} has no shared object {' or '.join(engine.patterns)} for this system.",
        hint="Reinstall it, or use another backend.",
    )


_loaded: dict[Engine, Library] = {}
_loading = threads.lock()


def load(engine: Engine) -> Library:
    """Load the engine, once per process, with its log redirected.

    Raises ``EngineMissingError`` where it cannot be loaded, lacks a function, or reports another version.
    """
    with _loading:
        if engine not in _loaded:
            _loaded[engine] = bind(engine, locate(engine))
        return _loaded[engine]


def bind(engine: Engine, path: Path) -> Library:
    """Load an engine's shared object from wherever it lies. Raises as ``load``; to be called once per process."""
    try:
        native = ctypes.CDLL(str(path))
        abi.declare(native, engine.context_params)
        log.install(native)  # before a variant is loaded, which ggml tells
        pools = own.load(native, path.parent) if engine.own else None
    except (OSError, AttributeError, ValueError) as error:  # ValueError: of a variable that is not there
        if _OPENMP in str(error):
            raise EngineMissingError(
                f"{engine.distribution} {engine.version} needs the system's {_OPENMP}, which is not installed.",
                hint=f"Install it with: {openmp_line()}",
            ) from error
        raise EngineMissingError(
            f"{engine.distribution} {engine.version} cannot be used: {error}.", hint="Use another backend."
        ) from error
    reported = native.llama_version().decode(), native.ggml_version().decode()
    if (reported[0].removesuffix("-dev"), reported[1]) != (engine.llama, engine.ggml):
        raise EngineMissingError(
            f"{path} reports llama.cpp {reported[0]} and ggml {reported[1]}; "
            f"{engine.distribution} {engine.version} has {engine.llama} and {engine.ggml}.",
            hint=f"Reinstall it with: {INSTALL}",
        )
    native.llama_backend_init()
    local = (installed(engine) or "").partition("+")[2]
    build = ".".join(filter(None, (local, pools.variant))) if pools else ""
    return Library(engine, native, build, pools)
