"""The sampler against its own definition, written out with a full sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgepack.decoding.sample import Sampler, Sampling
from edgepack.errors import EngineError, UsageError

Logits = NDArray[np.float32]
Mask = NDArray[np.bool_]
SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.01, 0.3, 0.7, 1.0, 1.7, 50.0]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 300, 5000]),
    min_p=st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.1, 0.8]),
    seed=st.integers(0, 2**64 - 1),
)


class Definition:
    """The rules of ``edgepack.decoding.sample``, in order, on the whole vocabulary."""

    def __init__(self, sampling: Sampling, prompt: list[int]) -> None:
        self.s = sampling
        self.seen = list(prompt)
        self.random = np.random.Generator(np.random.PCG64(sampling.seed))

    def __call__(self, logits: Logits, allowed: Mask | None = None) -> int:
        with np.errstate(over="ignore"):
            return self.draw(logits, allowed)

    def draw(self, logits: Logits, allowed: Mask | None) -> int:
        s, x = self.s, logits.copy()
        if allowed is not None:
            x[~allowed] = -np.inf
        for token in set(self.seen):
            penalty = np.float32(s.repetition_penalty)
            x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
        order = np.lexsort((np.arange(x.size), -x))
        if s.temperature == 0:
            token = int(order[0])
        else:
            weights = np.exp((x[order] - x[order[0]]) / np.float32(s.temperature))
            kept = s.top_k or x.size
            sums = weights[:kept].cumsum(dtype=np.float64)
            if s.top_p < 1:
                kept = int(np.searchsorted(sums, s.top_p * sums[-1])) + 1
            kept = min(kept, int(np.count_nonzero(weights >= np.float32(s.min_p))))
            left = min(s.top_k or x.size, int(np.count_nonzero(weights >= np.float32(s.min_p))))
            token = -1
            while token not in order[:kept]:
                ids = np.sort(order[:left])
                running = np.exp((x[ids] - x[order[0]]) / np.float32(s.temperature)).cumsum(dtype=np.float64)
                token = int(ids[np.searchsorted(running, self.random.random() * running[-1], side="right")])
                left = int(np.flatnonzero(order == token)[0])
        self.seen.append(token)
        return token


def test_the_smallest_weights_count_towards_top_p() -> None:
    logits = np.array([8.0, 8.0, 3.0], np.float32)  # two equals have a hair less than half of the sum each
    drawn = {Sampler(Sampling(temperature=0.3, top_p=0.5, seed=seed), [])(logits) for seed in range(20)}
    assert drawn == {0, 1}


@given(SETTINGS, st.lists(st.integers(-9, 9).map(float) | st.just(-math.inf), max_size=300), st.data())
def test_small_vocabularies_follow_the_definition(sampling: Sampling, values: list[float], data: st.DataObject) -> None:
    logits = np.array([*values, 3.0], np.float32)
    prompt = data.draw(st.lists(st.integers(0, logits.size - 1), max_size=5))
    ours, definition = Sampler(sampling, prompt), Definition(sampling, prompt)
    for _ in range(4):
        assert ours(logits) == definition(logits)


@given(SETTINGS, st.integers(1, 300), st.data())
def test_a_mask_comes_before_every_other_rule(sampling: Sampling, size: int, data: st.DataObject) -> None:
    logits = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=size, max_size=size)), np.float32)
    before = logits.copy()
    prompt = data.draw(st.lists(st.integers(0, size - 1), max_size=5))
    ours, definition = Sampler(sampling, prompt), Definition(sampling, prompt)
    for _ in range(4):
        allowed = np.zeros(size, np.bool_)
        allowed[data.draw(st.lists(st.integers(0, size - 1), min_size=1))] = True
        token = ours(logits, allowed)
        assert allowed[token]
        assert token == definition(logits, allowed)
    assert logits.tobytes() == before.tobytes()


def test_what_a_mask_forbids_may_be_no_number() -> None:
    logits = np.array([math.nan, 1, math.inf, 2], np.float32)
    for temperature in (0.0, 0.01):
        sampler = Sampler(Sampling(temperature=temperature, seed=1), [])
        assert sampler(logits, np.array([False, True, False, True])) == 3
        with pytest.raises(EngineError, match="nan"):
            sampler(logits, np.array([True, True, False, False]))


def test_a_mask_that_allows_nothing_or_is_of_another_vocabulary_is_a_mistake() -> None:
    sampler, logits = Sampler(Sampling(), []), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="allows no token"):
        sampler(logits, np.zeros(4, np.bool_))
    for size in (1, 3, 5):
        with pytest.raises(ValueError, match="shape"):
            sampler(logits, np.ones(size, np.bool_))


def peaked(random: np.random.Generator) -> Logits:
    logits = random.standard_normal(20000) * 2.5
    logits[random.integers(0, 20000, 20)] += 12
    return logits.astype(np.float32)


def half_masked(random: np.random.Generator) -> Logits:
    logits = wide(random)
    logits[::2] = -np.inf
    logits[1::4] = np.finfo(np.float32).min
    return logits


def wide(random: np.random.Generator) -> Logits:
    return (random.standard_normal(20000) * 3).astype(np.float32)


def narrow(random: np.random.Generator) -> Logits:
    return (random.standard_normal(20000) * 0.2 - 30).astype(np.float32)


def tied(random: np.random.Generator) -> Logits:
    return (np.round(wide(random) * 4) / 4).astype(np.float32)


def level(random: np.random.Generator) -> Logits:
    return np.full(20000, 1.5, np.float32)


@pytest.mark.parametrize("make", [peaked, wide, narrow, tied, level, half_masked])
def test_large_vocabularies_follow_the_definition(make: object) -> None:
    logits = make(np.random.default_rng(5))  # type: ignore[operator]

    @settings(max_examples=60, deadline=None)
    @given(SETTINGS)
    def follows(sampling: Sampling) -> None:
        ours, definition = Sampler(sampling, [1, 2, 3]), Definition(sampling, [1, 2, 3])
        for mask in (None, logits > np.median(logits), np.arange(logits.size) % 997 == 0):
            allowed = mask if mask is not None and mask.any() else None
            assert ours(logits, allowed) == definition(logits, allowed)

    follows()


def test_tokens_come_as_often_as_they_are_likely() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=3), [])
    counts = np.bincount([sampler(logits) for _ in range(20000)], minlength=4)
    # Five standard deviations of a binomial with p = 1/2 are 0.018.
    assert np.abs(counts / 20000 - [0.5, 0.25, 0.125, 0.125]).max() < 0.018


def test_the_seed_decides_the_text() -> None:
    logits = wide(np.random.default_rng(1))

    def text(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), [])
        return [sampler(logits) for _ in range(20)]

    assert text(7) == text(7)
    assert text(7) != text(8)
    assert text(None) != text(None)


def test_a_random_seed_is_reported_and_gives_the_same_again() -> None:
    logits = wide(np.random.default_rng(1))
    first = Sampler(Sampling(temperature=1.0), [])
    tokens = [first(logits) for _ in range(10)]
    again = Sampler(first.sampling, [])
    assert first.sampling.seed is not None
    assert tokens == [again(logits) for _ in range(10)]
    assert Sampler(Sampling(), []).sampling.seed is None


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert Sampler(Sampling(), [])(np.array([0, 5, 5, 1], np.float32)) == 1


def test_the_penalty_counts_a_token_once_and_grows_with_the_text() -> None:
    logits = np.array([4.0, 3.0, -1.0], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=1.5), [0, 0, 0])
    assert [sampler(logits) for _ in range(2)] == [1, 0]  # 2.67 against 3, then 2.67 against 2
    assert logits.tolist() == [4.0, 3.0, -1.0]


def test_the_memory_of_many_tokens_grows_with_them() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0), [])
    logits = np.linspace(2.0, 1.5, 500, dtype=np.float32)
    assert [sampler(logits) for _ in range(500)] == list(range(500))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_engine_error(bad: float, temperature: float) -> None:
    logits = np.ones(1000, np.float32)
    logits[700] = bad
    with pytest.raises(EngineError, match="logits"):
        Sampler(Sampling(temperature=temperature, top_k=3), [])(logits)
    with pytest.raises(EngineError, match="-inf"):
        Sampler(Sampling(temperature=temperature), [])(np.full(9, -np.inf, np.float32))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "from 1e-6 to 100"),
        ("temperature", math.nan, "from 1e-6 to 100"),
        ("temperature", math.inf, "from 1e-6 to 100"),
        ("temperature", "warm", "number"),
        ("temperature", True, "number"),
        ("top_p", 0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("top_k", -1, "positive integer"),
        ("top_k", 1.5, "positive integer"),
        ("min_p", 1.1, "from 0 to 1"),
        ("repetition_penalty", 0, "from 0.01 to 100"),
        ("seed", -1, "2\\*\\*64"),
        ("seed", 2**64, "2\\*\\*64"),
        ("seed", "7", "2\\*\\*64"),
    ],
)
def test_a_value_out_of_range_names_the_parameter_and_the_range(name: str, value: object, allowed: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} is .*{allowed}"):
        Sampling(**{name: value})  # type: ignore[arg-type]


def test_numbers_of_numpy_become_plain() -> None:
    sampling = Sampling(temperature=np.float32(0.5), top_k=np.int64(4), seed=np.int32(1))  # type: ignore[arg-type]
    assert sampling.to_dict() == {
        "temperature": 0.5, "top_p": 1.0, "top_k": 4, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 1,
    }  # fmt: skip
    assert [type(value) for value in sampling.to_dict().values()] == [float, float, int, float, float, int]
