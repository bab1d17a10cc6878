"""Bench: how fast a bundle answers on this machine, and how close that is to what its memory allows.

The measuring is at the end of the module; everything before it is arithmetic on times, in seconds. The engine's seam
is what is timed: a prompt of seeded random tokens, then one greedy token after the other; a stop token does not stop.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from edgepack.bundle.files import Bundle, open_bundle
from edgepack.device.memory import kv_bytes
from edgepack.device.neighbours import disturbs, look, taken
from edgepack.device.planning import Candidate
from edgepack.engines import Runtimes, find, open_session, with_threads
from edgepack.errors import ContextTooLargeError, EngineError, UsageError
from edgepack.isolation import process, wire
from edgepack.measuring.bandwidth import read_bandwidth
from edgepack.runtime import Options, Session
from edgepack.trust.admitting import admit_bundle

WARM_UP = 1
REPEATS = 5
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeated measurements and their standard deviation (0 for a single one)."""

    median: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.median(values), statistics.stdev(values) if len(values) > 1 else 0.0)


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What one variant reached. Times end in ``_s`` or ``_ms``, rates are tokens per second, the rest is bytes.
    ``engine`` is its version, ``package`` the distribution that it came in with that one's.

    ``decode_tps`` is (n - 1) / (t_last - t_first) over the n generated tokens. ``bytes_per_token`` is what one
    decoding step reads: all weights, and the KV cache at the middle of the answer; where the embedding is not tied to
    the head it is an upper bound. ``roofline`` is the fraction of ``bandwidth`` (bytes per second) that
    this makes; both are None where other programs left no quiet moment for it. ``peak_rss`` is the process's, before
    the bandwidth was measured. ``answer_s`` is the time of a whole run. ``neighbours`` are the cores that other
    programs took meanwhile on average (None: the system does not say), and ``busy`` says whether that is so much that
    the figures are not this machine's.
    """

    bundle: str
    variant: str
    runtime: str
    engine: str | None
    device: str | None
    options: Options
    prompt_tokens: int
    decode_tokens: int
    repeats: int
    load_s: float
    ttft_s: Spread
    answer_s: Spread
    prefill_tps: Spread
    decode_tps: Spread
    inter_token_p50_ms: Spread
    inter_token_p95_ms: Spread
    peak_rss: int
    bandwidth: float | None
    bytes_per_token: int
    roofline: float | None
    neighbours: float | None
    busy: bool
    package: str | None = None


def decode_tps(times: Sequence[float]) -> float:
    """Return tokens per second between the first and the last of the times at which tokens were there."""
    return (len(times) - 1) / (times[-1] - times[0])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of at least one value, linear between the two nearest ranks."""
    ranked = sorted(values)
    place = (len(ranked) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)


def gaps_ms(times: Sequence[float]) -> list[float]:
    """Return the milliseconds between each token and the next."""
    return [(after - before) * 1000 for before, after in pairwise(times)]


def clip(prompt_tokens: int, decode_tokens: int, context: int) -> tuple[int, int]:
    """Return the two counts, the prompt's shortened first, so that both fit the context.

    Raises ``UsageError`` for a count that measures nothing, ``ContextTooLargeError`` where not even one prompt token
    and two generated ones fit.
    """
    if prompt_tokens < 1 or decode_tokens < 2:
        raise UsageError("A bench needs a prompt of at least 1 token and an answer of at least 2.")
    if context < 3:
        raise ContextTooLargeError(
            f"A context of {context} is too short for a bench.", hint="Give it at least 3 tokens."
        )
    decode = min(decode_tokens, context - 1)
    return min(prompt_tokens, context - decode), decode


