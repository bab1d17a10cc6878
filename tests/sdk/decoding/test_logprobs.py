"""Logprobs: the model's own distribution, whatever the sampler made of it, and the likeliest alternatives in order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgepack
from edgepack.decoding.logprobs import token_logprob
from edgepack_packager.build import Built


def exactly(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The natural logarithm of the softmax, by its definition."""
    weights = np.exp(logits.astype(np.longdouble) - logits.max())
    return np.log(weights / weights.sum()).astype(np.float64)


def drawn(size: int, seed: int = 0, scale: float = 4.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 300, 128256])
def test_the_definition(size: int) -> None:
    logits = drawn(size)
    wanted = exactly(logits)
    for token in {0, size // 2, size - 1}:
        found = token_logprob(logits, token, 20, str)
        assert (found.token_id, found.text) == (token, str(token))
        assert found.logprob == pytest.approx(wanted[token], rel=1e-6, abs=1e-6)
        order = sorted(range(size), key=lambda i: (-logits[i], i))[:20]
        assert [each.token_id for each in found.best] == order
        assert [each.text for each in found.best] == list(map(str, order))
        assert [each.logprob for each in found.best] == pytest.approx(wanted[order], rel=1e-6, abs=1e-6)


def test_all_probabilities_add_up_to_one() -> None:
    found = token_logprob(drawn(50), 3, 50, str)
    assert sum(np.exp(each.logprob) for each in found.best) == pytest.approx(1)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(0, 20))
def test_equals_stand_in_the_order_of_their_ids(values: list[int], n_best: int) -> None:
    logits = np.array(values, np.float32)
    found = token_logprob(logits, 0, n_best, str)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert [each.token_id for each in found.best] == order[:n_best]


def test_large_and_excluded_logits() -> None:
    logits = np.array([3e38, -np.inf, 3e38, -3e38], np.float32)
    found = token_logprob(logits, 1, 2, str)
    assert found.logprob == -np.inf
    assert [(each.token_id, each.logprob) for each in found.best] == [
        (0, pytest.approx(-np.log(2))),
        (2, pytest.approx(-np.log(2))),
    ]


def test_the_logits_are_left_as_they_are() -> None:
    logits = drawn(100)
    before = logits.copy()
    token_logprob(logits, 7, 5, str)
    assert np.array_equal(logits, before)


def test_as_json() -> None:
    plain = token_logprob(drawn(10), 3, 1, lambda token: "\ufffd").to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {"token_id", "text", "logprob", "best"}
    assert set(plain["best"][0]) == {"token_id", "text", "logprob"}


@pytest.fixture(scope="module")
def demo(demo_bundle: Built) -> Path:
    return demo_bundle.path


@pytest.mark.parametrize("variant", ["gguf-f32", "onnx-f32", "mlx-f32"])
def test_of_a_generation(variant: str, demo: Path) -> None:
    with edgepack.load(demo, variant=variant, threads=1) as model:
        prompt = "Once upon a time"
        told = model.generate(
            prompt, max_tokens=24, temperature=1.5, repetition_penalty=1.3, top_k=40, seed=5, logprobs=True, n_best=3
        )
        ids = model.tokenize(prompt)
        rows = model.logits([*ids, *told.token_ids])[len(ids) - 1 :]
        assert told.logprobs is not None
        assert [each.token_id for each in told.logprobs] == list(told.token_ids)
        assert "".join(each.text for each in told.logprobs) == told.text
        for row, token, found in zip(rows, told.token_ids, told.logprobs, strict=False):
            wanted = exactly(row)
            # Before temperature and penalty; one step of many tokens rounds otherwise than many steps of one.
            assert found.logprob == pytest.approx(wanted[token], abs=1e-4)
            assert [each.logprob for each in found.best] == pytest.approx(np.sort(wanted)[::-1][:3], abs=1e-4)


def test_a_greedy_token_is_its_own_best(demo: Path) -> None:
    with edgepack.load(demo, variant="gguf-f32", threads=1) as model:
        told = model.generate("The river", max_tokens=16, temperature=0, n_best=1)
        assert told.logprobs is not None
        assert [each.best[0].token_id for each in told.logprobs] == list(told.token_ids)
        assert all(each.best[0].logprob == each.logprob for each in told.logprobs)
        plain = model.generate("The river", max_tokens=16, temperature=0)
        assert (plain.text, plain.logprobs) == (told.text, None)
