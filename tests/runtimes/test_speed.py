"""The speeds that engines tell of themselves: real products of theirs, those that are asked for and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack import runtime
from edgepack.device.hardware import detect
from edgepack_runtimes import rounds
from edgepack_runtimes.scratch import held, repeated, uncached

SCHEMES = {
    "gguf": ({"q4_k_m", "no_such_scheme"}, {"q4_k_m", "q4_k_m.head", "q4_K", "q6_K", "q6_k", "attention"}),
    "onnx": (
        {"int4_mixed", "int2_b128", "int4_b64_asym", "int4_b16", "int3"},
        {"int4", "int8", "int2_b128", "int4_b64_asym", "int4_mixed", "int4_mixed.head", "attention"},
    ),
}


def timed(name: str) -> runtime.Timed:
    engine = runtime.find(name)
    assert isinstance(engine, runtime.Timed)
    return engine


@pytest.mark.parametrize("name", SCHEMES)
def test_an_engine_times_products_that_are_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "MOST", 1)
    asked, expected = SCHEMES[name]
    hardware = detect()
    found = timed(name).speed(hardware, asked, 60.0)
    assert found is not None
    assert found.threads == hardware.threads
    assert not found.settled  # after a single round
    assert {each for each in found.rates if each in expected or not each.endswith(".head")} == expected
    rates = [found.layer, *found.rates.values()]
    assert all(0 < seconds < 1e-3 for rate in rates for seconds in (rate.prefill, rate.decode))


def test_every_scheme_of_gguf_has_a_rate() -> None:
    from edgepack_packager.targets.gguf.recipe import FORMATS, SCHEMES
    from edgepack_runtimes.gguf import speed

    for name, scheme in SCHEMES.items():
        for kind in speed._TYPES.get(name, (name,)):
            number, block, size, _ = speed._KINDS[kind]
            assert (number, block, size) == (FORMATS[kind].number, FORMATS[kind].block, FORMATS[kind].block_bytes)
        assert scheme.kind in speed._TYPES.get(name, (name,))


@pytest.mark.parametrize("name", SCHEMES)
def test_after_the_limit_nothing_is_begun(name: str) -> None:
    found = timed(name).speed(detect(), SCHEMES[name][0], 0.0)
    assert found is not None
    assert (found.rates, found.settled) == ({}, False)


@pytest.mark.parametrize("name", SCHEMES)
def test_of_an_unknown_scheme_nothing_is_measured(name: str) -> None:
    assert timed(name).speed(detect(), {"no_such_scheme"}, 60.0) is None


def test_the_fake_engine_has_no_speed() -> None:
    assert not isinstance(runtime.find("mlx"), runtime.Timed)


@pytest.mark.parametrize("count", [0, 1, 1 << 20, (1 << 20) + 7, 3 << 20])
def test_a_matrix_of_one_byte(count: int) -> None:
    pieces = repeated(0x3C, count)
    assert b"".join(pieces) == b"\x3c" * count
    with held(pieces) as path:
        assert path.read_bytes() == b"\x3c" * count


@pytest.mark.parametrize(
    ("sizes", "mib"),
    [(["48K", "1024K", "32768K"], 96), (["32K", "1024K"], 8), (["1048576K"], 128), (["x"], 48), ([], 48)],
)
def test_what_the_caches_do_not_hold(sizes: list[str], mib: int, tmp_path: Path) -> None:
    for index, size in enumerate(sizes):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n")
    assert uncached(tmp_path) == mib << 20
