"""The bench: its arithmetic on given times, and one real run on the fake engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import small_bundle

from edgepack import FakeRuntime, open_bundle
from edgepack.errors import ContextTooLargeError, UsageError
from edgepack.loading import plan
from edgepack.measuring.bench import Spread, bench, clip, decode_tps, gaps_ms, generate, percentile, random_tokens
from edgepack.runtime import Options, Session


def test_decoding_is_counted_between_the_first_and_the_last_token() -> None:
    assert decode_tps([2.0, 2.5, 3.0, 4.0]) == 1.5


def test_gaps_are_between_neighbours() -> None:
    assert gaps_ms([1.0, 1.5, 1.75]) == [500.0, 250.0]


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([5.0], 50, 5.0), ([1.0, 3.0], 50, 2.0), ([4.0, 1.0, 3.0, 2.0], 0, 1.0), ([1.0, 2.0, 3.0, 4.0], 100, 4.0),
     ([float(n) for n in range(101)], 95, 95.0)],
)  # fmt: skip
def test_percentiles(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_a_spread_is_median_and_deviation() -> None:
    assert Spread.of([1.0, 2.0, 9.0]) == Spread(2.0, pytest.approx(4.3589, abs=1e-4))
    assert Spread.of([7.0]) == Spread(7.0, 0.0)


@pytest.mark.parametrize(
    ("asked", "context", "given"),
    [((128, 64), 4096, (128, 64)), ((128, 64), 100, (36, 64)), ((128, 64), 64, (1, 63)), ((1, 2), 3, (1, 2))],
)
def test_counts_are_clipped_to_the_context(asked: tuple[int, int], context: int, given: tuple[int, int]) -> None:
    assert clip(*asked, context) == given
    assert sum(given) <= context


def test_counts_that_measure_nothing_are_refused() -> None:
    with pytest.raises(UsageError):
        clip(0, 64, 4096)
    with pytest.raises(UsageError):
        clip(128, 1, 4096)
    with pytest.raises(ContextTooLargeError):
        clip(1, 2, 2)


def fake_session(context: int) -> Session:
    return FakeRuntime().open(Path(), small_bundle.read(small_bundle.manifest([])).decoder, Options(context, 1, "f16"))


def test_every_run_begins_with_an_empty_cache() -> None:
    session = fake_session(context=20)
    first = generate(session, [1, 2, 3], 5)
    assert session.length == 7
    generate(session, [1, 2, 3], 5)
    assert session.length == 7
    assert len(first) == 5
    assert first == sorted(first)


def test_the_prompt_is_the_same_for_everyone() -> None:
    assert random_tokens(260, 16) == random_tokens(260, 16)
    assert set(random_tokens(3, 100)) == {0, 1, 2}


def test_a_whole_bench(tmp_path: Path) -> None:
    runtimes = {"fake": FakeRuntime()}
    bundle = open_bundle(small_bundle.write(tmp_path / "small"))
    chosen = plan(bundle, context=100, runtimes=runtimes).choice
    runs = []
    report = bench(bundle, chosen, threads=1, repeats=3, runtimes=runtimes, progress=lambda: runs.append(1))
    assert len(runs) == 4
    assert (report.prompt_tokens, report.decode_tokens) == (36, 64)
    # Weights, and 128 values of two bytes a token at the middle of the answer.
    assert report.bytes_per_token == 1_000_000 + 128 * 2 * (36 + 32)
    assert report.answer_s.median > report.ttft_s.median
    if report.bandwidth is None:  # beside other programs
        assert report.roofline is None
    else:
        assert report.roofline == pytest.approx(report.decode_tps.median * report.bytes_per_token / report.bandwidth)
    assert report.prefill_tps.median == pytest.approx(36 / report.ttft_s.median)
    assert report.inter_token_p50_ms.median <= report.inter_token_p95_ms.median
    assert report.peak_rss > 10_000_000
    assert report.options.threads == 1
    with pytest.raises(UsageError):
        bench(bundle, chosen, repeats=0, runtimes=runtimes)


@pytest.mark.skipif(sys.platform == "win32", reason="the system tells it in another way")
def test_the_memory_of_whoever_starts_a_process_is_not_its_own() -> None:
    told = "from edgepack.measuring.bench import peak_rss; print(peak_rss())"
    held = b"1" * 300_000_000
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert 5_000_000 < int(done.stdout) < len(held)
