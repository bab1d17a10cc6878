"""What is not computed twice: a conversation's second turn, and tokens that prompt lookup guesses.

    python benchmarks/make_model.py llama-3.2-1b /tmp/counts --counts
    edgepack build /tmp/counts --quant q4 --target gguf --target onnx --out counts.edgepack
    python benchmarks/reuse.py counts.edgepack [--backend gguf onnx] [--shared 1000] [--copy 200] [--json reuse.json]
    python benchmarks/reuse.py smollm2.edgepack --rounds 5 --copy 0 --threads 1

The first table is the time to the first token of two turns of a conversation that begins with a system prompt of
``--shared`` tokens. The next is the CPU time to the first token of a second turn, in a conversation and by messages
alone, one after the other in each of ``--rounds`` rounds, whose answers are sampled. The last is a task that copies
``--copy`` tokens of the prompt: the shape and the cost are those of a real model, and the weights make it continue each
token with the next: it repeats a prompt that counts.
Ratios come from one run; the wall times themselves depend on the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import edgepack
from edgepack import Model
from edgepack.decoding.lookup import NGRAM
from edgepack.decoding.options import ChatOptions
from edgepack.decoding.stream import Stream

PASSAGE = (
    "The river rose in the night and took the bridge with it, and in the morning the clock of the old tower struck "
    "seven for nobody. A child counted twelve apples, four in each of three baskets, and gave one of them away. "
)


def turns(model: Model, shared: int) -> dict[str, Any]:
    """Return what two turns of one conversation cost until their first token."""
    system = model.detokenize(model.tokenize(PASSAGE * shared)[:shared])
    chat = model.chat(system=system, max_tokens=8)
    first, second = chat.send("What did the river take?"), chat.send("How many apples are left?")
    rows = {
        name: {
            "prompt": result.usage.prompt_tokens,
            "cached": result.usage.cached_tokens,
            "ttft_s": result.timings.ttft_s,
        }
        for name, result in (("first", first), ("second", second))
    }
    assert first.timings.ttft_s
    assert second.timings.ttft_s
    return rows | {"ratio": second.timings.ttft_s / first.timings.ttft_s}


FIRST, SECOND = "What did the river take, and who heard the clock?", "How many apples are left?"


def second_turns(model: Model, rounds: int, answer: int) -> dict[str, dict[str, Any]]:
    """Return the CPU milliseconds to the first token of a second turn, after a first answer of ``answer`` tokens."""

    def by_conversation(options: ChatOptions) -> Callable[[], Stream]:
        chat = model.chat(system=PASSAGE, **options)
        chat.send(FIRST)
        return lambda: chat.stream(SECOND)

    def by_messages(options: ChatOptions) -> Callable[[], Stream]:
        said = [{"role": "system", "content": PASSAGE}, {"role": "user", "content": FIRST}]
        text = model.chat(said, **options).text
        said += [{"role": "assistant", "content": text}, {"role": "user", "content": SECOND}]
        return lambda: model.stream_chat(said, **options)

    ways = {
        "conversation": by_conversation,
        "messages, all": lambda options: by_messages({**options, "reuse": "all"}),
        "messages, exact": lambda options: by_messages({**options, "reuse": "exact"}),
    }
    found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            ask = way({"temperature": 0.8, "seed": number, "max_tokens": answer})
            begun = process_time()
            with ask() as stream:
                next(stream)
                cost = process_time() - begun
            usage = stream.result.usage
            found[name].append((1000 * cost, usage.prompt_tokens, usage.cached_tokens))
    return {
        name: {
            "cpu_ms": median(row[0] for row in rows[1:]),
            "range": (min(row[0] for row in rows[1:]), max(row[0] for row in rows[1:])),
            "prompt": median(row[1] for row in rows[1:]),
            "cached": median(row[2] for row in rows[1:]),
        }
        for name, rows in found.items()
    }


def copies(model: Model, length: int) -> dict[str, Any]:
    """Return the decode speed without and with prompt lookup where the answer repeats the prompt, token by token.

    The model continues each id with the next one, so the prompt is a run of ids and its beginning.
    """
    ids = [*range(1000, 1000 + 2 * length), *range(1000, 1000 + NGRAM)]
    base = model.generate("x", max_tokens=1)
    plain, guessed = (
        model._repeat(
            replace(base.repro, prompt_ids=tuple(ids), max_tokens=length, cached=(), prompt_lookup=on), base.sampling
        )
        for on in (False, True)
    )
    if plain.token_ids != tuple(ids[NGRAM : NGRAM + length]):
        raise SystemExit("This model does not count: make it with make_model.py --counts.")
    assert plain.timings.decode_tps
    assert guessed.timings.decode_tps
    return {
        "tokens": plain.usage.completion_tokens,
        "same_text": plain.token_ids == guessed.token_ids,
        "drafted": guessed.usage.drafted_tokens,
        "accepted": guessed.usage.accepted_tokens,
        "plain_tps": plain.timings.decode_tps,
        "lookup_tps": guessed.timings.decode_tps,
        "ratio": guessed.timings.decode_tps / plain.timings.decode_tps,
    }


def _show_turns(both: dict[str, Any]) -> None:
    for name in ("first", "second"):
        row = both[name]
        print(f"  {name:6} turn  {row['prompt']:5} tokens, {row['cached']:5} cached, first after {row['ttft_s']:.3f} s")
    print(f"  second / first  {both['ratio']:.3f}", flush=True)


def _show_second(found: dict[str, dict[str, Any]]) -> None:
    base = found["conversation"]["cpu_ms"]
    for name, row in found.items():
        low, high = row["range"]
        print(
            f"  {name:15} {row['cpu_ms']:7.1f} CPU ms ({low:.1f} to {high:.1f}) to the first token, "
            f"{row['cached']:.0f} of {row['prompt']:.0f} cached: {row['cpu_ms'] / base:.2f} x",
            flush=True,
        )


def _show_copies(copy: dict[str, Any]) -> None:
    right = f"{copy['accepted']} of {copy['drafted']} guesses right"
    print(f"  copying {copy['tokens']} tokens, {right}, same text: {copy['same_text']}")
    print(
        f"  {copy['plain_tps']:.1f} tokens/s without, {copy['lookup_tps']:.1f} with: {copy['ratio']:.2f} x", flush=True
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--backend", nargs="+", default=["gguf"])
    parser.add_argument("--shared", type=int, default=1000, help="0 leaves this table out, as for the others")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--answer", type=int, default=128, help="tokens of a first answer of --rounds")
    parser.add_argument("--copy", type=int, default=200)
    parser.add_argument("--threads", type=int, help="of the engine; one, where other work takes the cores")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    report: dict[str, Any] = {}
    context = max(asked.shared, 3 * asked.copy, 2 * asked.answer + 256) + 256
    for backend in asked.backend:
        with edgepack.load(asked.bundle, backend, context, threads=asked.threads) as model:
            found = report[backend] = {}
            print(f"{backend}: {model.variant.id}, {model.setup.threads} thread(s)")
            if asked.shared:
                found["turns"] = turns(model, asked.shared)
                _show_turns(found["turns"])
            if asked.rounds:
                found["second"] = second_turns(model, asked.rounds, asked.answer)
                _show_second(found["second"])
            if asked.copy:
                found["copy"] = copies(model, asked.copy)
                _show_copies(found["copy"])
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
