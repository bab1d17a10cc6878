"""What a step of several tokens costs an engine, in steps of one: whether guessing tokens can pay there.

    python benchmarks/steps.py BUNDLE --variants gguf-q4_k_m onnx-int4_mixed [--cached 256] [--rounds 5]

CPU time on one thread, medians of interleaved rounds, with the logits after each token of the step, and so many tokens
in the cache. ``gain`` is what the longest step would save if every guess came true.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

from edgepack.bundle.files import Bundle, open_bundle
from edgepack.device.hardware import detect
from edgepack.device.limits import default_kv_cache
from edgepack.runtime import Options, Session, find

SIZES = (1, 2, 4, 7, 8, 16, 17, 32)


def costs(session: Session, cached: int, rounds: int) -> dict[int, float]:
    """Return the median CPU seconds of a step of each size, from ``cached`` tokens on."""
    session.forward(list(range(cached)))
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(rounds + 1):
        for size in SIZES:
            session.rewind(cached)
            start = time.process_time()
            session.forward_all(list(range(size)))
            seconds[size].append(time.process_time() - start)
    return {size: median(times[1:]) for size, times in seconds.items()}  # the first allocates


def measure(bundle: Bundle, variant: str, cached: int, rounds: int) -> dict[int, float]:
    """Return the costs on the engine of a variant."""
    described = bundle.variant(variant)
    runtime = find(described.runtime)
    kv_cache = default_kv_cache(described.quantization.scheme, runtime.probe(detect()).kv_caches)
    options = Options(context=cached + 2 * SIZES[-1], threads=1, kv_cache=kv_cache)
    session = runtime.open(bundle.variant_path(variant), bundle.manifest.decoder, options)
    try:
        return costs(session, cached, rounds)
    finally:
        session.close()


def main() -> None:
    """Print a row for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--variants", nargs="+", required=True)
    parser.add_argument("--cached", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    bundle = open_bundle(asked.bundle, verify="sizes")
    print(f"{'variant':<16}" + "".join(f"{size:>7}" for size in SIZES[1:]) + f"{'gain':>7}")
    for variant in asked.variants:
        found = measure(bundle, variant, asked.cached, asked.rounds)
        row = "".join(f"{found[size] / found[1]:7.1f}" for size in SIZES[1:])
        print(f"{variant:<16}{row}{SIZES[-1] * found[1] / found[SIZES[-1]]:7.1f}", flush=True)


if __name__ == "__main__":
    main()
