"""How much of an adapter outlives a quantisation, on the trained weights of the demo model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from lora import draw, write_peft

from edgepack_packager import adapters, families, source
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.families.mapping import MappedWeights
from edgepack_packager.proof import outlived
from edgepack_packager.proof.costs import kept
from edgepack_packager.proof.outlived import LEAST, Adapted, Outlived
from edgepack_packager.targets import Form, Model, Request, find
from edgepack_packager.write import write

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@contextmanager
def weights(adapter: Path | None = None) -> Iterator[MappedWeights]:
    with open_checkpoint(source.find(source.DEMO).folder) as checkpoint:
        asked = [] if adapter is None else [adapters.Asked(adapter)]
        stored = families.stored(checkpoint.config, families.describe(checkpoint.config))
        with adapters.opened(asked, stored) as found:
            yield families.open_model(checkpoint, None, found.changes)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 4 whose delta is 3 % of each of two tensors, as a LoRA's is after a short training."""
    tensors = {}
    with weights() as plain:
        for module, name in ((Q, "layers.0.attention.q"), (DOWN, "layers.1.mlp.down")):
            rows, columns = dict(plain.decoder.tensors())[name]
            a, b = draw(f"{name}.a", 4, columns), draw(f"{name}.b", rows, 4)
            size = 0.03 * np.linalg.norm(plain.rows(name, 0, rows)) / np.linalg.norm(2 * (b @ a))
            tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b * np.float32(size)}
    return write_peft(tmp_path_factory.mktemp("adapter") / "quiet", tensors)


def figures(target: str, scheme: str, adapter: Path, out: Path) -> tuple[Request, dict[str, Outlived]]:
    request = Request(find(target), scheme, scheme)
    with weights(adapter) as merged:
        write(merged, [request], out, Model("demo", merged.decoder, merged.dtype))
        adapted = Adapted(merged.unchanged, merged.changed)
        return request, outlived.measure(request.target, out / request.id, adapted, merged)


@pytest.mark.parametrize(("target", "narrow", "wide"), [("onnx", "int4", "int8"), ("mlx", "4bit", "8bit")])
def test_8_bits_keep_what_4_lose(target: str, narrow: str, wide: str, quiet: Path, tmp_path: Path) -> None:
    request, low = figures(target, narrow, quiet, tmp_path / "narrow")
    assert low.keys() == {"layers.0.attention.q", "layers.1.mlp.down"}
    assert all(each.share < 0.25 and each.bits == 4 and each.needs for each in low.values())
    said = outlived.remark(request, low)
    assert said
    assert f"--quant {target}:{wide}" in said
    assert "2 of the 2 tensors" in said
    request, high = figures(target, wide, quiet, tmp_path / "wide")
    assert all(each.share > 0.9 and each.needs is None for each in high.values())
    assert outlived.remark(request, high) is None


def test_exact_weights_keep_all(quiet: Path, tmp_path: Path) -> None:
    request, found = figures("onnx", "f32", quiet, tmp_path / "exact")
    assert [each.share for each in found.values()] == pytest.approx([1, 1])
    assert outlived.remark(request, found) is None


def test_on_weights_between_the_levels_the_coefficient_does_not_tell() -> None:
    form, w, d = Form("signed", 4, 32, "f32"), draw("w", 256, 512), draw("d", 256, 512, deviation=0.001)
    share, arrived = outlived._share(form, w, w + d)
    assert share < 0.1
    assert arrived == pytest.approx(1, abs=0.2)


def test_on_weights_that_lie_on_the_levels_nothing_arrives() -> None:
    form = Form("signed", 4, 32, "f32")
    w, d = kept(form, draw("w", 256, 512)), draw("d", 256, 512, deviation=0.001)
    share, arrived = outlived._share(form, w, w + d)
    assert share < 0.01
    assert abs(arrived) < 0.1


def test_the_bits_that_keep_it_keep_it_and_one_less_does_not() -> None:
    w, d = draw("w", 256, 512), draw("d", 256, 512, deviation=0.003)
    shares = {bits: outlived._share(Form("affine", bits, 32), w, w + d)[0] for bits in (4, 5, 6, 8)}
    assert sorted(shares.values()) == [*shares.values()]
    assert shares[5] < LEAST <= shares[6]
