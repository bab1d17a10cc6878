"""An sdist in the layout of the one that engines are compiled from, small, and tools that pretend to compile it."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from edgepack_packager.engine import sources
from edgepack_packager.engine.toolchain import Toolchain

TREE = f"llama_cpp_python-{sources.VERSION}/vendor/llama.cpp"
FILES = {
    f"{TREE}/CMakeLists.txt": b"project(llama.cpp)\n",
    f"{TREE}/LICENSE": b"MIT License, of the authors of ggml\n",
    f"{TREE}/ggml/src/ggml-cpu/ggml-cpu.c": "\n".join(old for old, _ in sources.CHANGES).encode(),
    f"{TREE}/src/llama.cpp": b"int llama;\n",
    f"{TREE}/models/ggml-vocab.gguf": b"never unpacked",
    f"llama_cpp_python-{sources.VERSION}/llama_cpp/llama.py": b"never unpacked",
    f"llama_cpp_python-{sources.VERSION}/pyproject.toml": (
        b'[build-system]\nrequires = ["scikit-build-core"]\nbuild-backend = "scikit_build_core.build"\n'
    ),
}

CMAKE = 'test "$1" = -G && echo "-- Configuring done"'
NINJA = """\
folder="$2/bin"; mkdir -p "$folder"; echo object > "$folder/other.o"
for n in 1 2 3; do echo "[$n/3] Building CXX object number $n"; done
for name in llama ggml-base; do echo "library $name" > "$folder/lib$name.so"; done
"""


def write(path: Path, files: Mapping[str, bytes] = FILES) -> Path:
    """Write an archive; the same files give the same bytes."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tools(folder: Path, cmake: str = CMAKE, ninja: str = NINJA) -> Toolchain:
    """Return a toolchain whose CMake and ninja are these lines of shell."""
    for name, lines in (("cmake", cmake), ("ninja", ninja)):
        (folder / name).write_text(f"#!/bin/sh\nset -e\n{lines}\n")
        (folder / name).chmod(0o700)
    platform = "macosx_14_0_arm64" if sys.platform == "darwin" else "linux_x86_64"
    cc = ("cc",)
    return Toolchain("system", "cc 1.0", cc, cc, str(folder / "cmake"), str(folder / "ninja"), platform)
