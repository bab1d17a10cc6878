"""Compare the seconds that a plan predicts with those that a bench takes, for every variant of some bundles.

    python benchmarks/prediction.py BUNDLE... [--repeats 3]

Prints a Markdown table of whole answers, 512 tokens of a prompt and 128 of an answer. Ends with 1 where a prediction is
more than 25 % off. A busy machine, at the timing of the engines or during a run, says nothing about predictions: such
rows are marked, and do not count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepack import open_bundle
from edgepack.bundle.files import Bundle
from edgepack.device.hardware import detect
from edgepack.device.planning import Candidate, make_plan
from edgepack.device.seconds import ANSWER, PROMPT, schemes
from edgepack.engines import probe_all
from edgepack.measuring.bench import Job, bench_apart

LIMIT = 0.25


@dataclass(frozen=True)
class Row:
    """One variant: the prediction, what was taken, both as (prefill, decode) in seconds, and who was disturbed."""

    name: str
    predicted: tuple[float, float]
    taken: tuple[float, float]
    busy: str

    @property
    def off(self) -> float:
        """The prediction of the whole over what was taken, less one."""
        return sum(self.predicted) / sum(self.taken) - 1

    def __str__(self) -> str:
        figures = (f"{a:.2f} | {b:.2f}" for a, b in zip(self.predicted, self.taken, strict=True))
        return f"| {self.name} | {' | '.join(figures)} | {self.off:+.0%} | {self.busy or 'nobody'} |"


def rows(bundle: Bundle, repeats: int) -> Iterator[Row]:
    """Yield a row for every variant that runs here and whose engine knows its speed."""
    hardware = detect()
    timed = schemes(bundle.manifest)
    supports = probe_all(hardware, timed, schemes=timed)
    for candidate in make_plan(bundle.manifest, hardware, supports).candidates:
        speed = supports[candidate.runtime].speed if candidate.eligible else None
        if speed is not None and candidate.seconds is not None:
            yield _row(bundle, candidate, speed.settled, repeats)


def _row(bundle: Bundle, candidate: Candidate, settled: bool, repeats: int) -> Row:
    assert candidate.seconds is not None
    report = bench_apart(Job(str(bundle.path), candidate, None, PROMPT, ANSWER, repeats))
    busy = [what for what, so in (("timing", not settled), ("bench", report.busy)) if so]
    first = report.ttft_s.median
    return Row(
        f"{bundle.manifest.name} {candidate.variant}",
        (candidate.seconds.prefill, candidate.seconds.decode),
        (first, report.answer_s.median - first),
        " and ".join(busy),
    )


def main() -> int:
    """Print the table; 1 where a quiet row is off by more than the limit, 2 where no row was quiet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("| variant | prefill predicted | taken | decode predicted | taken | whole | disturbed |")
    print("|---|---:|---:|---:|---:|---:|---|")
    quiet = []
    for path in arguments.bundles:
        for row in rows(open_bundle(path), arguments.repeats):
            print(row, flush=True)
            if not row.busy:
                quiet.append(row)
    if not quiet:
        print("No row was quiet: nothing is known.", file=sys.stderr)
        return 2
    return int(any(abs(row.off) > LIMIT for row in quiet))


if __name__ == "__main__":
    sys.exit(main())
