"""The speeds that engines tell of themselves: real products of theirs, every figure there."""

from __future__ import annotations

import pytest

from edgepack import runtime
from edgepack.device.hardware import detect

SCHEMES = {
    "gguf": {"f32", "f16", "q8_0", "q4_0", "q5_0", "q4_k_m", "q5_k_m", "q6_k", "q4_k_m.head"},
    "onnx": {"f32", "int4", "int8", "int4_mixed", "int4_mixed.head"},
}


@pytest.mark.parametrize("name", SCHEMES)
def test_an_engine_times_its_own_products(name: str) -> None:
    hardware = detect()
    engine = runtime.find(name)
    assert isinstance(engine, runtime.Timed)
    found = engine.speed(hardware)
    assert found is not None
    assert found.threads == hardware.threads
    # Beside busy programs the rest is left to another time.
    assert found.rates
    assert set(found.rates) <= SCHEMES[name] | {"q4_K", "q5_K", "q6_K", "q5_k_m.head", "q4_0.head"}
    rates = [found.layer, *found.rates.values()]
    assert all(0 < seconds < 1e-3 for rate in rates for seconds in (rate.prefill, rate.decode))


def test_the_fake_engine_has_no_speed() -> None:
    assert not isinstance(runtime.find("mlx"), runtime.Timed)
