"""A trial: one setting of one candidate, measured in a process of its own, whose crash or hang is only a reason.

Run as ``python -m edgepack.tuning.trial``: a job comes in on standard input, what was measured goes out on standard
output.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from edgepack.bundle.files import open_bundle
from edgepack.device.neighbours import look, taken
from edgepack.device.planning import Candidate
from edgepack.device.seconds import Seconds, Turn, at_rates
from edgepack.device.state import PREFERENCE
from edgepack.engines import Runtimes, find, open_session
from edgepack.measuring.bench import clip, decode_tps, generate, random_tokens
from edgepack.runtime import Session
from edgepack.tuning import apart

BATCH = 4
_TASTE = (16, 3)  # tokens of the prompt and of the answer that tell how long a whole run would take
_ROUNDS = 5


class Job(msgspec.Struct, frozen=True):
    """What to measure: a candidate with the options to open it with, and runs of ``prompt`` and ``decode`` tokens, at
    least ``repeats`` and for at least ``least_s`` seconds, because short runs tell little. Where a single run would
    take more than ``most_s``, it is shortened (None: it is not). ``engine`` is the one that a runtime of several is to
    have (None: the one that it takes)."""

    bundle: str
    candidate: Candidate
    prompt: int
    decode: int
    repeats: int
    least_s: float
    most_s: float | None = None
    engine: str | None = None


class Measurement(msgspec.Struct, frozen=True):
    """Medians in tokens per second, ``batch_cost`` as in ``Tuning``, the tokens of the runs that gave them, and the
    cores that other programs took meanwhile (None: the system does not say)."""

    decode_tps: float
    prefill_tps: float
    batch_cost: float
    prompt: int
    decode: int
    neighbours: float | None = None


def run(job: Job, timeout_s: float) -> Measurement:
    """Measure in a child process. Raises as ``apart.ask``."""
    return apart.ask(__name__, job, Measurement, timeout_s)


def seconds(measured: Measurement) -> Seconds:
    """Return the seconds to an answer at measured rates."""
    return at_rates(measured.prefill_tps, measured.decode_tps, Turn())


def measure(job: Job, runtimes: Runtimes | None = None) -> Measurement:
    """Open the candidate in this process and measure it. Raises as ``edgepack.load``."""
    bundle, options = open_bundle(job.bundle, verify="sizes"), job.candidate.options
    prompt, decode = clip(job.prompt, job.decode, options.context)
    ids = random_tokens(bundle.manifest.tokenizer.rows, prompt)
    session = open_session(bundle, job.candidate, options, find(job.candidate.runtime, runtimes))
    try:
        if job.most_s is not None:
            prompt, decode = shorten(prompt, decode, _taste(session, ids), job.most_s)
        generate(session, ids[:prompt], 2)  # the first run of a length also allocates
        before = look()
        runs = [generate(session, ids[:prompt], decode) for _ in _rounds(job.repeats, job.least_s)]
        batch_cost = _batch_cost(session, ids, max(0, min(prompt, options.context - BATCH)), job.least_s)
        others = taken(before, look())
    finally:
        session.close()
    return Measurement(
        decode_tps=statistics.median(decode_tps(times) for times in runs),
        prefill_tps=statistics.median(prompt / times[0] for times in runs),
        batch_cost=batch_cost,
        prompt=prompt,
        decode=decode,
        neighbours=others,
    )


def shorten(prompt: int, decode: int, taste: tuple[float, float], seconds: float) -> tuple[int, int]:
    """Return both counts, reduced alike where a run would take longer than ``seconds``.

    ``taste`` is the time of one token of the prompt and of one of the answer, in seconds.
    """
    share = min(1.0, seconds / (prompt * taste[0] + decode * taste[1]))
    return max(min(prompt, _TASTE[0]), int(prompt * share)), max(min(decode, _TASTE[1]), int(decode * share))


def _taste(session: Session, ids: Sequence[int]) -> tuple[float, float]:
    ids, count = ids[: _TASTE[0]], _TASTE[1]
    generate(session, ids, 2)  # the first run reads the weights from the disk
    times = generate(session, ids, count)
    return times[0] / len(ids), (times[-1] - times[0]) / (count - 1)


def _rounds(count: int, seconds: float) -> Iterator[None]:
    """Yield at least so many times, and until so many seconds have passed."""
    end = time.perf_counter() + seconds
    while count > 0 or time.perf_counter() < end:
        count -= 1
        yield


def _batch_cost(session: Session, ids: Sequence[int], length: int, least_s: float) -> float:
    """Return the median time of four tokens in one step over that of one token, from ``length`` tokens on."""
    batch = (list(ids) * BATCH)[:BATCH]
    one: list[float] = []
    four: list[float] = []
    for _ in _rounds(_ROUNDS, least_s):
        for times, forward, tokens in ((one, session.forward, batch[:1]), (four, session.forward_all, batch)):
            if (kept := session.rewind(length)) < length:
                session.forward(ids[kept:length])
            times.append(_time(forward, tokens))
    return statistics.median(four) / statistics.median(one)


def _time(forward: Callable[[Sequence[int]], object], tokens: Sequence[int]) -> float:
    started = time.perf_counter()
    forward(tokens)
    return time.perf_counter() - started


def _alone(job: Job) -> Measurement:
    """Measure in a process that has no other job, and so may have an engine of the job's own."""
    if job.engine is not None:
        os.environ[PREFERENCE + job.candidate.runtime.upper()] = job.engine
    return measure(job)


if __name__ == "__main__":
    apart.answer(Job, _alone)
