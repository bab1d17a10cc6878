"""Tune: measure what a bundle reaches on this device with other settings, and keep the best of each variant.

Each candidate of the plan is measured as the rules would open it, then with every other pair of threads and weight
repacking, since which layout is better depends on the threads; and the best of these with other chunks. What wins meets
the rules' settings again, in turns, and replaces them only where the two never overlap: less is noise. Where the rules'
win, they are measured as often, so that every figure that counts has a spread. What counts is the time to an answer.
At last the fastest of each runtime meets the runtime's other engines.
What is measured, ``edgepack.tuning.trial`` says; where it is kept, ``edgepack.device.tuning``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TypedDict

from edgepack.bundle.files import Bundle
from edgepack.device.hardware import Hardware, detect
from edgepack.device.neighbours import disturbs
from edgepack.device.planning import Candidate, make_plan
from edgepack.device.seconds import Seconds
from edgepack.device.tuning import Tuning, write_tunings
from edgepack.engines import Runtimes, probe_all
from edgepack.errors import EdgepackError, EngineError
from edgepack.runtime import Support
from edgepack.trust.admitting import admit_bundle
from edgepack.tuning import drafts, rivals
from edgepack.tuning.rivals import Rival
from edgepack.tuning.trial import Job, Measurement, run, seconds

MARGIN = 1.03
"""How many times as fast another setting must be to replace one: less may be noise."""

REMATCHES = 2
"""Times that a winner is measured once more, in turns with the rules' settings where it is not these."""

CHUNKS = (64, 128, 256, 512)
_SLOWER = 10.0  # times as long as the first trial may another of the same candidate take
_PATIENCE_S = 60.0


class Setting(TypedDict, total=False):
    """A field of ``Options`` that is varied, with its new value."""

    threads: int
    repack: bool | None
    chunk: int


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly to measure: the runs of a trial as in ``Job``, and how long the first trial of a candidate may
    take. ``chunks`` are tried, as other weights are, for candidates that reach ``share`` of the fastest one's speed."""

    prompt: int
    decode: int
    repeats: int
    least_s: float
    most_s: float
    trial_s: float
    chunks: tuple[int, ...]
    share: float


FULL = Effort(512, 32, repeats=3, least_s=1.0, most_s=10.0, trial_s=900.0, chunks=CHUNKS, share=0.0)
QUICK = Effort(256, 16, repeats=2, least_s=0.3, most_s=2.0, trial_s=300.0, chunks=(64, 256), share=0.5)


@dataclass(frozen=True, slots=True)
class Trial:
    """One line of the search: a setting, and what it reached or why there is nothing to say. ``runs`` are the
    seconds to an answer, one for each time that it was measured; the rates and ``batch_cost`` are medians of these
    times."""

    variant: str
    runtime: str
    device: str | None
    threads: int
    chunk: int
    repack: bool | None
    decode_tps: float | None = None
    prefill_tps: float | None = None
    batch_cost: float | None = None
    runs: tuple[Seconds, ...] = ()
    reason: str | None = None


Measure = Callable[[Job, float], Measurement]
Watch = Callable[[Trial, int, int], None]
_Key = tuple[str, int, int, bool | None]


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What was found. ``winner`` is what the plan takes from now on; ``file`` keeps the tunings, None where the state
    folder could not be written to. ``neighbours`` are the most cores that other programs took during a trial, and
    ``busy`` says that it was so much that the figures are not this machine's. ``undrafted`` says by variant why nothing
    is known of the bundle's draft model; ``rivals`` are the engines that were there and not used."""

    bundle: str
    bundle_id: str
    quick: bool
    trials: tuple[Trial, ...]
    tunings: tuple[Tuning, ...]
    winner: Tuning
    file: str | None
    neighbours: float | None
    busy: bool
    undrafted: Mapping[str, str] = field(default_factory=dict)
    rivals: tuple[Rival, ...] = ()


