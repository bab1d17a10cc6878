"""Layers with a window that hold two windows of a long context, beside those that hold it all: memory, speed, turns.

    python benchmarks/make_model.py SHARED/configs/gemma-3-270m-it.json MODEL --text FOLDER_WITH_TOKENIZER
    edgepack build MODEL --target gguf --quant q8 --context 8192 --unproven --out BUNDLE
    python benchmarks/windows.py BUNDLE gguf-q8_0 [--context 8192]

A conversation of six turns fills the context but for 600 tokens. Printed for each way, in a process of its own: the KV
cache that the plan counts and the most memory that the process had, MiB; tokens per CPU second on one thread, of the
first turns' prompts and of 32 tokens at the end; and of four requests after that the tokens of their prompts that they
evaluated, and their CPU seconds to the first token: the next turn, one in place of it (undo), the same messages but the
last (chat), and messages that differ from the second turn on (edited).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import edgepack
from edgepack.bundle.files import open_bundle
from edgepack.decoding.results import Result
from edgepack.device import memory
from edgepack.device.memory import MIB
from edgepack_runtimes.gguf import load

SENTENCE = "A child counted {} apples, four in each of three baskets, and gave one of them away. "
TURNS, LEFT, DECODED = 6, 600, 32
REQUESTS = ("next", "undo", "chat", "edited")


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--way", choices=("rolling", "whole"), help="print one way's figures as JSON, in this process")
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(measure(asked.bundle, asked.variant, asked.context, asked.way)))
        return
    heads = "".join(f"{name + ' evaluated':>18}{'s':>7}" for name in REQUESTS)
    print(f"{'windows':<9}{'KV':>7}{'peak':>8}{'prefill':>9}{'decode':>8}{heads}")
    for way in ("whole", "rolling"):
        command = [sys.executable, __file__, str(asked.bundle), asked.variant, "--way", way]
        done = subprocess.run([*command, "--context", str(asked.context)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        row = json.loads(done.stdout)
        turns = "".join(f"{row[name][0]:>18}{row[name][1]:>7.2f}" for name in REQUESTS)
        figures = f"{row['kv']:>7.1f}{row['peak']:>8.1f}{row['prefill']:>9.1f}{row['decode']:>8.1f}"
        print(f"{way:<9}{figures}{turns}", flush=True)


def measure(path: Path, variant: str, context: int, way: str) -> dict[str, Any]:
    """Return the figures of one way."""
    if way == "whole":
        patch.object(load, "_ring", lambda decoder, options: None).start()
        patch.object(memory, "_ROLLING", frozenset()).start()
    bundle = open_bundle(path, verify="sizes")
    backend = bundle.variant(variant).runtime
    kv = edgepack.plan(bundle, backend=backend, variant=variant, context=context).choice.memory.kv_cache
    with edgepack.load(bundle, backend, context, variant=variant, threads=1) as model:
        room = (context - LEFT) // TURNS
        text = [SENTENCE.format(number) * (room // len(model.tokenize(SENTENCE))) for number in range(TURNS)]
        talk = model.chat(temperature=0)
        spent = tokens = 0.0
        for said in text:
            result, seconds = timed(lambda said=said: talk.send(said, max_tokens=1))  # type: ignore[misc]
            spent, tokens = spent + seconds, tokens + evaluated(result)
        decoded, seconds = timed(lambda: talk.send("More.", max_tokens=DECODED))
        decode = DECODED / seconds
        assert len(decoded.token_ids) == DECODED
        found: dict[str, tuple[int, float]] = {}

        def note(name: str, ask: Callable[[], Result]) -> None:
            answer, seconds = timed(ask)
            found[name] = evaluated(answer), seconds

        note("next", lambda: talk.send(SENTENCE.format("ten"), max_tokens=1))
        talk.undo()
        note("undo", lambda: talk.send(SENTENCE.format("six"), max_tokens=1))
        told = [*talk.messages[:-2], {"role": "user", "content": "Why?"}]
        note("chat", lambda: model.chat(told, max_tokens=1, temperature=0))
        told[2] = {"role": "user", "content": "What?"}
        note("edited", lambda: model.chat(told, max_tokens=1, temperature=0))
        with open("/proc/self/status") as status:
            peak = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    return {"kv": kv / MIB, "peak": peak / MIB, "prefill": tokens / spent, "decode": decode, **found}


def timed(ask: Callable[[], Result]) -> tuple[Result, float]:
    """Return a result and its CPU seconds."""
    began = time.process_time()
    return ask(), time.process_time() - began


def evaluated(result: Result) -> int:
    """Return the tokens of the prompt that were not in the cache."""
    return result.usage.prompt_tokens - result.usage.cached_tokens


if __name__ == "__main__":
    main()
