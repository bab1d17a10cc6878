"""Whether an event loop keeps its beat beside an engine, and how soon a cancel ends a text.

    python benchmarks/heartbeat.py BUNDLE [--backends gguf onnx mlx] [--prompt 1000] [--json heartbeat.json]

A task beats every millisecond; the longest time between two beats is told for the load, the prefill of a prompt of so
many tokens, and the decode. Then a text is cancelled in the middle of its prefill and of its decode: told is the time
from ``cancel`` to the end of the stream, and that the model answers afterwards. A beat that waits for a processor is
late too: run it where little else runs, and compare with the idle line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import edgepack

BEAT_S = 0.001
PIECE = "One day a child asked the model how many apples are in three baskets. "
DECODED = 24
SAMPLES = 5


class Heart:
    """A task that beats, and the longest time between two beats since ``longest_ms`` was last asked for."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._longest = 0.0

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._note()

    def longest_ms(self) -> float:
        """Return the longest gap, and begin anew."""
        self._note()
        longest, self._longest = self._longest, 0.0
        return 1000 * longest

    def _note(self) -> None:
        now = time.perf_counter()
        self._longest = max(self._longest, now - self._last)
        self._last = now


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds: the longest gap in each phase, and the longest of several times from a cancel to the end.

    ``prefill_ms`` is what the whole prefill takes, ``prompt_tokens`` how long it is.
    """

    variant: str
    device: str
    prompt_tokens: int
    prefill_ms: float
    idle_gap_ms: float
    load_gap_ms: float
    prefill_gap_ms: float
    decode_gap_ms: float
    cancel_prefill_ms: float
    cancel_decode_ms: float


@asynccontextmanager
async def beating() -> AsyncIterator[Heart]:
    """Yield a heart that beats."""
    heart = Heart()
    task = asyncio.create_task(heart.beat())
    try:
        yield heart
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def measure(bundle: str, backend: str, length: int) -> Figures:
    """Return the figures of one backend."""
    async with beating() as heart:
        await asyncio.sleep(0.5)
        idle = heart.longest_ms()
        model = await edgepack.aload(bundle, backend, context=length + DECODED + 64)
        load = heart.longest_ms()
        async with model:
            prompts = [prompt_of(model, length, number) for number in range(2 * SAMPLES + 1)]
            heart.longest_ms()
            begun = time.perf_counter()
            async with model.astream(prompts.pop(), max_tokens=DECODED, temperature=2, seed=1) as stream:
                await anext(stream)
                prefill_ms, prefill = 1000 * (time.perf_counter() - begun), heart.longest_ms()
                async for _ in stream:
                    pass
            decode, tokens = heart.longest_ms(), stream.result.usage.prompt_tokens
            in_prefill = [await cancelled(model, prompts.pop(), prefill_ms / 1000 * part / 6) for part in range(1, 6)]
            in_decode = [await cancelled(model, prompts.pop(), None) for _ in range(SAMPLES)]
            await model.agenerate("Once", max_tokens=1)
        return Figures(
            model.variant.id,
            model.setup.device,
            tokens,
            prefill_ms,
            idle,
            load,
            prefill,
            decode,
            max(in_prefill),
            max(in_decode),
        )


async def cancelled(model: edgepack.Model, prompt: str, after_s: float | None) -> float:
    """Return the milliseconds from a cancel, so long after the start or else after the second piece, to the end."""
    async with model.astream(prompt, max_tokens=DECODED, temperature=2, seed=1) as stream:
        reading = asyncio.ensure_future(first_pieces(stream, 1_000_000 if after_s is not None else 2))
        if after_s is None:
            await reading
            reading = asyncio.ensure_future(first_pieces(stream, 1_000_000))
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(after_s)
        begun = time.perf_counter()
        stream.cancel()
        await reading
        return 1000 * (time.perf_counter() - begun)


def first_pieces(stream: edgepack.model.AsyncStream, count: int) -> Awaitable[None]:
    """Read so many pieces of a stream, or what there is."""

    async def read() -> None:
        for _ in range(count):
            if await anext(stream, None) is None:
                return

    return read()


def prompt_of(model: edgepack.Model, length: int, number: int) -> str:
    """Return a text of about so many tokens, which shares no beginning with another number's."""
    return f"{number}. " + PIECE * (length // len(model.tokenize(PIECE)))


def main() -> None:
    """Print a line for each backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--backends", nargs="+", default=["gguf", "onnx", "mlx"])
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    columns = ("prefill", "idle gap", "load gap", "prefill gap", "decode gap", "cancel prefill", "cancel decode")
    print(f"{'ms':14}{'prompt':>8}" + "".join(f"{name:>16}" for name in columns))
    rows = []
    for backend in asked.backends:
        figures = asyncio.run(measure(asked.bundle, backend, asked.prompt))
        rows.append(asdict(figures))
        values = list(rows[-1].values())
        print(
            f"{figures.variant:14}{figures.prompt_tokens:8}" + "".join(f"{each:16.1f}" for each in values[3:]),
            flush=True,
        )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
