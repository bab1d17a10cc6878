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
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.families.mapping import MappedWeights
from edgepack_packager.proof import outlived
from edgepack_packager.proof.costs import kept
from edgepack_packager.proof.outlived import LEAST, Adapted, Outlived
from edgepack_packager.targets import Form, Model, Request, find
from edgepack_packager.write import write

EXACT = Form("f32", 32)
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


class OnLevels:
    """Weights on the levels of a form, before an adapter and after it."""

    def __init__(self, plain: MappedWeights, merged: MappedWeights, form: Form) -> None:
        self.decoder, self.dtype, self._plain, self._merged, self._form = plain.decoder, "f32", plain, merged, form

    def rows(self, name: str, start: int, stop: int) -> Float32:
        rows, merged = (each.rows(name, start, stop) for each in (self._plain, self._merged))
        return rows if rows.ndim == 1 else kept(self._form, rows) + (merged - rows)


def figures(
    target: str, scheme: str, adapter: Path, out: Path, form: Form = EXACT
) -> tuple[Request, dict[str, Outlived]]:
    """Return the figures of a variant of the demo model with an adapter, its weights on the levels of a form before."""
    request = Request(find(target), scheme, scheme)
    with weights(adapter) as merged:
        base, after = (OnLevels(merged.unchanged, each, form) for each in (merged.unchanged, merged))
        write(after, [request], out, Model("demo", merged.decoder, "f32"))
        return request, outlived.measure(request.target, out / request.id, Adapted(base, merged.changed), after)


@pytest.mark.parametrize(("target", "scheme"), [("onnx", "int4"), ("onnx", "int8"), ("mlx", "4bit"), ("gguf", "q4_0")])
def test_weights_between_the_levels_keep_a_delta_and_more_bits_keep_it_clearer(
    target: str, scheme: str, quiet: Path, tmp_path: Path
) -> None:
    request, found = figures(target, scheme, quiet, tmp_path / "out")
    assert found.keys() == {"layers.0.attention.q", "layers.1.mlp.down"}
    for each in found.values():
        assert each.kept == pytest.approx(1, abs=0.1)
        assert (each.share > 0.9) == (scheme == "int8")
        assert (each.share < 0.25) == (scheme != "int8")
    assert outlived.remark(request, found) is None


GRIDS = [
    ("onnx", "int4", Form("signed", 4, 32, "f32"), "onnx:int8"),
    ("mlx", "4bit", Form("affine", 4, 64, "f32"), "mlx:8bit"),
    ("gguf", "q4_0", Form("q4_0", 4, 32), "gguf:q5_k_m"),
]


@pytest.mark.parametrize(("target", "scheme", "form", "keeps"), GRIDS)
def test_weights_on_the_levels_lose_it_and_what_is_named_keeps_it(
    target: str, scheme: str, form: Form, keeps: str, quiet: Path, tmp_path: Path
) -> None:
    request, found = figures(target, scheme, quiet, tmp_path / "narrow", form)
    for each in found.values():
        assert each.kept < 0.25
        assert each.needs
    said = outlived.remark(request, found)
    assert said
    assert "2 of the 2 tensors" in said
    assert f"Quantised by {keeps}, all keep it." in said
    request, found = figures(target, keeps.partition(":")[2], quiet, tmp_path / "wide", form)
    assert all(each.kept >= LEAST for each in found.values())
    assert outlived.remark(request, found) is None


def test_exact_weights_keep_all(quiet: Path, tmp_path: Path) -> None:
    request, found = figures("onnx", "f32", quiet, tmp_path / "exact")
    assert [each.kept for each in found.values()] == pytest.approx([1, 1])
    assert [each.share for each in found.values()] == pytest.approx([1, 1])
    assert outlived.remark(request, found) is None
