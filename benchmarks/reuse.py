"""What is not computed twice: a conversation's second turn, and tokens that prompt lookup guesses.

    python benchmarks/make_model.py llama-3.2-1b /tmp/counts --counts
    edgepack build /tmp/counts --quant q4 --target gguf --target onnx --out counts.edgepack
    python benchmarks/reuse.py counts.edgepack [--backend gguf onnx] [--shared 1000] [--copy 200] [--json reuse.json]

The first table is the time to the first token of two turns of a conversation that begins with a system prompt of
``--shared`` tokens. The second is a task that copies ``--copy`` tokens of the prompt: the shape and the cost are
those of a real model, and the weights make it continue each token with the next: it repeats a prompt that counts.
Ratios come from one run; the wall times themselves depend on the machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgepack
from edgepack import Model
from edgepack.decoding.lookup import NGRAM

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


def copies(model: Model, length: int) -> dict[str, Any]:
    """Return the decode speed without and with prompt lookup where the answer repeats the prompt, token by token.

    The model continues each id with the next one, so the prompt is a run of ids and its beginning.
    """
    ids = [*range(1000, 1000 + 2 * length), *range(1000, 1000 + NGRAM)]
    base = model.generate("x", max_tokens=1)
    plain, guessed = (
        model.repeat(
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


def _show(both: dict[str, Any], copy: dict[str, Any]) -> None:
    for name in ("first", "second"):
        row = both[name]
        print(f"  {name:6} turn  {row['prompt']:5} tokens, {row['cached']:5} cached, first after {row['ttft_s']:.3f} s")
    print(f"  second / first  {both['ratio']:.3f}")
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
    parser.add_argument("--shared", type=int, default=1000)
    parser.add_argument("--copy", type=int, default=200)
    parser.add_argument("--threads", type=int, help="of the engine; one, where other work takes the cores")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    report: dict[str, Any] = {}
    context = max(asked.shared, 3 * asked.copy) + 256
    for backend in asked.backend:
        with edgepack.load(asked.bundle, backend, context, threads=asked.threads) as model:
            found = report[backend] = {"turns": turns(model, asked.shared), "copy": copies(model, asked.copy)}
        print(f"{backend}: {model.variant.id}, {model.setup.threads} thread(s)")
        _show(found["turns"], found["copy"])
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
