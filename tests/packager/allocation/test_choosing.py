"""Choosing against every choice there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack_packager.allocation.choosing import Option, choose


def best(slots: list[list[Option]], budget: int) -> float:
    """Return the least loss of all choices that fit."""
    fitting = [each for each in product(*slots) if sum(option.size for option in each) <= budget]
    return min(sum(option.loss for option in each) for each in fitting)


def made(seed: int, count: int, forms: int) -> list[list[Option]]:
    """Return slots whose options lose less the larger they are, as sound ones do, and some that do not."""
    random = np.random.default_rng(seed)
    slots = []
    for _ in range(count):
        sizes = np.sort(random.integers(1, 60, forms))
        losses = float(random.lognormal()) * 2.0 ** -(sizes / 8) * random.uniform(0.5, 2, forms)
        slots.append(
            [Option(str(i), int(size), float(loss)) for i, (size, loss) in enumerate(zip(sizes, losses, strict=True))]
        )
    return slots


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.floats(0, 1))
def test_the_loss_is_the_least_possible_to_a_step_of_one_slot(seed: int, count: int, forms: int, share: float) -> None:
    slots = made(seed, count, forms)
    least, most = (sum(of(option.size for option in slot) for slot in slots) for of in (min, max))
    budget = least + int(share * (most - least))
    chosen = choose(slots, budget)
    assert sum(option.size for option in chosen) <= budget
    assert all(option in slot for option, slot in zip(chosen, slots, strict=True))
    step = max(max(option.loss for option in slot) - min(option.loss for option in slot) for slot in slots)
    assert sum(option.loss for option in chosen) <= best(slots, budget) + step
    assert chosen == choose(slots, budget)


def test_it_is_mostly_the_least_possible() -> None:
    excess = []
    for seed in range(60):
        slots = made(seed, 5, 4)
        budget = sum(max(option.size for option in slot) for slot in slots) * 2 // 3
        least = best(slots, budget)
        excess.append(sum(option.loss for option in choose(slots, budget)) / least - 1)
    assert np.mean(excess) < 0.05
    assert np.median(excess) == pytest.approx(0, abs=1e-12)


def test_a_large_slot_gets_what_many_small_ones_would_take() -> None:
    """Steps alone spend two thirds of the budget on what is worth a little more by the byte, and have no room then."""
    large = [Option("few", 100, 1.0), Option("many", 200, 0.0)]
    small = [[Option("few", 10, 0.11), Option("many", 20, 0.0)] for _ in range(7)]
    chosen = choose([large, *small], 270)
    assert chosen[0].form == "many"
    assert sum(option.loss for option in chosen) == pytest.approx(best([large, *small], 270))


def test_a_budget_that_ends_with_a_step_is_spent_best() -> None:
    slots = made(3, 5, 5)
    for budget in range(sum(min(option.size for option in slot) for slot in slots), 200):
        chosen = choose(slots, budget)
        if sum(option.size for option in chosen) == budget:
            assert sum(option.loss for option in chosen) <= best(slots, budget) * 1.1


def test_an_option_that_loses_more_for_more_bytes_is_never_taken() -> None:
    slots = [[Option("worse", 20, 2.0), Option("small", 10, 1.0), Option("also", 10, 1.5)]]
    assert [option.form for option in choose(slots, 100)] == ["small"]


def test_less_than_the_smallest_is_refused() -> None:
    with pytest.raises(ValueError, match="9 bytes are 1 less than the smallest options take"):
        choose([[Option("only", 10, 0.0)]], 9)
