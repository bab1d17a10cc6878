"""A gguf payload through edgepack's session, beside llama-bench of the same llama.cpp in the same mode.

    edgepack engine build
    python benchmarks/native.py BUNDLE... --llama-bench PATH [--threads 2 1] [--rounds 5] [--chunks 128 512]

A mode is a number of threads, weights repacked or as stored, and the tokens of a chunk; flash attention is off and the
KV cache f16. Runs take turns, each in a process of its own: a prompt of 512 tokens, then 32 tokens in an empty cache,
as llama-bench has them, the best of three after one that does not count. ``ratio`` is the median over the rounds of
edgepack's tokens a second over llama-bench's of the same round, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import median

from edgepack.bundle.files import open_bundle
from edgepack.device.neighbours import look, taken
from edgepack.runtime import Options, find

PROMPT, ANSWER, REPEATS = 512, 32, 3
Speeds = tuple[float, float]
"""Tokens a second of a prompt and of an answer."""


def own(bundle: str, variant: str, threads: int, repack: int, chunk: int) -> Speeds:
    """Measure a session in this process."""
    opened = open_bundle(bundle, verify="sizes")
    decoder = opened.manifest.decoder
    options = Options(PROMPT + ANSWER, threads, "f16", chunk, repack=bool(repack))
    session = find("gguf").open(opened.variant_path(variant), decoder, options)
    ids = [300 + 37 * i % 700 for i in range(PROMPT)]
    found = []
    for _ in range(1 + REPEATS):
        session.rewind(0)
        began = time.perf_counter()
        session.forward(ids)
        read = time.perf_counter()
        session.rewind(0)
        for token in ids[:ANSWER]:
            session.forward([token])
        found.append((PROMPT / (read - began), ANSWER / (time.perf_counter() - read)))
    session.close()
    return max(each[0] for each in found[1:]), max(each[1] for each in found[1:])


def apart(bundle: str, variant: str, mode: Sequence[int]) -> Speeds:
    """Measure a session in a process of its own."""
    command = [sys.executable, __file__, bundle, "--child", variant, *map(str, mode)]
    prefill, decode = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return prefill, decode


def native(program: Path, model: Path, threads: int, repack: int, chunk: int) -> Speeds:
    """Measure llama-bench."""
    command = [program, "-m", model, "-t", threads, "--repack", repack, "-b", chunk, "-ub", chunk, "-fa", 0]
    command += ["-p", PROMPT, "-n", ANSWER, "-r", REPEATS, "-o", "json"]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=True)
    prefill, decode = (max(each["samples_ts"]) for each in json.loads(done.stdout))
    return prefill, decode


def rows(asked: argparse.Namespace, bundle: str, variant: str) -> Iterator[str]:
    """Yield a line of the table for each mode and phase."""
    model = open_bundle(bundle, verify="sizes").variant_path(variant) / "model.gguf"
    modes = list(product(asked.threads, (1, 0), asked.chunks))
    found: dict[Sequence[int], list[tuple[Speeds, Speeds]]] = {mode: [] for mode in modes}
    for number in range(asked.rounds):
        for mode in modes:
            if number % 2:
                theirs = native(asked.llama_bench, model, *mode)
                found[mode].append((apart(bundle, variant, mode), theirs))
            else:
                found[mode].append((apart(bundle, variant, mode), native(asked.llama_bench, model, *mode)))
    for (threads, repack, chunk), runs in found.items():
        for phase, name in enumerate(("prefill", "decode")):
            ours, theirs = ([run[who][phase] for run in runs] for who in (0, 1))
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            spread = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            where = f"| {Path(bundle).stem} | {threads} | {'repacked' if repack else 'as stored'} | {chunk} | {name} "
            yield f"{where}| {median(ours):.1f} | {median(theirs):.1f} | {spread} |"


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--variant", default="gguf-q4_k_m")
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--chunks", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=4, metavar=("VARIANT", "THREADS", "REPACK", "CHUNK"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        variant, *mode = asked.child
        print(json.dumps(own(asked.bundles[0], variant, *map(int, mode))))
        return
    before = look()
    time.sleep(1.0)
    print(f"{taken(before, look()) or 0.0:.2f} cores were others' before; tokens a second\n")
    print("| model | threads | weights | chunk | phase | edgepack | llama-bench | ratio |")
    print("|---|--:|---|--:|---|--:|--:|--:|", flush=True)
    for bundle in asked.bundles:
        for line in rows(asked, bundle, asked.variant):
            print(line, flush=True)


if __name__ == "__main__":
    main()