def tune(
    bundle: Bundle,
    *,
    quick: bool = False,
    runtimes: Runtimes | None = None,
    measure: Measure = run,
    gain: drafts.Gain = drafts.run,
    watch: Watch = lambda trial, done, total: None,
) -> TuneReport:
    """Measure the bundle's variants on this device and keep the best settings of each.

    ``watch`` is told of each trial before it begins, how many are done, and how many there may be. Raises as
    ``edgepack.load``, and ``EngineError`` where nothing could be measured.
    """
    admit_bundle(bundle)
    hardware = detect()
    supports = probe_all(hardware, {each.runtime for each in bundle.manifest.variants}, runtimes)
    plan = make_plan(bundle.manifest, hardware, supports)
    _ = plan.choice  # raises where there is nothing to measure
    search = _Search(bundle, hardware, supports, QUICK if quick else FULL, measure)
    search.run([candidate for candidate in plan.candidates if candidate.eligible], watch)
    effort = search.effort
    tunings, undrafted = drafts.judge(
        bundle,
        hardware,
        supports,
        search.tunings(),
        tokens=2 * effort.decode,
        repeats=effort.repeats,
        timeout_s=effort.trial_s,
        gain=gain,
    )
    winner = make_plan(bundle.manifest, hardware, supports, tunings=tunings).choice.tuning
    if winner is None:
        reasons = "; ".join(f"{trial.variant}: {trial.reason}" for trial in search.trials if trial.reason)
        raise EngineError(f"Nothing of {bundle.manifest.name} could be measured here: {reasons}")
    met = [
        rival
        for job in search.fastest()
        for rival in rivals.meet(job, 1 + REMATCHES, effort.trial_s, runtimes, measure)
    ]
    found = [(name := bundle.variant(each.variant).runtime, supports[name], each) for each in tunings.values()]
    # Whoever takes another engine then loads with what it was measured with.
    found += [(r.runtime, replace(supports[r.runtime], version=r.version), r.tuning) for r in met if r.tuning]
    try:
        file = str(write_tunings(bundle.id, hardware, found))
    except (OSError, RuntimeError):  # a kiosk with a read-only disk; the figures are worth showing all the same
        file = None
    return TuneReport(
        bundle=bundle.manifest.name,
        bundle_id=bundle.id,
        quick=quick,
        trials=tuple(search.trials),
        tunings=tuple(tunings.values()),
        winner=winner,
        file=file,
        neighbours=search.neighbours,
        busy=disturbs(search.neighbours, hardware.threads),
        undrafted=undrafted,
        rivals=tuple(met),
    )


@dataclass(frozen=True, slots=True)
class _Best:
    """What won so far of one candidate, which holds the options; no other of its trials may take longer. ``first`` and
    ``start`` are the rules' settings and what they reached."""

    candidate: Candidate
    measured: Measurement
    limit_s: float
    first: Candidate
    start: Measurement


