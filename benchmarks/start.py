"""What it takes from a command to the first token of an answer, beside llama-cpp-python.

    python benchmarks/start.py BUNDLE [--backends gguf onnx] [--llama PYTHON] [--context 4096] [--rounds 7] [--cold]

Each run is a process of its own: interpreter, imports, checks, load, a chat prompt and one token. Runs are interleaved,
and the first of each is left out. CPU seconds are those of the whole process with its children, from start to end; the
wall time ends at the first byte of the answer. Medians, and the range of the CPU seconds. "read" hashes every file
(``--verify always``); without it the files were hashed before, a minute or more after they were written.

``--llama`` is an interpreter that can import llama_cpp: it gets the bundle's GGUF, and the same prompt, context and
threads.
``--cold`` drops the variant's files from the page cache before each run, as far as nobody else has them mapped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from edgepack.bundle.files import Bundle, open_bundle

PEER = """
import sys
from llama_cpp import Llama
path, prompt, context, threads = sys.argv[1:]
count = int(threads)
llama = Llama(path, n_ctx=int(context), n_threads=count, n_threads_batch=count, verbose=False)
messages = [{"role": "user", "content": prompt}]
for part in llama.create_chat_completion(messages, max_tokens=1, temperature=0, stream=True):
    print(part["choices"][0]["delta"].get("content", ""), end="", flush=True)
print()
"""


def start(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; return its CPU seconds and the wall seconds to the first byte of its output."""
    began = time.perf_counter()
    # Byte code that was compiled once is there in every installation.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        os.read(child.stdout.fileno(), 1)
        first = time.perf_counter() - began
        child.stdout.read()
        errors = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(
            f"{' '.join(command[:3])} exited {child.returncode}: {errors.decode(errors='replace')[-500:]}"
        )
    return usage.ru_utime + usage.ru_stime, first


def drop(folder: Path) -> None:
    """Take a folder's files out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def commands(bundle: Bundle, asked: argparse.Namespace) -> dict[str, tuple[list[str], Path]]:
    """Return the commands that are compared, by name, each with the folder of the files that it loads."""
    found: dict[str, tuple[list[str], Path]] = {}
    for backend in asked.backends:
        variant = next(each.id for each in bundle.manifest.variants if each.runtime == backend)
        options = ["--variant", variant, "--context", str(asked.context), "--threads", str(asked.threads)]
        run = [sys.executable, "-m", "edgepack", "run", str(bundle.path), asked.prompt, "--max-tokens", "1", *options]
        found[f"edgepack {variant}"] = run, bundle.variant_path(variant)
        found[f"edgepack {variant}, read"] = [*run, "--verify", "always"], bundle.variant_path(variant)
    if asked.llama:
        variant = next(each.id for each in bundle.manifest.variants if each.runtime == "gguf")
        path = bundle.variant_path(variant) / "model.gguf"
        peer = [asked.llama, "-c", PEER, str(path), asked.prompt, str(asked.context), str(asked.threads)]
        found["llama-cpp-python"] = peer, path.parent
    return found


def main() -> None:
    """Print a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--backends", nargs="+", default=["gguf", "onnx"])
    parser.add_argument("--llama")
    parser.add_argument("--prompt", default="hi")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true")
    asked = parser.parse_args()
    compared = commands(open_bundle(asked.bundle, verify="sizes"), asked)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
    for _ in range(asked.rounds + 1):
        for name, (command, folder) in compared.items():
            if asked.cold:
                drop(folder)
            runs[name].append(start(command))
    print(f"{'':<32}{'CPU s':>8}{'range':>16}{'wall s':>9}")
    for name, found in runs.items():
        cpu, wall = zip(*found[1:], strict=True)
        print(f"{name:<32}{median(cpu):8.2f}{min(cpu):9.2f}..{max(cpu):5.2f}{median(wall):9.2f}")


if __name__ == "__main__":
    main()
