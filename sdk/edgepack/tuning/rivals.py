"""Whether another engine of a runtime answers sooner than the one that it takes: the same settings with both, in turns.

Nothing is chosen by it: another engine may round otherwise, and which one is used is the user's to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import msgspec

from edgepack.device.tuning import Tuning
from edgepack.engines import Runtimes, find
from edgepack.errors import EdgepackError
from edgepack.runtime import Engine, Engines
from edgepack.tuning.trial import Job, Measurement, seconds


@dataclass(frozen=True, slots=True)
class Rival:
    """Another engine of a runtime, and what it reaches with the settings that won with the one that is ``used``.

    ``gain`` is how many times as fast it answers, by the medians; ``faster`` says that each of its runs was faster than
    every one of the other's: less is noise. ``tuning`` is what is remembered for its ``version``. Where it could not be
    measured, all but ``reason`` say nothing.
    """

    variant: str
    runtime: str
    engine: str
    version: str | None
    used: str
    gain: float | None = None
    faster: bool = False
    tuning: Tuning | None = None
    reason: str | None = None


def meet(
    job: Job, turns: int, timeout_s: float, runtimes: Runtimes | None, measure: Callable[[Job, float], Measurement]
) -> list[Rival]:
    """Measure a job with each other engine of its runtime that computes on the same device, in turns with the one used.

    Empty for a runtime of a single engine.
    """
    runtime = find(job.candidate.runtime, runtimes)
    known = runtime.engines() if isinstance(runtime, Engines) else ()
    used = next((each.name for each in known if each.used), None)
    others = [each for each in known if not each.used and each.devices[:1] == (job.candidate.device,)]
    return [] if used is None else [_meet(job, used, other, turns, timeout_s, measure) for other in others]


def _meet(
    job: Job, used: str, other: Engine, turns: int, timeout_s: float, measure: Callable[[Job, float], Measurement]
) -> Rival:
    candidate, options = job.candidate, job.candidate.options
    rival = Rival(candidate.variant, candidate.runtime, other.name, other.version, used)
    ours: list[Measurement] = []
    theirs: list[Measurement] = []
    try:
        for _ in range(turns):
            for engine, runs in ((used, ours), (other.name, theirs)):
                runs.append(measure(msgspec.structs.replace(job, engine=engine), timeout_s))
    except EdgepackError as error:
        return replace(rival, reason=error.message)
    before, now = ([seconds(each).total for each in runs] for runs in (ours, theirs))
    tuning = Tuning(
        variant=candidate.variant,
        threads=options.threads,
        chunk=options.chunk,
        repack=options.repack,
        decode_tps=median(each.decode_tps for each in theirs),
        prefill_tps=median(each.prefill_tps for each in theirs),
        batch_cost=median(each.batch_cost for each in theirs),
    )
    return replace(rival, gain=median(before) / median(now), faster=max(now) < min(before), tuning=tuning)
