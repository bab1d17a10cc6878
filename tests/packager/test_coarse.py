"""Two bits: refused where they would make nonsense, and not where weights lie on grids of as few levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import make_llama

from edgepack.bundle.decoder import Decoder
from edgepack.errors import UsageError
from edgepack_packager import coarse, families, targets
from edgepack_packager.build import build
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Request, Scales


class Made:
    """``Weights`` of a decoder whose layers' matrices have so many levels, 0 for any; its embedding has any."""

    dtype = "f32"

    def __init__(self, decoder: Decoder, levels: int) -> None:
        self.decoder, self._levels = decoder, levels

    def rows(self, name: str, start: int, stop: int) -> Float32:
        normal = np.random.default_rng([*name.encode()]).normal(size=dict(self.decoder.tensors())[name])
        if self._levels and name.startswith("layers."):
            normal = np.clip(np.rint(normal), -(self._levels // 2), (self._levels - 1) // 2)
        return (normal[start:stop] * 0.02).astype(np.float32)


def request(scheme: str, scales: Scales = "own") -> Request:
    return Request(targets.find("mlx" if "bit" in scheme else "onnx"), scheme, scheme, scales)


def test_two_bits_are_for_weights_of_four_levels_or_with_a_text(tmp_path: Path) -> None:
    with open_checkpoint(make_llama(tmp_path, hidden=256, intermediate=512, tokenizer=False)) as checkpoint:
        decoder = families.open_model(checkpoint).decoder
    fine = [request("2bit", "calibrated"), request("3bit"), request("int4_b128"), request("f32")]
    for scheme in ("2bit", "2bit_g128", "int2", "int2_b64"):
        for levels in (0, 16):
            with pytest.raises(UsageError, match=rf"-{scheme} would be nonsense: .* grid"):
                coarse.refuse([*fine, request(scheme)], Made(decoder, levels))
        for levels in (2, 3, 4):
            coarse.refuse([request(scheme)], Made(decoder, levels))
    coarse.refuse(fine, Made(decoder, 0))


def test_a_build_of_two_bits_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="onnx-int2 would be nonsense") as refused:
        build("demo", Recipe(("onnx",), ("int2",)), tmp_path / "out")
    assert refused.value.hint == "Add --calibrate built-in, or choose more bits."
    assert not list(tmp_path.iterdir())
