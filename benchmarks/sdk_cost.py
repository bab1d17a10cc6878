"""What the SDK itself costs per token, at several lengths of the text: everything but the engine's forward.

    python benchmarks/sdk_cost.py TOKENIZER.json [--lengths 100 4000] [--json sdk_cost.json]

The fake engine invents the logits of a vocabulary as large as the tokenizer's; the CPU time of the whole process is
measured, on all its threads, and the time inside the fake's forward is taken away. Nothing may grow with the length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepack import Model, fake
from edgepack.fake import FakeRuntime, FakeSession
from edgepack.runtime import Options
from edgepack.text.tokenizer import Tokenizer

SCHEMA = {"type": "array", "items": {"type": "string"}}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 1": {"temperature": 1, "top_p": 1, "seed": 1},
    "top_p 0.9": {"temperature": 1, "top_p": 0.9, "seed": 1},
    "top_k 40": {"temperature": 1, "top_k": 40, "top_p": 1, "seed": 1},
    "min_p 0.05": {"temperature": 1, "min_p": 0.05, "top_p": 1, "seed": 1},
    "all, and a penalty": {"temperature": 1, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "seed": 1},
    "greedy, 5 logprobs": {"temperature": 0, "n_best": 5},
    "greedy, JSON schema": {"temperature": 0, "json_schema": SCHEMA, "stop": None},
}
TOKENS = 64


class Watched(FakeSession):
    """A fake session that adds up the CPU seconds inside ``forward``."""

    inside_s = 0.0

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        start = time.thread_time()
        try:
            return super().forward(tokens)
        finally:
            self.inside_s += time.thread_time() - start


def fake_model(tokenizer_json: bytes, context: int) -> Model:
    """Return a model over the watched fake, with a real tokenizer."""
    tokenizer = Tokenizer.from_json(tokenizer_json, None, False)
    base = fake.model().manifest
    decoder = msgspec.structs.replace(base.decoder, n_vocab=tokenizer.n_tokens)
    manifest = msgspec.structs.replace(base, decoder=decoder, stops=[])
    options = Options(context=context, threads=1, kv_cache="f32")
    return Model(
        manifest=manifest,
        setup=fake.setup(manifest, options),
        opening=lambda: Watched(FakeRuntime(), decoder, options),
        options=options,
        tokenizer=tokenizer,
        template=None,
    )


def per_token_ms(model: Model, prompt: str, settings: dict[str, Any]) -> float:
    """Return the median over tokens of the milliseconds between two chunks, without the forwards."""
    session: Any = model._desk.session
    costs = []
    with model.stream(prompt, max_tokens=TOKENS, **({"stop": ["no such text", "nor this one"]} | settings)) as stream:
        next(stream)
        inside, start = session.inside_s, time.process_time()
        for chunk in stream:
            now = time.process_time()
            costs.append(1000 * ((now - start) - (session.inside_s - inside)) / len(chunk.token_ids))
            inside, start = session.inside_s, time.process_time()
    return statistics.median(costs)


def main() -> None:
    """Print a line for each setting, with a column for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 4000])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with fake_model(asked.tokenizer.read_bytes(), max(asked.lengths) + 2 * TOKENS) as model:
        vocabulary = model.manifest.decoder.n_vocab
        print(f"vocabulary {vocabulary}: CPU ms of the SDK per token")
        print(f"{'':20}" + "".join(f"{f'at {length}':>12}" for length in asked.lengths))
        rows: dict[str, dict[str, float]] = {}
        for name, settings in SETTINGS.items():
            prompts = {
                length: model.detokenize(model.tokenize("a b c d " * length)[:length]) for length in asked.lengths
            }
            per_token_ms(model, prompts[asked.lengths[0]], settings)  # what is made once
            rows[name] = {str(length): per_token_ms(model, prompts[length], settings) for length in asked.lengths}
            print(f"{name:20}" + "".join(f"{value:12.3f}" for value in rows[name].values()), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"vocabulary": vocabulary, "ms": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
