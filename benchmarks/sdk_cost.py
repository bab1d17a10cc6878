"""What the SDK itself costs per token: everything but the engine's forward, at several lengths of the text.

    python benchmarks/sdk_cost.py BUNDLE [--backend gguf] [--lengths 100 2000] [--json sdk_cost.json]

The session is wrapped, so that the CPU time of the calling thread inside ``forward`` is known and taken away. A bundle
with a large vocabulary says most: sampling grows with it, nothing should grow with the length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgepack
from edgepack import runtime
from edgepack.decoder import Decoder
from edgepack.hardware import Hardware
from edgepack.runtime import Options, Session, Support

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature 1": {"temperature": 1, "top_p": 1, "seed": 1},
    "top_p 0.9": {"temperature": 1, "top_p": 0.9, "seed": 1},
    "top_k 40": {"temperature": 1, "top_k": 40, "top_p": 1, "seed": 1},
    "min_p 0.05": {"temperature": 1, "min_p": 0.05, "top_p": 1, "seed": 1},
    "all, and a penalty": {"temperature": 1, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "seed": 1},
}
TOKENS = 48


class Watched:
    """A session that adds up the CPU seconds of its thread inside ``forward``."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inside_s = 0.0

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        start = time.thread_time()
        try:
            return self._session.forward(tokens)
        finally:
            self.inside_s += time.thread_time() - start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class WatchedRuntime:
    """A runtime whose last session is watched."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._runtime = runtime.find(name)
        self.session: Watched

    def probe(self, hardware: Hardware) -> Support:
        return self._runtime.probe(hardware)

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Any:
        self.session = Watched(self._runtime.open(variant, decoder, options))
        return self.session


def per_token_ms(model: edgepack.Model, session: Watched, prompt: str, settings: dict[str, Any]) -> float:
    """Return the median over tokens of the milliseconds between two forwards, without the forwards."""
    costs = []
    with model.stream(prompt, max_tokens=TOKENS, stop=["\n\n\n", "###"], **settings) as stream:
        next(stream)
        inside, start = session.inside_s, time.thread_time()
        for _ in stream:
            now = time.thread_time()
            costs.append(1000 * ((now - start) - (session.inside_s - inside)))
            inside, start = session.inside_s, time.thread_time()
    return statistics.median(costs)


def prompt_of(model: edgepack.Model, length: int) -> str:
    """Return a text of about that many tokens."""
    piece = "One day a child asked the model how many apples are in three baskets. "
    return piece * (length // len(model.tokenize(piece)))


def main() -> None:
    """Print a line for each setting, with a column for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--backend", default="gguf")
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 2000])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    watched = WatchedRuntime(asked.backend)
    context = max(asked.lengths) + TOKENS + 16
    with edgepack.load(asked.bundle, asked.backend, context, runtimes={asked.backend: watched}) as model:
        vocabulary = model.manifest.decoder.n_vocab
        print(f"{model.variant.id}, vocabulary {vocabulary}: CPU ms of the SDK per token")
        print(f"{'':20}" + "".join(f"{f'at {length}':>12}" for length in asked.lengths))
        rows: dict[str, dict[str, float]] = {}
        for name, settings in SETTINGS.items():
            rows[name] = {}
            for length in asked.lengths:
                prompt = prompt_of(model, length)
                rows[name][str(length)] = per_token_ms(model, watched.session, prompt, settings)
            print(f"{name:20}" + "".join(f"{value:12.3f}" for value in rows[name].values()), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"vocabulary": vocabulary, "ms": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
