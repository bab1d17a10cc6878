"""What the engines take from a payload inside of a packed bundle, beside the same payload in a folder.

    python benchmarks/packed.py BUNDLE

The bundle is packed, and each engine is given the bytes where they lie in the file: llama.cpp by an open FILE that
stands at the payload, onnxruntime by a mapping of it (``add_external_initializers_from_files_in_memory``), mlx by a
file object that begins there. Each load is a process of its own, with a context of 64 tokens, and evaluates four
tokens. The table has what that added in MiB, to the memory of its own and to the pages of files that are mapped, and
whether the logits are the same to the last bit.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import mmap
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edgepack.bundle.files import VARIANTS, Bundle, open_bundle
from edgepack.runtime import Options, find
from edgepack_ship.archive.members import Member, members
from edgepack_ship.incoming import Folder
from edgepack_ship.packing import pack


class Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, path: Path, member: Member) -> None:
        self._file, self._member, self._at = open(path, "rb", buffering=0), member, 0  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._member.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._member.offset + self._at)
        count = self._file.readinto(memoryview(buffer)[: self._member.size - self._at])
        self._at += count
        return count


def in_llama(tar: Path, parts: dict[str, Member]) -> None:
    import ctypes

    from edgepack_runtimes.gguf import abi
    from edgepack_runtimes.gguf import load as loading

    libc = ctypes.CDLL(None)
    libc.fopen.restype, libc.fseek.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_long, ctypes.c_int]
    open_session = loading.open_session

    def opened(library: Any, *rest: Any) -> Any:
        by_file = library.native.llama_model_load_from_file_ptr
        by_file.restype, by_file.argtypes = ctypes.c_void_p, [ctypes.c_void_p, abi.ModelParams]

        def loaded(path: bytes, params: Any) -> Any:
            file = libc.fopen(bytes(tar), b"rb")
            libc.fseek(file, parts[Path(path.decode()).name].offset, 0)
            return by_file(file, params)

        library.native.llama_model_load_from_file = loaded
        return open_session(library, *rest)

    loading.open_session = opened


def in_onnxruntime(tar: Path, parts: dict[str, Member]) -> None:
    import onnxruntime

    with open(tar, "rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    inside = {name: whole[each.offset : each.offset + each.size] for name, each in parts.items()}
    session = onnxruntime.InferenceSession

    def opened(path: str, options: Any, **rest: Any) -> Any:
        if Path(path).name not in inside:  # the runtime tries the engine with graphs of its own
            return session(path, options, **rest)
        data = inside["model.onnx.data"]
        options.add_external_initializers_from_files_in_memory(["model.onnx.data"], [data], [len(data)])
        return session(bytes(inside["model.onnx"]), options, **rest)

    onnxruntime.InferenceSession = opened


def in_mlx(tar: Path, parts: dict[str, Member]) -> None:
    import mlx.core

    load = mlx.core.load
    mlx.core.load = lambda path, **rest: load(Window(tar, parts[Path(path).name]), **rest)


INSIDE: dict[str, Callable[[Path, dict[str, Member]], None]] = {
    "gguf": in_llama,
    "onnx": in_onnxruntime,
    "mlx": in_mlx,
}


def resident() -> tuple[int, int]:
    """Return the KiB of this process that are its own, and those of mapped files."""
    status = Path("/proc/self/status").read_text()
    own, mapped = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("RssAnon", "RssFile"))  # type: ignore[index]
    return own, mapped


def load(bundle: Bundle, id: str, tar: Path | None) -> None:
    """Load a variant, from a packed file where there is one, and print what it takes."""
    variant = bundle.variant(id)
    runtime = find(variant.runtime)
    if tar is not None:
        with open(tar, "rb", buffering=0) as file:
            prefix = f"{VARIANTS}/{id}/"
            parts = {name.removeprefix(prefix): each for name, each in members(file).items() if name.startswith(prefix)}
        INSIDE[variant.runtime](tar, parts)
    before = resident()
    options = Options(context=64, threads=2, kv_cache="f32")
    session = runtime.open(bundle.variant_path(id), bundle.manifest.decoder, options)
    logits = session.forward([1, 2, 3, 4])
    own, mapped = (after - earlier for after, earlier in zip(resident(), before, strict=True))
    print(own // 1024, mapped // 1024, hashlib.sha256(logits.tobytes()).hexdigest())


def measured(bundle: Path, id: str, tar: Path | None) -> list[str]:
    words = [str(bundle), "--load", id, *(["--tar", str(tar)] if tar else [])]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--tar", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    bundle = open_bundle(asked.bundle, verify="sizes")
    if asked.load:
        load(bundle, asked.load, asked.tar)
        return
    print("| variant | from a folder: own, mapped MiB | from inside the file | the same logits |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        with Folder(asked.bundle) as folder:
            tar = pack(folder, Path(place) / "packed.tar").path
        for variant in bundle.manifest.variants:
            there, inside = map(partial(measured, asked.bundle, variant.id), (None, tar))
            same = "yes" if there[2] == inside[2] else "no"
            print(f"| {variant.id} | {there[0]}, {there[1]} | {inside[0]}, {inside[1]} | {same} |", flush=True)


if __name__ == "__main__":
    main()
