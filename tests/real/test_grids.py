"""A trained model that lies on grids: SmolLM2, whose weights came in llama.cpp's Q4_1, and the same model off them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgepack_packager import families, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Weights, blocks
from edgepack_packager.proof import tensors
from edgepack_packager.proof.gates import missed
from edgepack_packager.targets import Form, Model, Request, grids
from edgepack_packager.write import write

pytestmark = pytest.mark.real

FORMS = [Form("q4_0", 4, 32), Form("q4_1", 4, 32), Form("q8_0", 8, 32), Form("signed", 4, 64, "f32")]
FORMS += [Form("affine", bits, group, "bf16") for bits in (4, 6, 8) for group in (32, 64)]


@contextmanager
def opened(folder: Path) -> Iterator[Weights]:
    with open_checkpoint(folder) as checkpoint:
        yield families.open_model(checkpoint)


@pytest.mark.parametrize(("target", "scheme"), [("gguf", "q4_1"), ("mlx", "4bit_g32")])
def test_every_matrix_of_its_layers_is_exact(target: str, scheme: str, smollm2: Path, tmp_path: Path) -> None:
    """The embedding came in Q8_0, whose grid bf16 has rounded away."""
    chosen = targets.find(target)
    request = Request(chosen, scheme, scheme)
    with opened(smollm2) as weights:
        write(weights, [request], tmp_path, Model("smollm2", weights.decoder, weights.dtype))
        found = tensors.prove(chosen, tmp_path / request.id, weights, lambda _: None)
    assert missed(found.findings) == []
    assert (found.exact, found.quantised) == (210, 211)
    errors = [figures["error"] for figures in found.figures.values() if figures.get("exact") == 1]
    assert len(errors) == 210
    assert np.square(errors).max() <= 3e-6


@pytest.mark.parametrize("form", FORMS)
def test_off_its_grids_no_row_lies_on_one(form: Form, smollm2_off: Path) -> None:
    with opened(smollm2_off) as weights:
        for name, start, stop in blocks(weights.decoder):
            if (rows := weights.rows(name, start, stop)).ndim == 2:
                assert grids.recover(rows, form) is None, name
