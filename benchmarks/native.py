"""A gguf payload through edgepack's session, beside llama.cpp compiled for this processor, in the same mode.

    edgepack engine build
    cmake -S LLAMA -B MADE -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON && cmake --build MADE --target llama-bench
    python benchmarks/native.py BUNDLE... --made MADE [--threads 2 1] [--repack 1 0] [--chunks 128 512] [--rounds 5]

LLAMA are the sources that the engine is made of: ``vendor/llama.cpp`` of the sdist that ``edgepack engine build`` says.
Three contenders: the engine that the runtime takes here ("edgepack"); llama.cpp's own build with its own defaults,
MADE's libllama, driven by the very same session ("native"); and its own program, which neither takes the logits out nor
checks a token ("llama-bench"). A mode is a number of threads, weights repacked or as stored, and the tokens of a chunk;
flash attention is off and the KV cache f16. A turn is a prompt of ``--prompt`` tokens, then ``--answer`` ones in an
empty cache, as llama-bench has them.

The two sessions live in one process and take turns, either first, so that what disturbs the machine for longer than a
turn disturbs both; in each round ``--turns`` of them count, after one that does not. llama-bench makes as many in a
process of its own. Speeds are medians of all turns. A ratio is the median of edgepack's speed over the other's: of the
same turn, and for llama-bench of the best of a round; with the smallest and the largest.
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
from typing import Any

from edgepack.bundle.files import open_bundle
from edgepack.device.hardware import detect
from edgepack.device.neighbours import look, taken
from edgepack.runtime import Options, Session, find
from edgepack_runtimes.gguf.library import ENGINES, bind
from edgepack_runtimes.gguf.load import open_session

FILE = "model.gguf"
CONTENDERS = ("edgepack", "native", "llama-bench")
Speeds = tuple[float, float]
"""Tokens a second of a prompt and of an answer."""
Mode = tuple[int, int, int]
"""Threads, whether weights are repacked, and the tokens of a chunk."""
Turns = dict[str, list[Speeds]]
"""Those of each contender."""


def turn(session: Session, prompt: int, answer: int) -> Speeds:
    """Measure one turn of a session."""
    ids = [300 + 37 * i % 700 for i in range(max(prompt, answer))]
    session.rewind(0)
    began = time.perf_counter()
    session.forward(ids[:prompt])
    read = time.perf_counter()
    session.rewind(0)
    for token in ids[:answer]:
        session.forward([token])
    return prompt / (read - began), answer / (time.perf_counter() - read)


def sessions(asked: argparse.Namespace, bundle: str, mode: Mode) -> Turns:
    """Measure the two sessions in this process, in turns."""
    threads, repack, chunk = mode
    opened = open_bundle(bundle, verify="sizes")
    folder, decoder = opened.variant_path(asked.variant), opened.manifest.decoder
    options = Options(asked.prompt + asked.answer, threads, "f16", chunk, repack=bool(repack))
    engine = next(each for each in ENGINES if each.distribution == "llama-cpp-python")
    library = bind(engine, next((asked.made / "bin").glob("libllama.*")))
    both = (find("gguf").open(folder, decoder, options), open_session(library, folder / FILE, decoder, options))
    turns: Turns = {who: [] for who in CONTENDERS[:2]}
    for number in range(1 + asked.turns):
        for who, session in list(zip(turns, both, strict=True))[:: -1 if number % 2 else 1]:
            turns[who].append(turn(session, asked.prompt, asked.answer))
    for session in both:
        session.close()
    return {who: found[1:] for who, found in turns.items()}


def bench(asked: argparse.Namespace, bundle: str, mode: Mode) -> list[Speeds]:
    """Return the turns of llama-bench."""
    threads, repack, chunk = mode
    model = open_bundle(bundle, verify="sizes").variant_path(asked.variant) / FILE
    command = [asked.made / "bin" / "llama-bench", "-m", model, "-t", threads, "--repack", repack, "-b", chunk]
    command += ["-ub", chunk, "-fa", 0, "-p", asked.prompt, "-n", asked.answer, "-r", asked.turns, "-o", "json"]
    tests = output(command)
    prefill, decode = (each["samples_ts"] for each in tests)
    return list(zip(prefill, decode, strict=True))


def output(command: Sequence[object]) -> Any:
    """Return the JSON that a program prints."""
    return json.loads(subprocess.run([str(each) for each in command], capture_output=True, check=True).stdout)


def rows(asked: argparse.Namespace, bundle: str) -> Iterator[str]:
    """Yield a line of the table for each mode and phase."""
    for mode in product(asked.threads, asked.repack, asked.chunks):
        child = [sys.executable, *sys.argv, "--child", bundle, *mode]
        found: list[Turns] = []
        for _ in range(asked.rounds):
            found.append(output(child) | {CONTENDERS[2]: bench(asked, bundle, mode)})
        threads, repack, chunk = mode
        for phase, name in enumerate(("prefill", "decode")):
            where = f"{Path(bundle).stem} | {threads} | {'repacked' if repack else 'as stored'} | {chunk} | {name}"
            speeds = [[[each[phase] for each in run[who]] for run in found] for who in CONTENDERS]
            medians = [f"{median(each for run in runs for each in run):.1f}" for runs in speeds]
            ours, native, theirs = speeds
            same = [a / b for x, y in zip(ours, native, strict=True) for a, b in zip(x, y, strict=True)]
            best = [max(x) / max(y) for x, y in zip(ours, theirs, strict=True)]
            yield f"| {' | '.join((where, *medians, ratio(same), ratio(best)))} |"


def ratio(found: Sequence[float]) -> str:
    """Return the median of ratios, with the least and the most."""
    return f"{median(found):.2f} ({min(found):.2f}-{max(found):.2f})"


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--made", type=Path, required=True, help="where CMake built llama.cpp, with its bin/")
    parser.add_argument("--variant", default="gguf-q4_k_m")
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--repack", nargs="+", type=int, choices=(0, 1), default=[1, 0])
    parser.add_argument("--chunks", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        bundle, threads, repack, chunk = asked.child
        print(json.dumps(sessions(asked, bundle, (int(threads), int(repack), int(chunk)))))
        return
    before = look()
    time.sleep(1.0)
    busy = taken(before, look()) or 0.0
    print(f"{detect().processor}; {busy:.2f} cores were others' before; tokens a second\n")
    print(
        "| model | threads | weights | chunk | phase | edgepack | native | llama-bench | to native | to llama-bench |"
    )
    print("|---|--:|---|--:|---|--:|--:|--:|--:|--:|", flush=True)
    for bundle in asked.bundles:
        for line in rows(asked, bundle):
            print(line, flush=True)


if __name__ == "__main__":
    main()
