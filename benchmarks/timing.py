"""What the timing of engines makes of a program that is busy for a moment.

    python benchmarks/timing.py [--runtimes gguf onnx] [--busy 0 1] [--runs 5]

Times each engine's products as a plan does the first time, again and again. With ``--busy S``, a program computes for S
seconds meanwhile, from a random moment on. Of each run: how many measurements its rounds took, how many of these were
disturbed, and whether the result is certain. ``off`` is how far the worst rate of a type is from the median of the
certain results. The pairs are of quiet rounds: by how much the two least times of a measurement differ.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from edgepack import runtime
from edgepack.device.engine import Speed
from edgepack.device.hardware import detect
from edgepack_runtimes import rounds
from edgepack_runtimes.rounds import Taken

SCHEMES = {"gguf": ("q4_k_m", "q8_0"), "onnx": ("int4_mixed",)}
BURN = "import time\nend = time.perf_counter() + {}\nwhile time.perf_counter() < end: pass"
WITHIN_S = 2.0
LIMIT_S = 6.0


@contextmanager
def busy(seconds: float) -> Iterator[None]:
    """Let a program compute for so many seconds meanwhile, from a random moment on."""
    if not seconds:
        yield
        return
    command = f"import time\ntime.sleep({random.uniform(0, WITHIN_S)})\n{BURN.format(seconds)}"
    with subprocess.Popen([sys.executable, "-c", command]) as child:
        yield
        child.kill()


def compare(name: str, busy_s: Sequence[float], runs: int) -> None:
    """Print a table of one engine's timings, and how far quiet rounds lie apart."""
    engine, hardware = runtime.find(name), detect()
    assert isinstance(engine, runtime.Timed)
    engine.speed(hardware, SCHEMES[name], 0.0)  # loads the engine
    heard: list[Sequence[Taken]] = []
    best = rounds.best

    def listen(taken: Sequence[Taken]) -> tuple[float, ...]:
        heard.append(taken)
        return best(taken)

    rounds.best = listen
    found = []
    for seconds in busy_s:
        for _ in range(runs):
            heard.clear()
            started = time.perf_counter()
            with busy(seconds):
                speed = engine.speed(hardware, SCHEMES[name], LIMIT_S)
            took = time.perf_counter() - started
            assert speed is not None
            found.append((seconds, took, speed, tuple(heard)))
    rounds.best = best
    sure = [_rates(speed) for *_, speed, _ in found if speed.settled] or [_rates(speed) for *_, speed, _ in found]
    usual = [median(rates) for rates in zip(*sure, strict=True)]
    print(f"\n{name} {' '.join(SCHEMES[name])}, {hardware.threads} threads\n")
    print("| busy, s | took, s | measurements | disturbed | certain | off |\n|---:|---:|---:|---:|---|---:|")
    for seconds, took, speed, each in found:
        all_rounds = [one for taken in each for one in taken]
        off = max((one / other - 1 for one, other in zip(_rates(speed), usual, strict=True)), key=abs)
        disturbed = sum(not one.quiet for one in all_rounds)
        certain = "yes" if speed.settled else "no"
        print(f"| {seconds:g} | {took:.1f} | {len(all_rounds)} | {disturbed} | {certain} | {off:+.0%} |")
    apart = sorted(one for *_, each in found for taken in each for one in _apart(taken))
    if apart:
        print(f"\nQuiet pairs: {len(apart)}, apart by {median(apart):.1%} in the median, {apart[-1]:.1%} at most")


def _rates(speed: Speed) -> list[float]:
    """Return what products with a type's weights take; attention is the difference of two times."""
    return [
        seconds for name, rate in speed.rates.items() if name != "attention" for seconds in (rate.prefill, rate.decode)
    ]


def _apart(taken: Sequence[Taken]) -> Iterator[float]:
    quiet = [each.seconds for each in taken if each.quiet]
    if len(quiet) > 1:
        for times in zip(*quiet, strict=True):
            least, second, *_ = sorted(times)
            yield second / least - 1


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--busy", nargs="+", type=float, default=[0.0, 1.0], metavar="S")
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    for name in asked.runtimes:
        compare(name, asked.busy, asked.runs)


if __name__ == "__main__":
    main()
