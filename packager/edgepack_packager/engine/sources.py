"""The sources of llama.cpp: the sdist of llama-cpp-python on the package index, pinned by its digest.

pip fetches it, so that the user's indexes, mirrors, proxies and certificates hold. Of the archive only what the engine
is compiled from is unpacked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from edgepack.errors import BuildError, SourceError
from edgepack.isolation.process import words
from edgepack_packager import programs

PACKAGE: Final = "llama-cpp-python"
VERSION: Final = "0.3.36"
SHA256: Final = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

_TREE: Final = f"llama_cpp_python-{VERSION}/vendor/llama.cpp"
_WANTED: Final = frozenset({"CMakeLists.txt", "LICENSE", "cmake", "ggml", "include", "licenses", "src", "vendor"})
_MOST_FILES: Final = 10_000
_MOST_BYTES: Final = 1 << 29

# pip asks what it downloads for its metadata, by the build backend that the source names. This one has no more to say
# than a name and a version, and builds nothing.
_BACKEND: Final = f'''\
"""Answers pip's question for the metadata of a source that is only to be downloaded."""

import os


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name = "llama_cpp_python-{VERSION}.dist-info"
    os.mkdir(os.path.join(folder, name))
    with open(os.path.join(folder, name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: {PACKAGE}\\nVersion: {VERSION}\\n")
    return name
'''


def fetch(folder: Path) -> Path:
    """Download the archive into a folder with pip, and return its path.

    Raises ``SourceError`` where pip is not installed, or cannot download that very file.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            f"This Python has no pip to fetch {PACKAGE} {VERSION} with.",
            hint="Install it (python -m ensurepip), or give the file: edgepack engine build --source FILE.tar.gz",
        )
    backend = folder / "backend" / "scikit_build_core"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build.py").write_text(_BACKEND)
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    command += ["--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    try:
        programs.to_end(command, environment={"PYTHONPATH": str(backend.parent.absolute())})
    except subprocess.CalledProcessError as error:
        raise SourceError(
            f"pip cannot download {PACKAGE} {VERSION}{words(error.output)}.",
            hint="Fetch it elsewhere, and give the file: edgepack engine build --source FILE.tar.gz",
        ) from None
    return next(folder.glob("*.tar.gz"))


def unpack(archive: Path, folder: Path) -> Path:
    """Check the archive's digest, unpack what the engine is compiled from, and return the root of llama.cpp in it.

    Raises ``SourceError`` for another file.
    """
    try:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{archive} cannot be read: {error.strerror}.", hint="Give the sdist's path.") from None
    if found != SHA256:
        raise SourceError(
            f"{archive} is not the sdist of {PACKAGE} {VERSION}: its sha256 is {found}, not {SHA256}.",
            hint=f"Download that very file: pip download --no-deps --no-binary :all: {PACKAGE}=={VERSION}",
        )
    return extract(archive, folder)


def extract(archive: Path, folder: Path) -> Path:
    """Unpack llama.cpp from an archive of that layout, whoever made it, and return its root.

    Raises ``SourceError`` for one that is no archive, has links or devices among the files, leads out of the folder, or
    is larger than the sources of an engine can be.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder, _members(tar, archive), filter="data")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{archive} cannot be unpacked: {error}.", hint="Fetch it again.") from None
    root = folder / _TREE
    if not (root / "CMakeLists.txt").is_file():
        raise SourceError(f"{archive} holds no {_TREE}.", hint="Fetch it again.")
    return root


def _members(tar: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    """Yield what is to be unpacked, of which nothing but files and folders is allowed."""
    size = 0
    for count, member in enumerate(tar, 1):
        size += member.size
        if count > _MOST_FILES or size > _MOST_BYTES:
            raise SourceError(f"{archive} is larger than the sources of an engine are.", hint="Fetch it again.")
        path = PurePosixPath(member.name)
        if not path.is_relative_to(_TREE) or (path.parts[3:4] and path.parts[3] not in _WANTED):
            continue
        if not (member.isfile() or member.isdir()) or ".." in path.parts:
            raise SourceError(f"{archive} is not what it should be: {member.name} is no file.", hint="Fetch it again.")
        yield member


def change(root: Path) -> None:
    """Let threads of the engine sleep where they wait for long: put the lines of ``waiting.h`` into ggml's barrier.

    Raises ``BuildError`` where the sources are not those that the lines were written for.
    """
    here = Path(__file__).parent
    source = root / "ggml" / "src" / "ggml-cpu" / "ggml-cpu.c"
    text = source.read_text("utf-8")
    for old, new in CHANGES:
        if text.count(old) != 1:
            raise BuildError(f"{source.name} of llama.cpp is not as it was: {old!r} is there {text.count(old)} times.")
        text = text.replace(old, new)
    source.write_text(text, "utf-8")
    (source.parent / "waiting.h").write_bytes((here / "waiting.h").read_bytes())


_BARRIER: Final = (
    "    while (atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed) == n_passed) {\n"
    "        ggml_thread_cpu_relax();\n    }\n"
)
_PASSED: Final = "        atomic_fetch_add_explicit(&tp->n_barrier_passed, 1, memory_order_seq_cst);\n"
CHANGES: Final = (
    ("// Helpers for polling loops\n", '#include "waiting.h"\n\n// Helpers for polling loops\n'),
    (
        _BARRIER,
        "    for (int rounds = 0; atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed) == n_passed;) {\n"
        "        if (edgepack_spins(rounds)) {\n"
        "            ggml_thread_cpu_relax();\n            rounds += rounds < EDGEPACK_ROUNDS;\n"
        "        } else {\n"
        "            edgepack_sleep(&tp->n_barrier_passed, n_passed);\n"
        "        }\n    }\n",
    ),
    (f"{_PASSED}        return;\n", f"{_PASSED}        edgepack_wake(&tp->n_barrier_passed);\n        return;\n"),
)
"""What is replaced in ggml-cpu.c, each once: a thread that waits for the others sleeps after a while."""
