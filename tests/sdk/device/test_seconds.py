"""Seconds to an answer: predicted from rates, and the order that a plan makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_bundle

from edgepack.bundle.manifest import Manifest
from edgepack.device.engine import Rate, Speed, Support
from edgepack.device.hardware import Hardware
from edgepack.device.planning import make_plan
from edgepack.device.seconds import Seconds, Turn, by_type, predict
from edgepack.device.tuning import Tuning

MACHINE = Hardware("linux", "x86_64", 2, 2, None, 16 << 30, 8 << 30)
FREE = Rate(0.0, 0.0)
Q4 = Rate(prefill=1e-9, decode=4e-9)
DECODER = small_bundle.read(small_bundle.manifest([])).decoder


def weights(part: str) -> int:
    return sum(
        shape[0] * shape[1]
        for name, shape in DECODER.tensors()
        if len(shape) == 2 and (name in ("head", "embedding")) == (part == "head")
        if name == "head" or DECODER.tied or name != "embedding"
    )


def speed(rate: Rate = Q4, layer: Rate = FREE, **rates: Rate) -> Speed:
    return Speed(2, {"q4": rate, "attention": FREE, **rates}, layer)


def seconds(speed: Speed) -> Seconds:
    found = predict(speed, DECODER, "q4", {}, Turn(100, 11))
    assert found is not None
    return found


def test_a_prompt_reads_the_head_once_and_an_answer_at_every_step() -> None:
    body, head = weights("body"), weights("head")
    assert seconds(speed()).prefill == pytest.approx(100 * body * 1e-9 + head * 4e-9)
    assert seconds(speed()).decode == pytest.approx(10 * (body + head) * 4e-9)
    assert seconds(speed()).total == seconds(speed()).prefill + seconds(speed()).decode


def test_what_is_stored_otherwise_has_its_own_rate() -> None:
    body, head = weights("body"), weights("head")
    slow = {"q8": Rate(2e-9, 8e-9)}
    assert seconds(replace(speed(), rates={**speed().rates, "q4.head": slow["q8"]})).decode == pytest.approx(
        10 * (body * 4e-9 + head * 8e-9)
    )
    name = next(name for name, shape in DECODER.tensors() if name.startswith("layers.") and len(shape) == 2)
    more = predict(speed(**slow), DECODER, "q4", {name: "q8"}, Turn(100, 11))
    assert more is not None
    assert more.prefill > seconds(speed()).prefill
    assert predict(speed(), DECODER, "q4", {name: "q8"}, Turn()) is None


def test_attention_and_layers_count() -> None:
    layer = seconds(speed(layer=Rate(1e-3, 2e-3)))
    assert layer.prefill - seconds(speed()).prefill == pytest.approx(100 * DECODER.n_layers * 1e-3)
    assert layer.decode - seconds(speed()).decode == pytest.approx(10 * DECODER.n_layers * 2e-3)
    attention = seconds(speed(attention=Rate(1e-9, 2e-9)))
    products = 2 * DECODER.attentions[0].q_size * DECODER.n_layers
    assert attention.prefill - seconds(speed()).prefill == pytest.approx(100 * products * 50 * 1e-9)
    assert attention.decode - seconds(speed()).decode == pytest.approx(10 * products * 2e-9 * 105.5)


def test_a_scheme_that_was_not_measured_is_not_guessed() -> None:
    assert predict(speed(), DECODER, "q5", {}, Turn()) is None
    assert predict(replace(speed(), rates={"q4": Q4}), DECODER, "q4", {}, Turn()) is None


def bundle() -> Manifest:
    quantization = {"asked": "q4", "scheme": "q4", "bits": 4.5, "fallbacks": []}
    variants = [small_bundle.variant(id, quantization=quantization) for id in ("gguf-q4", "onnx-q4")]
    return small_bundle.read(small_bundle.manifest(variants))


def support(speed: Speed | None) -> Support:
    return Support(("cpu",), version="1.2", kv_caches=("f16", "f32"), speed=speed)


def order(gguf: Speed | None, onnx: Speed | None, turn: Turn | None = None, *tunings: Tuning) -> list[str]:
    supports = {"gguf": support(gguf), "onnx": support(onnx)}
    by_id = {each.variant: each for each in tunings}
    return [each.variant for each in make_plan(bundle(), MACHINE, supports, tunings=by_id, turn=turn).candidates]


def test_a_plan_ranks_by_the_seconds_to_an_answer() -> None:
    fast = speed(Rate(1e-10, 4e-9))
    assert order(speed(), fast) == ["onnx-q4", "gguf-q4"]
    assert order(fast, speed()) == ["gguf-q4", "onnx-q4"]
    chosen = make_plan(bundle(), MACHINE, {"gguf": support(speed()), "onnx": support(fast)}, turn=Turn(99, 7)).choice
    assert "s to answer (99 + 7 tokens)" in chosen.reason


def test_the_turn_decides_between_prefill_and_decode() -> None:
    prefills, decodes = speed(Rate(1e-10, 8e-9)), speed(Rate(1e-9, 1e-9))
    assert order(prefills, decodes, Turn(1000, 2)) == ["gguf-q4", "onnx-q4"]
    assert order(prefills, decodes, Turn(1, 1000)) == ["onnx-q4", "gguf-q4"]


def test_without_all_speeds_the_rule_holds() -> None:
    assert order(None, speed()) == ["gguf-q4", "onnx-q4"]
    assert order(speed(Rate(1e-3, 1e-3)), None) == ["gguf-q4", "onnx-q4"]
    other_threads = replace(speed(Rate(1e-12, 1e-12)), threads=1)
    assert order(speed(), other_threads) == ["gguf-q4", "onnx-q4"]


def test_a_disturbed_speed_is_shown_and_decides_nothing() -> None:
    disturbed = replace(speed(Rate(1e-12, 1e-12)), settled=False)
    assert order(speed(), disturbed) == ["gguf-q4", "onnx-q4"]
    plan = make_plan(bundle(), MACHINE, {"gguf": support(disturbed), "onnx": support(disturbed)})
    assert "timed beside busy programs" in plan.choice.reason


def test_what_was_measured_comes_first_and_by_its_time_not_its_decoding() -> None:
    slow = Tuning("gguf-q4", 2, 128, None, decode_tps=10.1, prefill_tps=20.0, batch_cost=1.0)
    fast = Tuning("onnx-q4", 2, 128, None, decode_tps=10.0, prefill_tps=200.0, batch_cost=1.0)
    assert order(speed(), speed(), None, slow, fast) == ["onnx-q4", "gguf-q4"]
    assert order(speed(Rate(1e-12, 1e-12)), speed(), None, fast) == ["onnx-q4", "gguf-q4"]


# What is slow on a processor


def reasons(small: Rate, *tunings: Tuning, settled: bool = True) -> dict[str, str]:
    """Plan q3, of fewer bits, beside q4 on one engine, and q4 on another."""
    variants = [
        small_bundle.variant(id, quantization={"asked": scheme, "scheme": scheme, "bits": bits, "fallbacks": []})
        for id, scheme, bits in (("gguf-q3", "q3", 3.5), ("gguf-q4", "q4", 4.5), ("onnx-q4", "q4", 4.5))
    ]
    supports = {"gguf": support(replace(speed(q3=small), settled=settled)), "onnx": support(speed(Rate(1e-12, 1e-12)))}
    manifest = small_bundle.read(small_bundle.manifest(variants))
    plan = make_plan(manifest, MACHINE, supports, tunings={each.variant: each for each in tunings})
    return {each.variant: each.reason for each in plan.candidates}


def test_types_that_are_slow_for_their_bits_are_named() -> None:
    found = reasons(Rate(2.1e-9, 8.4e-9))
    assert found["gguf-q3"].endswith("; its types are slow here: 2.1x as long as gguf-q4, of more bits")
    assert not any("slow here" in found[id] for id in ("gguf-q4", "onnx-q4"))


@pytest.mark.parametrize("small", [Q4, Rate(1.05e-9, 4.2e-9), Rate(5e-10, 2e-9)])
def test_types_that_are_about_as_fast_are_not(small: Rate) -> None:
    assert "slow here" not in reasons(small)["gguf-q3"]


def test_of_what_is_not_certain_or_not_measured_alike_nothing_is_said() -> None:
    slow = Rate(1e-8, 1e-8)
    assert "slow here" not in reasons(slow, settled=False)["gguf-q3"]
    assert "slow here" not in reasons(slow, Tuning("gguf-q4", 2, 128, None, 1e9, 1e9, 1.0))["gguf-q3"]


def test_types_are_compared_by_what_they_cost_an_answer() -> None:
    rates = {"q4_K": Rate(1e-9, 4e-9), "q4_k": Rate(1e-9, 4e-9), "q3_k": Rate(2e-9, 8e-9), "f16": Rate(5e-10, 2e-9)}
    others = {"attention": Rate(1e-12, 1e-12), "q4_0.head": Rate(1.0, 1.0)}
    found = by_type(rates | others)
    assert list(found) == ["f16", "q4_k", "q3_k"]
    assert list(found.values()) == pytest.approx([1.0, 2.0, 4.0])
    assert by_type({}) == {}
