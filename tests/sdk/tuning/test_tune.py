"""Tuning: the search on invented machines, trials in real child processes, and what a device remembers of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import small_bundle

import edgepack
from edgepack import FakeRuntime
from edgepack.bundle.files import Bundle, open_bundle
from edgepack.cli import main
from edgepack.cli.tune import show
from edgepack.decoding.lookup import PAYS
from edgepack.device.hardware import Hardware, detect, most_threads
from edgepack.device.tuning import Tuning, read_tunings, write_tunings
from edgepack.errors import EngineCrashedError, EngineError, EngineMissingError, EngineTimeoutError
from edgepack.loading import plan
from edgepack.runtime import Engine, Options, Support
from edgepack.text.tokenizer import Tokenizer
from edgepack.tuning import drafts
from edgepack.tuning.trial import Job, Measurement, measure, run, shorten
from edgepack.tuning.tune import REMATCHES, Trial, TuneReport, faster, thread_counts, tune
from edgepack_packager.build import Built

CPU = Support(("cpu",), version="1.2", kv_caches=("f16", "f32"))
MACHINE = Hardware("linux", "x86_64", 4, 8, None, 16 << 30, 8 << 30, processor="A CPU")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))


def tuning(variant: str = "fake-q4", **changes: Any) -> Tuning:
    plain = {"threads": 1, "chunk": 64, "repack": None, "decode_tps": 9.5, "prefill_tps": 90.0, "batch_cost": 1.5}
    return Tuning(variant=variant, **(plain | changes))


# What a device remembers


def remembered(hardware: Hardware = MACHINE, **supports: Support) -> dict[str, Tuning]:
    return read_tunings("b" * 64, hardware, supports or {"fake": CPU})


@pytest.fixture
def file() -> Path:
    return write_tunings("b" * 64, MACHINE, [("fake", CPU, tuning()), ("fake", CPU, tuning("fake-q8"))])


def test_tunings_are_read_back(file: Path) -> None:
    assert remembered() == {"fake-q4": tuning(), "fake-q8": tuning("fake-q8")}
    assert list(file.parent.iterdir()) == [file]


def test_free_memory_and_other_engines_change_nothing(file: Path) -> None:
    assert remembered(replace(MACHINE, memory_available=1 << 20))
    assert remembered(replace(MACHINE, memory_total=MACHINE.memory_total - (1 << 20)))
    assert remembered(other=CPU, fake=CPU)


@pytest.mark.parametrize(
    "changes",
    [
        {"processor": "Another CPU"},
        {"physical_cores": 2},
        {"affinity": 4},
        {"quota": 2.0},
        {"accelerators": ("cuda",)},
        {"gpus": ("A GPU",)},
        {"memory_total": 4 << 30},
        {"machine": "arm64"},
    ],
)
def test_another_device_remembers_nothing(file: Path, changes: dict[str, Any]) -> None:
    assert remembered(replace(MACHINE, **changes)) == {}


@pytest.mark.parametrize(
    "support", [replace(CPU, version="1.3"), replace(CPU, devices=("cuda", "cpu")), Support((), reason="gone")]
)
def test_another_engine_invalidates_its_own_tunings(file: Path, support: Support) -> None:
    assert remembered(fake=support) == {}


def test_another_bundle_has_tunings_of_its_own(file: Path) -> None:
    assert read_tunings("c" * 64, MACHINE, {"fake": CPU}) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\udcff",
        "[" * 100_000,
        '{"fake": 5}',
        '{"fake": [{"engine": "1.2", "device": "cpu", "tuning": {}}]}',
        '{"fake": [{"engine": "1.2", "device": "cpu", "tuning": {"variant": "fake-q4", "threads": 0, "chunk": 64, '
        '"repack": null, "decode_tps": 9.5, "prefill_tps": 90.0, "batch_cost": 1.5}}]}',
        '{"fake": [{"engine": "1.2", "device": "cpu", "tuning": {"variant": "fake-q4", "threads": 1, "chunk": 64, '
        '"repack": null, "decode_tps": -1.0, "prefill_tps": 90.0, "batch_cost": 1.5}}]}',
    ],
)
def test_a_damaged_file_is_no_tuning(file: Path, text: str) -> None:
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert remembered() == {}


def test_a_count_of_threads_that_no_machine_has_is_no_tuning(file: Path) -> None:
    write_tunings("b" * 64, MACHINE, [("fake", CPU, tuning(threads=most_threads() + 1))])
    assert remembered() == {}


def test_a_pipe_in_place_of_the_file_is_not_waited_for(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)
    assert remembered() == {}
    file.unlink()


def test_a_user_without_a_home_has_no_tunings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEPACK_STATE")
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert remembered() == {}


# Loading


def test_a_tuned_device_loads_with_its_settings_unless_told_otherwise(tmp_path: Path) -> None:
    bundle = open_bundle(small_bundle.write(tmp_path / "small"))
    runtimes = {"fake": FakeRuntime()}
    write_tunings(bundle.id, detect(), [("fake", FakeRuntime().probe(detect()), tuning(threads=7, chunk=32))])
    with edgepack.load(bundle, runtimes=runtimes) as model:
        assert (model.setup.threads, model.setup.chunk) == (7, 32)
    with edgepack.load(bundle, threads=2, runtimes=runtimes) as model:
        assert (model.setup.threads, model.setup.chunk) == (2, 32)


@pytest.mark.parametrize(("cost", "pays"), [(PAYS - 0.1, True), (PAYS, False)])
def test_guesses_are_made_unasked_where_a_batch_is_cheap(tmp_path: Path, cost: float, pays: bool) -> None:
    bundle = open_bundle(small_bundle.write(tmp_path / "small"))
    fake = FakeRuntime(Tokenizer.from_json(small_bundle.tokenizer_json(), None, False).encode("ab"))
    write_tunings(bundle.id, detect(), [("fake", fake.probe(detect()), tuning(batch_cost=cost))])
    with edgepack.load(bundle, runtimes={"fake": fake}) as model:
        for asked, guesses in ((None, pays), (True, True), (False, False)):
            result = model.generate("abababab", max_tokens=6, prompt_lookup=asked)
            assert (result.usage.drafted_tokens > 0, result.repro.prompt_lookup) == (guesses, guesses)


def test_an_engine_that_runs_elsewhere_than_planned_is_no_substitute(tmp_path: Path) -> None:
    closed = []

    class Boastful(FakeRuntime):
        def probe(self, hardware: Hardware) -> Support:
            return replace(super().probe(hardware), devices=("cuda", "cpu"))

        def open(self, variant: Path, decoder: Any, options: Options) -> Any:
            session = super().open(variant, decoder, options)
            close = session.close
            session.close = lambda: (closed.append(session), close())[1]  # type: ignore[method-assign,func-returns-value]
            return session

    folder = small_bundle.write(tmp_path / "small")
    with pytest.raises(EngineError, match="fake-q4 was to run on cuda, and fake put it on cpu") as caught:
        edgepack.load(folder, runtimes={"fake": Boastful()})
    assert caught.value.hint == "See what this machine offers: edgepack doctor"
    assert len(closed) == 1


def test_strict_reaches_the_plan(tmp_path: Path) -> None:
    folder = small_bundle.write(tmp_path / "two", [small_bundle.variant("gguf-q4"), small_bundle.variant("fake-q4")])
    runtimes = {"fake": FakeRuntime()}
    edgepack.load(folder, runtimes=runtimes).close()
    with pytest.raises(EngineMissingError, match="fake-q4 would be a substitute for gguf-q4"):
        edgepack.load(folder, strict=True, runtimes=runtimes)
    with pytest.raises(EngineMissingError):
        _ = plan(folder, strict=True, runtimes=runtimes).choice


# The search, where a function of the job stands in for the engine


class Machine:
    """What an invented machine reaches, and the jobs that it was given."""

    def __init__(self, decode: Callable[[Job], float] = lambda job: 10.0, **prefill: float) -> None:
        self.decode, self.prefill = decode, prefill
        self.jobs: list[Job] = []

    def __call__(self, job: Job, timeout_s: float) -> Measurement:
        self.jobs.append(job)
        options = job.candidate.options
        prefill = self.prefill.get(f"chunk{options.chunk}", 100.0)
        return Measurement(self.decode(job), prefill, 1.5, min(job.prompt, 200), min(job.decode, 20))


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr("edgepack.tuning.tune.detect", lambda: MACHINE)
    variants = [small_bundle.variant("gguf-q4"), small_bundle.variant("fake-q4")]
    return open_bundle(small_bundle.write(tmp_path / "tuned", variants))


def searched(bundle: Bundle, machine: Callable[[Job, float], Measurement], **options: Any) -> Any:
    class Gguf(FakeRuntime):
        name = "gguf"

    return tune(bundle, runtimes={"gguf": Gguf(), "fake": FakeRuntime()}, measure=machine, **options)


def test_the_best_threads_weights_and_chunk_are_found_and_remembered(bundle: Bundle) -> None:
    def decode(job: Job) -> float:
        options = job.candidate.options
        # The optimum of one setting does not show before that of another is taken.
        gain = 1.5 if options.repack and options.threads == 2 else 1.0
        return gain * {1: 5.0, 2: 20.0, 4: 10.0, 8: 1.0}[options.threads]

    report = searched(bundle, Machine(decode, chunk64=90.0, chunk256=150.0, chunk512=140.0))
    best = {each.variant: each for each in report.tunings}
    assert best["gguf-q4"] == Tuning("gguf-q4", 2, 256, True, 30.0, 150.0, 1.5)
    assert best["fake-q4"] == Tuning("fake-q4", 2, 256, None, 20.0, 150.0, 1.5)
    assert report.winner == best["gguf-q4"]
    assert Path(report.file).is_file()
    supports = {name: FakeRuntime().probe(MACHINE) for name in ("gguf", "fake")}
    assert read_tunings(bundle.id, MACHINE, supports) == best


def test_threads_and_weights_are_tried_together_and_nothing_twice(bundle: Bundle) -> None:
    machine = Machine()
    report = searched(bundle, machine)
    tried = [(each.threads, each.repack, each.chunk) for each in report.trials if each.variant == "gguf-q4"]
    assert tried == [
        (4, None, 128), (1, None, 128), (2, None, 128), (8, None, 128),
        (1, True, 128), (2, True, 128), (4, True, 128), (8, True, 128),
        (1, False, 128), (2, False, 128), (4, False, 128), (8, False, 128),
        (4, None, 64), (4, None, 256), (4, None, 512),
    ]  # fmt: skip
    assert all(each.repack is None for each in report.trials if each.variant == "fake-q4")


def test_a_chunk_is_judged_by_prefill_alone(bundle: Bundle) -> None:
    def decode(job: Job) -> float:
        return {64: 14.0, 128: 10.0, 256: 8.0, 512: 12.0}[job.candidate.options.chunk]

    report = searched(bundle, Machine(decode, chunk64=90.0, chunk256=150.0))
    assert {each.chunk for each in report.tunings} == {256}
    assert {each.decode_tps for each in report.tunings if each.variant == "fake-q4"} == {11.0}  # the median of the four


def test_noise_replaces_nothing(bundle: Bundle) -> None:
    report = searched(bundle, Machine(lambda job: 10.2 if job.candidate.options.threads == 1 else 10.0, chunk512=102.0))
    assert {(each.threads, each.chunk, each.repack) for each in report.tunings} == {(4, 128, None)}


def test_all_trials_of_a_candidate_run_what_its_first_one_could(bundle: Bundle) -> None:
    machine = Machine()
    searched(bundle, machine)
    first, *others = [job for job in machine.jobs if job.candidate.variant == "gguf-q4"]
    assert (first.prompt, first.decode, first.most_s) == (512, 32, 10.0)
    assert {(job.prompt, job.decode, job.most_s) for job in others} == {(200, 20, None)}


def test_a_setting_that_fails_is_a_line_with_its_reason(bundle: Bundle) -> None:
    def decode(job: Job) -> float:
        if job.candidate.options.threads == 8:
            raise EngineCrashedError("Its process was ended by SIGSEGV.")
        if job.candidate.variant == "fake-q4":
            raise EngineTimeoutError("Its process did not end within 9 s.")
        return 10.0

    report = searched(bundle, Machine(decode))
    failed = {(each.variant, each.threads): each.reason for each in report.trials if each.reason}
    assert failed == {
        ("gguf-q4", 8): "Its process was ended by SIGSEGV.",
        ("fake-q4", 4): "Its process did not end within 9 s.",
    }
    assert [each.variant for each in report.tunings] == ["gguf-q4"]


def test_where_everything_fails_every_reason_is_named(bundle: Bundle) -> None:
    def fail(job: Job) -> float:
        raise EngineCrashedError(f"The engine of {job.candidate.variant} crashed.")

    with pytest.raises(EngineError, match=r"gguf-q4: The engine of gguf-q4 crashed.*fake-q4: The engine of fake-q4"):
        searched(bundle, Machine(fail))
    assert not Path(edgepack.device.state.state_folder(), "tuned").exists()


def test_quick_varies_only_what_is_fast_but_the_threads_of_all(bundle: Bundle) -> None:
    def decode(job: Job) -> float:
        return 100.0 if job.candidate.variant == "fake-q4" or job.candidate.options.threads == 2 else 10.0

    slow = Machine(lambda job: 100.0 if job.candidate.variant == "fake-q4" else 10.0)
    report = searched(bundle, slow, quick=True)
    assert {each.chunk for each in report.trials if each.variant == "gguf-q4"} == {128}
    assert {each.threads for each in report.trials if each.variant == "gguf-q4"} == {1, 2, 4, 8}
    assert {each.chunk for each in report.trials if each.variant == "fake-q4"} == {64, 128, 256}
    found_out = searched(bundle, Machine(decode), quick=True)
    assert {each.chunk for each in found_out.trials if each.variant == "gguf-q4"} == {64, 128, 256}


def test_a_chunk_that_does_not_fit_the_memory_is_not_measured(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = plan(bundle, backend="fake", runtimes={"fake": FakeRuntime()}).choice.memory.total
    monkeypatch.setattr("edgepack.tuning.tune.detect", lambda: replace(MACHINE, memory_available=needed + 1000))
    machine = Machine()
    report = searched(bundle, machine)
    assert {each.chunk for each in report.trials if each.reason == "It does not fit the memory."} == {256, 512}
    assert {job.candidate.options.chunk for job in machine.jobs} == {64, 128}


def test_an_accelerator_is_not_tried_with_other_threads(bundle: Bundle) -> None:
    class Cuda(FakeRuntime):
        def probe(self, hardware: Hardware) -> Support:
            return replace(super().probe(hardware), devices=("cuda", "cpu"))

    report = tune(bundle, runtimes={"gguf": Cuda(), "fake": Cuda()}, measure=Machine())
    assert {(each.threads, each.repack) for each in report.trials} == {(4, None)}


def test_the_progress_knows_where_it_is(bundle: Bundle) -> None:
    seen: list[tuple[Trial, int, int]] = []
    report = searched(bundle, Machine(), watch=lambda *step: seen.append(step))
    count = len(report.trials)
    again = REMATCHES * len(report.tunings)  # of those that won, when all the others are done
    assert [done for _, done, _ in seen] == [*range(count), *[count] * again]
    assert {total for _, _, total in seen} == {count}


def test_a_state_folder_that_cannot_be_written_keeps_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_STATE", "/dev/null/state")
    report = searched(bundle, Machine())
    assert report.file is None
    assert report.winner.variant == "gguf-q4"


@pytest.mark.parametrize(
    ("cores", "affinity", "quota", "counts"),
    [
        (4, 8, None, [1, 2, 4, 8]),
        (4, 8, 3.5, [1, 2, 3]),
        (2, 2, None, [1, 2]),
        (1, 1, 0.5, [1]),
        (8, 8, None, [1, 4, 8]),
    ],
)
def test_counts_of_threads_worth_trying(cores: int, affinity: int, quota: float | None, counts: list[int]) -> None:
    assert thread_counts(replace(MACHINE, physical_cores=cores, affinity=affinity, quota=quota)) == counts


@pytest.mark.parametrize(
    ("one", "other", "prefill_only", "better"),
    [
        ((11.0, 100.0), (10.0, 100.0), False, True),
        ((10.0, 50.0), (10.04, 20.0), False, True),  # more than twice the prefill, for a hair of decoding
        ((9.0, 900.0), (10.0, 100.0), False, True),
        ((9.0, 100.0), (10.0, 100.0), False, False),
        ((10.1, 101.0), (10.0, 100.0), False, False),
        ((1.0, 110.0), (10.0, 100.0), True, True),
        ((99.0, 90.0), (10.0, 100.0), True, False),
    ],
)
def test_the_time_to_an_answer_counts_and_of_a_chunk_prefill(
    one: tuple[float, float], other: tuple[float, float], prefill_only: bool, better: bool
) -> None:
    measured = [Measurement(*rates, 1.5, 200, 20) for rates in (one, other)]
    assert faster(*measured, prefill_only=prefill_only) == better


def test_a_winner_meets_the_rules_again_in_turns(bundle: Bundle) -> None:
    machine = Machine(lambda job: {1: 5.0, 2: 20.0, 4: 10.0, 8: 1.0}[job.candidate.options.threads])
    report = searched(bundle, machine)
    last = [job.candidate.options.threads for job in machine.jobs if job.candidate.variant == "fake-q4"][-4:]
    assert last == [4, 2, 4, 2]
    runs = {each.threads: each.runs for each in report.trials if each.variant == "fake-q4" and each.chunk == 128}
    assert {threads: len(each) for threads, each in runs.items()} == {1: 1, 2: 3, 4: 3, 8: 1}
    assert runs[2][0].total == pytest.approx(512 / 100.0 + 127 / 20.0)


def test_what_wins_by_rule_is_measured_as_often(bundle: Bundle) -> None:
    rates = iter([10.0, 8.0, 11.0])

    def decode(job: Job) -> float:
        options = job.candidate.options
        by_rule = job.candidate.variant == "fake-q4" and (options.threads, options.chunk) == (4, 128)
        return next(rates) if by_rule else 5.0

    report = searched(bundle, Machine(decode, chunk64=90.0, chunk256=90.0, chunk512=90.0))
    assert [len(each.runs) for each in report.trials if each.variant == "fake-q4"].count(1 + REMATCHES) == 1
    (trial,) = [each for each in report.trials if each.variant == "fake-q4" and len(each.runs) > 1]
    assert (trial.threads, trial.chunk, trial.decode_tps) == (4, 128, 10.0)
    assert [round(127 / run.decode, 6) for run in trial.runs] == [10.0, 8.0, 11.0]


def test_a_winner_that_was_once_slower_than_the_rules_was_noise(bundle: Bundle) -> None:
    rates = iter([30.0, 9.0, 30.0])

    def decode(job: Job) -> float:
        options = job.candidate.options
        lucky = job.candidate.variant == "fake-q4" and (options.threads, options.chunk) == (2, 128)
        return next(rates) if lucky else 10.0

    report = searched(bundle, Machine(decode))
    assert {each.threads for each in report.tunings} == {4}
    assert next(each for each in report.tunings if each.variant == "fake-q4").decode_tps == 10.0


# Other engines of a runtime


def engine(name: str, used: bool = False, devices: tuple[str, ...] = ("cpu",)) -> Engine:
    return Engine(name, "1.0", f"{name} 1", devices, None if devices else "It is not installed.", used)


class Several(FakeRuntime):
    """gguf, with an engine that is used, another that runs, one for a GPU, and one that is not there."""

    name = "gguf"

    def probe(self, hardware: Hardware) -> Support:
        return replace(super().probe(hardware), version="wheel 1")

    def engines(self) -> tuple[Engine, ...]:
        return (
            engine("wheel", used=True),
            engine("own"),
            engine("gpu", devices=("cuda", "cpu")),
            engine("no", devices=()),
        )


def met(bundle: Bundle, decode: Callable[[Job], float]) -> tuple[TuneReport, list[Job]]:
    machine = Machine(decode)
    report = tune(bundle, runtimes={"gguf": Several(), "fake": FakeRuntime()}, measure=machine)
    return report, [job for job in machine.jobs if job.engine]


def test_another_engine_meets_the_one_that_is_used_in_turns_with_the_settings_that_won(bundle: Bundle) -> None:
    def decode(job: Job) -> float:
        return {1: 5.0, 2: 20.0, 4: 10.0, 8: 1.0}[job.candidate.options.threads] * (2.0 if job.engine == "own" else 1.0)

    report, jobs = met(bundle, decode)
    assert [job.engine for job in jobs] == ["wheel", "own"] * (1 + REMATCHES)
    assert {(job.candidate.variant, job.candidate.options.threads, job.prompt) for job in jobs} == {("gguf-q4", 2, 200)}
    (rival,) = report.rivals
    assert (rival.engine, rival.used, rival.faster, rival.reason) == ("own", "wheel", True, None)
    assert rival.gain == pytest.approx((512 / 100.0 + 127 / 20.0) / (512 / 100.0 + 127 / 40.0))
    assert report.winner.decode_tps == 20.0  # which engine is used is for its user to say


def test_who_takes_the_other_engine_loads_with_what_was_measured_of_it(bundle: Bundle) -> None:
    report, _ = met(bundle, lambda job: 20.0 if job.engine == "own" else 10.0)
    support = Several().probe(MACHINE)
    of = [read_tunings(bundle.id, MACHINE, {"gguf": replace(support, version=name)}) for name in ("wheel 1", "own 1")]
    assert [each["gguf-q4"].decode_tps for each in of] == [10.0, 20.0]
    assert of[1]["gguf-q4"] == report.rivals[0].tuning


def test_an_engine_that_was_slower_once_is_not_faster(bundle: Bundle) -> None:
    rates = iter([30.0, 9.0, 30.0])
    report, _ = met(bundle, lambda job: next(rates) if job.engine == "own" else 10.0)
    assert not report.rivals[0].faster
    assert (report.rivals[0].gain or 0.0) > 1.0


def test_an_engine_that_fails_is_told_with_its_reason(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    def decode(job: Job) -> float:
        if job.engine == "own":
            raise EngineCrashedError("Its process was ended by SIGILL.")
        return 10.0

    report, _ = met(bundle, decode)
    assert (report.rivals[0].reason, report.rivals[0].tuning) == ("Its process was ended by SIGILL.", None)
    show(report)
    assert "gguf-q4 with own: Its process was ended by SIGILL." in capsys.readouterr().out


@pytest.mark.parametrize(("rate", "line"), [(20.0, "use own"), (10.0, "answers 1.00x as fast as wheel\n")])
def test_only_a_faster_engine_is_recommended(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], rate: float, line: str
) -> None:
    report, _ = met(bundle, lambda job: rate if job.engine == "own" else 10.0)
    show(report)
    said = capsys.readouterr().out
    assert line in said
    assert ("edgepack engine use" in said) == (rate > 10.0)


@pytest.mark.parametrize(("cores", "busy"), [(None, False), (0.3, False), (1.5, True)])
def test_a_busy_machine_is_noticed(bundle: Bundle, cores: float | None, busy: bool) -> None:
    def measure(job: Job, timeout_s: float) -> Measurement:
        return Measurement(10.0, 100.0, 1.5, 200, 20, cores)

    report = searched(bundle, measure)
    assert (report.neighbours, report.busy) == (cores, busy)


@pytest.mark.parametrize(
    ("taste", "counts"),
    [((0.001, 0.01), (512, 32)), ((0.1, 0.5), (76, 4)), ((10.0, 10.0), (16, 3))],
)
def test_long_runs_are_shortened(taste: tuple[float, float], counts: tuple[int, int]) -> None:
    assert shorten(512, 32, taste, 10.0) == counts


# Trials in processes of their own, with an engine that is registered as any other

SHAKY = """
import os, sys, time
from edgepack import FakeRuntime
from edgepack.device.state import preferred
from edgepack.errors import EngineError


