"""Where bytes stand in other files: moved, changed in part, repeated, gone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgepack_ship.delta import matching
from edgepack_ship.delta.matching import Bytes, Near, Stretch, stretches

RANDOM = np.random.default_rng(5)


class InMemory:
    def __init__(self, data: Bytes) -> None:
        self.data, self.size = data, len(data)

    def at(self, begin: int, length: int) -> Bytes:
        assert 0 <= begin <= self.size
        return self.data[begin : begin + length]


def noise(count: int) -> Bytes:
    return RANDOM.integers(0, 256, count, np.uint8)


def found(new: Bytes, *sources: Bytes) -> list[Stretch]:
    """The stretches of a file, which follow each other without a gap."""
    all = list(stretches(InMemory(new), [InMemory(each) for each in sources]))
    assert [each.begin for each in all] == [0, *(each.end for each in all[:-1])][: len(all)]
    assert sum(each.end - each.begin for each in all) == len(new)
    assert all or not len(new)
    return all


def unlike(new: Bytes, sources: Sequence[Bytes]) -> int:
    """How many bytes of a file differ from what stands where the stretches say."""
    count = 0
    for each in found(new, *sources):
        best = each.end - each.begin
        for near in each.near:
            begin = each.begin + near.distance
            there = sources[near.source][max(begin, 0) : each.end + near.distance]
            if begin >= 0 and len(there) == each.end - each.begin:
                best = min(best, int(np.count_nonzero(there != new[each.begin : each.end])))
        count += best
    return count


BASE = noise(300_000)
LARGE = noise(matching.BY_BYTE + 500_000)

MOVED: dict[str, tuple[Callable[[Bytes], Bytes], int]] = {
    "the same": (lambda base: base, 0),
    "a byte before it": (lambda base: np.concatenate([base[:1] + 1, base]), 1),
    "96 bytes before it": (lambda base: np.concatenate([noise(96), base]), 96),
    "a part left out": (lambda base: np.delete(base, slice(100_000, 100_960)), 0),
    "a part between": (lambda base: np.insert(base, 100_000, noise(800)), 800),
    "halves exchanged": (lambda base: np.roll(base, 131_072), 0),
    "the end alone": (lambda base: base[-4096:], 0),
    "another end": (lambda base: np.concatenate([base[:-100], noise(164)]), 164),
    "empty": (lambda base: base[:0], 0),
}


# Of a large file only what has moved by a whole word is looked for.
MOVED_FAR = [(name, BASE) for name in MOVED] + [(name, LARGE) for name in MOVED if name != "a byte before it"]


@pytest.mark.parametrize(("name", "base"), MOVED_FAR, ids=[f"{name}, {len(base)} bytes" for name, base in MOVED_FAR])
def test_what_was_moved_is_found(name: str, base: Bytes) -> None:
    change, fresh = MOVED[name]
    new = change(base)
    block = 512 if base is LARGE else matching.LEAST_BLOCK  # where the distance changes, a block may be passed over
    assert unlike(new, [base]) <= fresh + block


def test_weights_of_which_many_have_changed_are_followed_past_a_header_that_has_grown() -> None:
    changed = BASE.copy()
    part = slice(100_000, 200_000)
    changed[part] += RANDOM.random(100_000) < 0.6
    assert unlike(np.concatenate([noise(64), changed]), [BASE]) <= 64 + np.count_nonzero(changed != BASE)


def test_the_second_source_is_found_too() -> None:
    assert found(BASE[5_000:], noise(1000), BASE) == [Stretch(0, len(BASE) - 5000, (Near(1, 5000),))]


@pytest.mark.parametrize("seed", range(20))
def test_any_parts_of_a_text_in_any_order(seed: int) -> None:
    choice, base = random.Random(seed), BASE[:5000]
    parts = [(choice.randrange(4000), choice.randrange(1, 900)) for _ in range(choice.randrange(7))]
    between = noise(choice.randrange(50))
    new = np.concatenate([between, *(base[begin : begin + count] for begin, count in parts)])
    short = sum(count for _, count in parts if count < 3 * matching.LEAST_BLOCK)
    assert unlike(new, [base, BASE[:0]]) <= len(between) + short + matching.LEAST_BLOCK * len(parts)


def test_bytes_that_repeat_end() -> None:
    zeros = np.zeros(200_000, np.uint8)
    assert unlike(zeros, [zeros[:4096]]) == 0
    assert unlike(np.tile(BASE[:100], 500), [np.tile(BASE[:100], 30)]) == 0