def bench(
    bundle: Bundle,
    candidate: Candidate,
    *,
    threads: int | None = None,
    prompt_tokens: int = 128,
    decode_tokens: int = 64,
    repeats: int = REPEATS,
    runtimes: Runtimes | None = None,
    progress: Callable[[], None] | None = None,
) -> BenchReport:
    """Load a candidate of a plan and measure it: one warm-up, then ``repeats`` runs.

    ``progress`` is called after each of the ``WARM_UP + repeats`` runs. Raises as ``edgepack.load`` and ``clip``.
    """
    if repeats < 1:
        raise UsageError(f"repeats cannot be {repeats}.", hint="It is at least 1.")
    prompt_tokens, decode_tokens = clip(prompt_tokens, decode_tokens, candidate.options.context)
    decoder = bundle.manifest.decoder
    started = time.perf_counter()
    admit_bundle(bundle)
    bundle.check([candidate.variant])
    options = with_threads(candidate.options, threads)
    session = open_session(bundle, candidate, options, find(candidate.runtime, runtimes))
    load_s = time.perf_counter() - started
    try:
        prompt = random_tokens(bundle.manifest.tokenizer.rows, prompt_tokens)
        runs = []
        before = look()
        for repeat in range(WARM_UP + repeats):
            times = generate(session, prompt, decode_tokens)
            if repeat >= WARM_UP:
                runs.append(times)
            if progress is not None:
                progress()
        others = taken(before, look())
    finally:
        session.close()
    rss = peak_rss()
    bandwidth = read_bandwidth(options.threads)
    middle = prompt_tokens + decode_tokens // 2
    read = candidate.memory.weights + kv_bytes(decoder, candidate.runtime, options.kv_cache, middle)
    tps = Spread.of([decode_tps(times) for times in runs])
    return BenchReport(
        bundle=bundle.id,
        variant=candidate.variant,
        runtime=candidate.runtime,
        engine=candidate.engine,
        device=candidate.device,
        options=options,
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        repeats=repeats,
        load_s=load_s,
        ttft_s=Spread.of([times[0] for times in runs]),
        answer_s=Spread.of([times[-1] for times in runs]),
        prefill_tps=Spread.of([prompt_tokens / times[0] for times in runs]),
        decode_tps=tps,
        inter_token_p50_ms=Spread.of([percentile(gaps_ms(times), 50) for times in runs]),
        inter_token_p95_ms=Spread.of([percentile(gaps_ms(times), 95) for times in runs]),
        peak_rss=rss,
        bandwidth=bandwidth,
        bytes_per_token=read,
        roofline=tps.median * read / bandwidth if bandwidth else None,
        neighbours=others,
        busy=disturbs(others, options.threads),
        package=candidate.package,
    )


class Job(msgspec.Struct, frozen=True):
    """Arguments of ``bench``, for a process of its own."""

    bundle: str
    candidate: Candidate
    threads: int | None
    prompt_tokens: int
    decode_tokens: int
    repeats: int


class _Answer(msgspec.Struct, frozen=True):
    report: BenchReport | None = None
    failure: wire.Failure | None = None


def bench_apart(job: Job) -> BenchReport:
    """Measure in a child process, whose crash or hang is an ``EngineError``. Raises as ``bench`` otherwise."""
    if not process.can_start():
        return _run(job)
    what = f"The bench of {job.candidate.variant}"
    try:
        output = process.run(what, __name__, given=msgspec.json.encode(job), timeout_s=TIMEOUT_S)
        answer = msgspec.json.decode(output, type=_Answer)
    except EngineError:  # a timeout is an OSError too
        raise
    except (OSError, msgspec.DecodeError) as error:
        raise EngineError(f"{what} could not be done: {error}.") from error
    if answer.failure is not None:
        raise wire.error(answer.failure)
    assert answer.report is not None  # a child without a failure has one
    return answer.report


def main() -> None:
    """Measure the job on standard input and print the answer as JSON."""
    output = process.answering()
    try:
        answer = _Answer(_run(msgspec.json.decode(sys.stdin.buffer.read(), type=Job)))
    except Exception as error:
        answer = _Answer(failure=wire.failure(error))
    output.write(msgspec.json.encode(answer))
    output.close()


def _run(job: Job) -> BenchReport:
    return bench(
        open_bundle(job.bundle, verify="sizes"),
        job.candidate,
        threads=job.threads,
        prompt_tokens=job.prompt_tokens,
        decode_tokens=job.decode_tokens,
        repeats=job.repeats,
    )


# Measuring


def random_tokens(rows: int, count: int, seed: int = 0) -> list[int]:
    """Return ``count`` token ids below ``rows``, the same for the same seed."""
    import numpy as np

    return [int(token) for token in np.random.default_rng(seed).integers(0, rows, count)]


def generate(session: Session, prompt: Sequence[int], count: int) -> list[float]:
    """Run the prompt from an empty cache and choose ``count`` tokens greedily.

    Return when each was there, in seconds since the start.
    """
    session.rewind(0)
    times: list[float] = []
    tokens = list(prompt)
    started = time.perf_counter()
    for _ in range(count):
        tokens = [int(session.forward(tokens).argmax())]
        times.append(time.perf_counter() - started)
    return times


def peak_rss() -> int:
    """Return the most bytes that this process ever had in memory, file-backed pages included; 0 where the system tells
    that in another way, as Windows does. On Linux that is VmHWM (proc(5)): ``ru_maxrss`` begins with what the process
    had that started it."""
    if sys.platform == "linux":
        with suppress(OSError, StopIteration), open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
