"""Goals: what a quantisation says, and what meets it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from decoders import describe

from edgepack.errors import UnsupportedModelError, UsageError
from edgepack_packager import allocation, targets
from edgepack_packager.allocation import goals
from edgepack_packager.allocation.goals import Bits, Fits, Least, Size
from edgepack_packager.fit.devices import DEVICES
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Model, Request

DECODER = describe(hidden_size=256, intermediate_size=512, n_vocab=512, head_dim=64)
MODEL = Model("tiny", DECODER, "bf16")


def test_a_goal_is_one_word() -> None:
    assert goals.read("4.50bits") == Bits("4.5bits", 4.5)
    assert goals.read("900MB") == goals.read("900mb") == Size("900mb", 900_000_000)
    assert goals.read("1.5GiB") == Size("1.5gib", 3 << 29)
    assert goals.read("pi5-4gb") == Fits(DEVICES["pi5-4gb"])
    assert goals.read("auto", 0.03) == Least(0.03)
    assert [goals.read(scheme) for name in targets.names() for scheme in targets.find(name).schemes].count(None) > 15


@pytest.mark.parametrize("word", ["q4", "bits", "4.5", "900", "", "-3bits", "1e9bits", "pi9-4gb"])
def test_other_words_are_none(word: str) -> None:
    assert goals.read(word) is None


def test_auto_needs_a_limit() -> None:
    with pytest.raises(UsageError, match="none was given"):
        goals.read("auto")


@pytest.mark.parametrize("text", ["900", "pi9-4gb", "4 bits", "gguf:"])
def test_what_fit_does_not_mean(text: str) -> None:
    with pytest.raises(UsageError, match="is neither a size nor a device"):
        goals.of_fit(text)


@pytest.mark.parametrize("target", targets.names())
@pytest.mark.parametrize("goal", ["1bits", "1KB"])
def test_a_goal_that_nothing_meets_is_refused_with_the_least(target: str, goal: str) -> None:
    told = rf"{goal.lower()} cannot be met by {target}: the least is [\d.]+ (bits a weight|MB)"
    with pytest.raises(UsageError, match=told):
        Recipe((target,), (goal,)).requests(MODEL)


def test_a_device_that_is_too_small_is_refused_with_what_it_needs() -> None:
    chosen = targets.find("gguf")
    request = Request(chosen, "small", "q4_k_m", "calibrated")
    tiny = Fits(replace(DEVICES["pi5-2gb"], memory=1 << 20))
    with pytest.raises(UsageError, match=r"the least is [\d.]+ MiB at a context of 512"):
        allocation.check(request, tiny, MODEL)


def test_a_device_without_the_engine_is_refused_and_left_out_by_itself() -> None:
    with pytest.raises(UnsupportedModelError, match="No engine serves mlx on pi5-4gb"):
        Recipe(("mlx",), ("pi5-4gb",)).requests(MODEL)
    assert goals.served(["pi5-4gb"]) == ["gguf", "onnx"]
    assert goals.served(["q4", "mac-8gb"]) == ["gguf", "mlx", "onnx"]
    assert goals.served(["q4"]) == []


def test_several_goals_are_several_variants() -> None:
    found = Recipe(("gguf", "onnx"), ("gguf:6bits", "gguf:1mb", "q8", "onnx:7bits")).requests(MODEL)
    assert [each.id for each in found] == ["gguf-6bits", "gguf-1mb", "gguf-q8_0", "onnx-int8", "onnx-7bits"]
    assert [each.calibrated for each in found] == [True, True, False, False, True]


def test_a_goal_and_unproven_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="runs no reference to choose by"):
        Recipe(("gguf",), ("5bits",), unproven=True)
