"""Long contexts: what prefill and decode cost once so many tokens are in the cache, by the type of the KV cache.

    python benchmarks/long.py BUNDLE --variants gguf-q4_k_m onnx-int4_mixed [--depths 2048 8192] [--seconds 300]
        [--caches f16 f32 q8] [--flash] [--llama-bench PATH]

Tokens per CPU second on one thread: ``prefill`` of all tokens up to the depth, ``decode`` of a few after it, and
``kl``: what the 128 tokens after it lost against the first row of that depth, in nats. That is the loss of a cache
where the variants are of f32 and the weights a model's: products in 8 bits make as much of any difference as a cache
does. A cache is filled once, depth after depth, and is left at the depth after which it has taken ``--seconds``.
``--flash`` also runs llama.cpp's flash attention where a session would not.
``--llama-bench`` runs that program on the same payload, one thread and the same caches; its figures are of wall time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import cast
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.files import Bundle, open_bundle
from edgepack.device.hardware import detect
from edgepack.device.limits import kv_caches
from edgepack.runtime import KvCache, Options, Session, find
from edgepack.text.opening import text_side
from edgepack_runtimes.gguf import abi

DECODED, COMPARED = 16, 128
CACHES: tuple[KvCache, ...] = ("f16", "f32", "q8")
Logits = NDArray[np.float32]


def main() -> None:
    """Print a row for each variant, cache and depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variants", nargs="+", required=True)
    parser.add_argument("--depths", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--flash", action="store_true")
    parser.add_argument("--llama-bench", type=Path)
    asked = parser.parse_args()
    bundle = open_bundle(asked.bundle, verify="sizes")
    ids = text(bundle, max(asked.depths) + COMPARED)
    print(f"{'variant':<22}{'KV':>4}{'flash':>6}{'depth':>8}{'prefill':>9}{'decode':>8}{'kl':>10}")
    first: dict[int, Logits] = {}
    for variant in asked.variants:
        offered = caches(bundle, variant)
        for kv_cache in (each for each in asked.caches if each in offered):
            for flash in (False, True) if asked.flash and variant.startswith("gguf") and kv_cache != "q8" else (False,):
                for depth, prefill, decode, logits in fill(bundle, variant, kv_cache, flash, ids, asked):
                    lost = kl(first.setdefault(depth, logits), logits)
                    shown = "yes" if flash or (kv_cache == "q8" and variant.startswith("gguf")) else "no"
                    row = f"{variant:<22}{kv_cache:>4}{shown:>6}{depth:>8}"
                    print(f"{row}{prefill:>9.1f}{decode:>8.1f}{lost:>10.2g}", flush=True)
        if asked.llama_bench and variant.startswith("gguf"):
            for line in beside(asked.llama_bench, bundle.variant_path(variant) / "model.gguf", asked):
                print(line, flush=True)


def text(bundle: Bundle, count: int) -> list[int]:
    """Return so many ids of the pages in ``docs``, which begin again where they are too short."""
    pages = sorted(Path(__file__).parent.parent.joinpath("docs").glob("*.md"))
    tokenizer, _ = text_side(bundle)
    ids = tokenizer.encode("\n".join(page.read_text("utf-8") for page in pages))
    return (ids * (count // len(ids) + 1))[:count]


def caches(bundle: Bundle, variant: str) -> tuple[KvCache, ...]:
    """Return the types of KV cache that a variant can have here."""
    described = bundle.variant(variant)
    return kv_caches(described, find(described.runtime).probe(detect()), bundle.manifest.decoder)


def fill(
    bundle: Bundle, variant: str, kv_cache: KvCache, flash: bool, ids: list[int], asked: argparse.Namespace
) -> Iterator[tuple[int, float, float, Logits]]:
    """Yield each depth with the speed of prefill and of decode, and the logits after the tokens that follow."""
    options = Options(context=max(asked.depths) + COMPARED, threads=1, kv_cache=kv_cache)
    on = patch.object(abi, "FLASH_ATTENTION_DISABLED", abi.FLASH_ATTENTION_ENABLED) if flash else nullcontext()
    with on:
        session = find(bundle.variant(variant).runtime).open(
            bundle.variant_path(variant), bundle.manifest.decoder, options
        )
    try:
        used = 0.0
        for depth in sorted(asked.depths):
            if used < asked.seconds:
                used += spent(session, ids[session.length : depth])
                start = time.process_time()
                for token in ids[depth : depth + DECODED]:
                    session.forward([token])
                decode = DECODED / (time.process_time() - start)
                assert session.rewind(depth) == depth
                yield depth, depth / used, decode, session.forward_all(ids[depth : depth + COMPARED])
                assert session.rewind(depth) == depth
    finally:
        session.close()


def spent(session: Session, ids: list[int]) -> float:
    """Return the CPU seconds of a prefill."""
    start = time.process_time()
    session.forward(ids)
    return time.process_time() - start


def kl(expected: Logits, found: Logits) -> float:
    """Return the mean KL divergence of the next tokens, in nats: both float32 [n, n_vocab]."""

    def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = x - x.max(-1, keepdims=True)
        return cast("NDArray[np.float64]", x - np.log(np.exp(x).sum(-1, keepdims=True)))

    p, q = log_softmax(expected.astype(np.float64)), log_softmax(found.astype(np.float64))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def beside(program: Path, model: Path, asked: argparse.Namespace) -> Iterator[str]:
    """Yield llama-bench's figures in the same columns."""
    types = {"f16": "f16", "f32": "f32", "q8": "q8_0"}
    for kv_cache in asked.caches:
        for flash in (1,) if kv_cache == "q8" else (0, 1) if asked.flash else (0,):
            for depth in asked.depths:
                common = ["-m", str(model), "-t", "1", "-r", "1", "-o", "json", "-fa", str(flash), "-b", "128"]
                common += ["-ub", "128", "-ctk", types[kv_cache], "-ctv", types[kv_cache]]
                speeds = []
                for what in (["-p", str(depth), "-n", "0"], ["-p", "0", "-n", str(DECODED), "-d", str(depth)]):
                    done = subprocess.run([program, *common, *what], capture_output=True, text=True, check=True)
                    speeds.append(float(json.loads(done.stdout)[0]["avg_ts"]))
                row = f"{'llama-bench':<22}{kv_cache:>4}{'yes' if flash else 'no':>6}{depth:>8}"
                yield f"{row}{speeds[0]:>9.1f}{speeds[1]:>8.1f}"


if __name__ == "__main__":
    main()