class Shaky(FakeRuntime):
    name = "shaky"

    def open(self, variant, decoder, options):
        print("noise of a library", flush=True)
        if options.chunk == 64:
            os.abort()
        if options.chunk == 65:
            time.sleep(600)
        if options.chunk == 66:
            raise EngineError("The weights are not readable.")
        if options.chunk == 67:
            raise KeyError("a fault")
        if options.chunk == 68:
            raise EngineError(str(preferred("shaky")))
        return super().open(variant, decoder, options)
"""


@pytest.fixture
def shaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    site = tmp_path / "site"
    metadata = site / "shaky-1.dist-info"
    metadata.mkdir(parents=True)
    (site / "shaky.py").write_text(SHAKY)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shaky\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[edgepack.runtimes]\nshaky = shaky:Shaky\n")
    monkeypatch.syspath_prepend(site)
    return open_bundle(small_bundle.write(tmp_path / "shaky-bundle", [small_bundle.variant("shaky-q4")]))


def job(bundle: Bundle, backend: str, chunk: int = 128) -> Job:
    chosen = plan(bundle, backend=backend).choice
    options = replace(chosen.options, chunk=chunk, threads=1)
    return Job(str(bundle.path), replace(chosen, options=options), 40, 6, repeats=2, least_s=0.0, most_s=5.0)


def test_a_trial_measures_in_a_child(shaky: Bundle) -> None:
    found = run(job(shaky, "shaky"), 60.0)
    assert (found.prompt, found.decode) == (40, 6)
    assert min(found.decode_tps, found.prefill_tps, found.batch_cost) > 0


@pytest.mark.parametrize(
    ("chunk", "timeout_s", "kind", "reason"),
    [
        (64, 60.0, EngineCrashedError, "SIGABRT"),
        (65, 3.0, EngineTimeoutError, "did not end within 3 s"),
        (66, 60.0, EngineError, "The weights are not readable."),
        (67, 60.0, EngineCrashedError, "a fault"),
    ],
)
def test_a_trial_that_goes_wrong_is_an_error(
    shaky: Bundle, chunk: int, timeout_s: float, kind: type[EngineError], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        run(job(shaky, "shaky", chunk), timeout_s)


def test_a_trial_has_the_engine_that_its_job_names(shaky: Bundle) -> None:
    with pytest.raises(EngineError, match="another"):
        run(msgspec.structs.replace(job(shaky, "shaky", 68), engine="another"), 60.0)
    with pytest.raises(EngineError, match="None"):
        run(job(shaky, "shaky", 68), 60.0)


def test_a_program_that_cannot_start_an_interpreter_says_so(shaky: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = job(shaky, "shaky")
    monkeypatch.setattr("sys.frozen", True, raising=False)
    with pytest.raises(EngineError, match="cannot start the interpreter"):
        run(asked, 3.0)


@pytest.mark.parametrize("context", [1, 3, 5, 50])
def test_a_trial_in_a_short_context(tmp_path: Path, context: int) -> None:
    runtimes = {"fake": FakeRuntime()}
    bundle = open_bundle(small_bundle.write(tmp_path / "short"))
    chosen = plan(bundle, context=context, runtimes=runtimes).choice
    asked = Job(str(bundle.path), chosen, 40, 6, repeats=1, least_s=0.0, most_s=5.0)
    if context < 4:
        with pytest.raises(edgepack.errors.ContextError):
            measure(asked, runtimes)
    else:
        assert measure(asked, runtimes).decode_tps > 0


@pytest.mark.parametrize("backend", ["gguf", "onnx"])
def test_a_trial_of_a_real_engine(demo_bundle: Built, backend: str) -> None:
    found = run(job(open_bundle(demo_bundle.path), backend), 120.0)
    assert (found.prompt, found.decode) == (40, 6)


# The command


def test_the_command_shows_every_trial_and_the_plan_follows(shaky: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(shaky.path)]) == 0
    assert f"edgepack tune {shaky.path}" in capsys.readouterr().out
    assert main(["tune", str(shaky.path), "--quick"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (row,) = [line.split() for line in out.splitlines() if line.endswith(" won")]
    assert "winner: shaky-q4" in out
    decode, _, answer, _, spread, _ = row[-6:]
    assert f": {answer} s ± {spread} to answer (512 + 128 tokens), {decode} tokens/s" in out
    assert "SIGABRT" in out
    assert main(["plan", str(shaky.path)]) == 0
    out = capsys.readouterr().out
    assert "s to answer (512 + 128 tokens); measured" in out
    assert "edgepack tune" not in out
    assert main(["plan", str(shaky.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"][0]["tuning"]["decode_tps"] > 0


def test_the_command_as_json(shaky: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(shaky.path), "--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bundle_id"] == shaky.id
    assert report["winner"]["variant"] == "shaky-q4"
    assert [each["reason"] is not None for each in report["trials"] if each["chunk"] == 64] == [True]


# A draft model


def judged(folder: Path, gain: Callable[[drafts.Job, float], float]) -> Any:
    opened = open_bundle(small_bundle.write_with_draft(folder))
    return tune(opened, runtimes={"fake": FakeRuntime()}, measure=Machine(), gain=gain)


def test_what_a_draft_brings_is_measured_with_the_best_settings_and_remembered(tmp_path: Path) -> None:
    jobs: list[drafts.Job] = []

    def gain(job: drafts.Job, timeout_s: float) -> float:
        jobs.append(job)
        return 1.7

    report = judged(tmp_path / "two", gain)
    (job,) = jobs
    assert job.candidate.draft is not None
    assert job.candidate.options.threads == report.winner.threads
    assert report.winner.draft_gain == 1.7
    candidate = plan(tmp_path / "two", runtimes={"fake": FakeRuntime()}).choice
    assert candidate.draft == job.candidate.draft
    with edgepack.load(tmp_path / "two", runtimes={"fake": FakeRuntime()}) as model:
        assert model.generate("hello").repro.draft


def test_a_draft_that_cannot_be_measured_is_told_and_not_loaded(tmp_path: Path) -> None:
    def gain(job: drafts.Job, timeout_s: float) -> float:
        raise EngineError("It fell over.")

    report = judged(tmp_path / "two", gain)
    assert report.winner.draft_gain is None
    assert report.undrafted == {"fake-q4": "It fell over."}
    assert plan(tmp_path / "two", runtimes={"fake": FakeRuntime()}).choice.draft is None


def test_a_bundle_without_a_draft_is_not_asked_for_one(bundle: Bundle) -> None:
    def gain(job: drafts.Job, timeout_s: float) -> float:
        raise AssertionError("there is none")

    report = searched(bundle, Machine(), gain=gain)
    assert {each.draft_gain for each in report.tunings} == {None}
    assert report.undrafted == {}


def test_a_draft_is_measured_on_answers_with_it_and_without(tmp_path: Path) -> None:
    runtimes = {"fake": FakeRuntime()}
    alphabet = Tokenizer.from_json(small_bundle.tokenizer_json(), None, False)
    probes = [{"text": text, "ids": alphabet.encode(text, bos=False)} for text in ("hello", "a longer text")]
    tokenizer = small_bundle.manifest([])["tokenizer"] | {"probes": probes}
    for name, stops in (("talks", []), ("ends", [{"id": id, "text": "x", "sources": []} for id in range(260)])):
        folder = small_bundle.write_with_draft(tmp_path / name, outer={"tokenizer": tokenizer, "stops": stops})
        candidate = plan(folder, draft=True, runtimes=runtimes).choice
        job = drafts.Job(str(folder), candidate, tokens=20, repeats=2)
        if stops:
            with pytest.raises(EngineError, match="No answer of small has 8 tokens"):
                drafts.measure(job, runtimes)
        else:
            assert drafts.measure(job, runtimes) > 0


def test_a_draft_is_measured_on_prompts_that_await_an_answer() -> None:
    golden = {"name": "x", "messages": [], "text": "said", "ids": [1]}
    goldens = [golden, golden | {"text": "a whole turn", "add_generation_prompt": False}]
    chat = {"roles": ["user"], "date": None, "goldens": goldens}
    assert drafts.prompts(small_bundle.read(small_bundle.manifest([], chat=chat))) == ["said"]
    many = chat | {"goldens": [golden | {"text": "x" * length} for length in (5, 1, 4, 2, 3)]}
    assert drafts.prompts(small_bundle.read(small_bundle.manifest([], chat=many))) == ["xx", "xxx", "xxxx"]
    probes = [{"text": "plain", "ids": [1]}, {"text": "<s>", "special": True, "ids": [2]}]
    tokenizer = {"rows": 260, "bos": None, "add_bos": False, "probes": probes}
    assert drafts.prompts(small_bundle.read(small_bundle.manifest([], chat=None, tokenizer=tokenizer))) == ["plain"]