class _Search:
    """The trials of one bundle on one machine, in their order, and the best of each variant so far."""

    def __init__(
        self, bundle: Bundle, hardware: Hardware, supports: Mapping[str, Support], effort: Effort, measure: Measure
    ) -> None:
        self.trials: list[Trial] = []
        self.neighbours: float | None = None
        self._bundle, self._hardware, self._supports = bundle, hardware, supports
        self.effort, self._measure = effort, measure
        self._best: dict[str, _Best] = {}
        self._measured: dict[_Key, list[Measurement]] = {}

    def run(self, candidates: Sequence[Candidate], watch: Watch) -> None:
        """Try each candidate by rule and with other threads, then vary the rest for those that are fast enough."""
        total = sum(1 + len(self._layouts(each)) + len(self._chunks(each)) for each in candidates)

        def say(trial: Trial) -> None:
            watch(trial, min(len(self.trials), total), total)

        for candidate in candidates:
            self._bundle.check([candidate.variant])
            self._first(candidate, say)
            # Threads that fight for a core with another program are slower by any factor, so they are for everyone.
            self._vary(candidate.variant, self._layouts(candidate), say)
        fastest = min((seconds(best.measured).total for best in self._best.values()), default=0.0)
        for variant, best in list(self._best.items()):
            if self.effort.share * seconds(best.measured).total <= fastest:
                self._vary(variant, self._chunks(best.candidate), say)
        for variant, best in list(self._best.items()):
            self._rematch(variant, best, say)

    def tunings(self) -> dict[str, Tuning]:
        """Return the best that was found of each candidate that could be measured, by variant."""
        return {variant: self._tuning(variant, best) for variant, best in self._best.items()}

    def fastest(self) -> list[Job]:
        """Return how the fastest of each runtime is measured once more."""
        slowest_first = sorted(self._best.values(), key=lambda best: seconds(best.measured).total, reverse=True)
        last = {best.candidate.runtime: best for best in slowest_first}
        return [self._job(best, best.candidate) for best in last.values()]

    def _tuning(self, variant: str, best: _Best) -> Tuning:
        options = best.candidate.options
        # A chunk only concerns prefill: trials that differ in it alone have all measured the same decoding.
        same = [
            each
            for each in self.trials
            if (each.variant, each.threads, each.repack) == (variant, options.threads, options.repack)
        ]
        return Tuning(
            variant=variant,
            threads=options.threads,
            chunk=options.chunk,
            repack=options.repack,
            decode_tps=median(each.decode_tps for each in same if each.decode_tps),
            prefill_tps=median(each.prefill_tps for each in same if each.prefill_tps and each.chunk == options.chunk),
            batch_cost=median(each.batch_cost for each in same if each.batch_cost),
        )

    def _layouts(self, candidate: Candidate) -> list[Setting]:
        """Return the pairs of threads and repacking that the rules do not take."""
        if candidate.device != "cpu":  # it leaves the processor nothing to do but to feed it
            return []
        options, scheme = candidate.options, self._bundle.variant(candidate.variant).quantization.scheme
        chooses = candidate.runtime == "gguf" and scheme != "f32"  # which has no other form
        repacks: list[bool | None] = [None, True, False] if chooses else [None]
        pairs = [(count, repack) for repack in repacks for count in thread_counts(self._hardware)]
        rule = options.threads, options.repack
        return [{"threads": count, "repack": repack} for count, repack in pairs if (count, repack) != rule]

    def _chunks(self, candidate: Candidate) -> list[Setting]:
        options = candidate.options
        return [{"chunk": chunk} for chunk in self.effort.chunks if chunk != options.chunk and chunk <= options.context]

    def _first(self, candidate: Candidate, say: Callable[[Trial], None]) -> None:
        effort, started = self.effort, time.monotonic()
        job = Job(
            str(self._bundle.path),
            candidate,
            effort.prompt,
            effort.decode,
            effort.repeats,
            effort.least_s,
            effort.most_s,
        )
        if measured := self._try(job, effort.trial_s, say):
            limit_s = _PATIENCE_S + _SLOWER * (time.monotonic() - started)
            self._best[candidate.variant] = _Best(candidate, measured, limit_s, candidate, measured)

    def _vary(self, variant: str, settings: Iterable[Setting], say: Callable[[Trial], None]) -> None:
        for setting in settings if variant in self._best else ():
            best = self._best[variant]
            changed = replace(best.candidate, options=replace(best.candidate.options, **setting))
            measured = self._try(self._job(best, changed), best.limit_s, say)
            if measured and faster(measured, best.measured, prefill_only="chunk" in setting):
                self._best[variant] = replace(best, candidate=changed, measured=measured)

    def _rematch(self, variant: str, best: _Best, say: Callable[[Trial], None]) -> None:
        """Measure the winner and the rules' settings in turns, and keep the winner where it was faster each time.

        Where only the chunk differs, only prefill does.
        """
        for _ in range(REMATCHES):
            for candidate in [best.candidate] if best.candidate == best.first else [best.first, best.candidate]:
                self._try(self._job(best, candidate), best.limit_s, say)
        ours, rules = (self._trial(candidate) for candidate in (best.candidate, best.first))
        same = (ours.threads, ours.repack) == (rules.threads, rules.repack)
        ours_s, rules_s = ([run.prefill if same else run.total for run in each.runs] for each in (ours, rules))
        if ours is not rules and (ours.reason or max(ours_s) >= min(rules_s)):
            self._best[variant] = replace(best, candidate=best.first, measured=best.start)

    def _job(self, best: _Best, candidate: Candidate) -> Job:
        """Return how a candidate is measured once more, with the lengths that the first trial found: the rates of
        others could not be compared."""
        lengths = best.measured.prompt, best.measured.decode
        return Job(str(self._bundle.path), candidate, *lengths, self.effort.repeats, self.effort.least_s)

    def _trial(self, candidate: Candidate) -> Trial:
        """Return the line of a candidate's settings, a new one where they were not tried."""
        options = candidate.options
        new = Trial(
            candidate.variant, candidate.runtime, candidate.device, options.threads, options.chunk, options.repack
        )
        return next((each for each in self.trials if _setting(each) == _setting(new)), new)

    def _try(self, job: Job, limit_s: float, say: Callable[[Trial], None]) -> Measurement | None:
        candidate, trial = job.candidate, self._trial(job.candidate)
        say(trial)
        if trial not in self.trials:
            self.trials.append(trial)
        place = self.trials.index(trial)
        try:
            self._check_memory(candidate)
            measured = self._measure(job, limit_s)
        except EdgepackError as error:
            self.trials[place] = replace(trial, reason=error.message)
            return None
        times = self._measured.setdefault(_setting(trial), [])
        times.append(measured)
        self.trials[place] = replace(
            trial,
            decode_tps=median(each.decode_tps for each in times),
            prefill_tps=median(each.prefill_tps for each in times),
            batch_cost=median(each.batch_cost for each in times),
            runs=tuple(seconds(each) for each in times),
        )
        if measured.neighbours is not None:
            self.neighbours = max(self.neighbours or 0.0, measured.neighbours)
        return measured

    def _check_memory(self, candidate: Candidate) -> None:
        """Raise ``EngineError`` for settings that the plan would not take for lack of memory."""
        options = candidate.options
        asked = Tuning(candidate.variant, options.threads, options.chunk, options.repack, 1.0, 1.0, 1.0)
        tunings = {candidate.variant: asked}
        plan = make_plan(self._bundle.manifest, self._hardware, self._supports, tunings=tunings)
        if not any(each.eligible and each.tuning is asked for each in plan.candidates):
            raise EngineError("It does not fit the memory.")


def thread_counts(hardware: Hardware) -> list[int]:
    """Return the counts of threads worth trying: one, half of the physical cores, all of them, and all that are
    usable, as far as a control group grants them."""
    granted = hardware.affinity if hardware.quota is None else min(hardware.affinity, int(hardware.quota))
    cores = hardware.physical_cores
    wanted = {1, cores // 2, cores, hardware.threads, hardware.affinity}
    return sorted(count for count in wanted if 1 <= count <= max(1, granted))


def faster(one: Measurement, other: Measurement, *, prefill_only: bool) -> bool:
    """Say whether one setting answers sooner than another; a chunk only concerns prefill."""
    if prefill_only:
        return one.prefill_tps > other.prefill_tps * MARGIN
    return seconds(one).total * MARGIN < seconds(other).total


def _setting(trial: Trial) -> _Key:
    return trial.variant, trial.threads, trial.chunk, trial.repack
