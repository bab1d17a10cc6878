"""The reference against transformers, recomputed."""

from __future__ import annotations

from pathlib import Path

import golden_models
import pytest

from edgepack_packager import families, reference
from edgepack_packager.checkpoint import open_checkpoint

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("name", golden_models.params())
def test_the_reference_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import oracle

    folder = golden_models.folder(name, tmp_path)
    ids = golden_models.ids(folder)
    with open_checkpoint(folder) as checkpoint:
        found = reference.logits(families.open_model(checkpoint), ids)
    expected = oracle.logits(folder, ids)

    assert found.shape == expected.shape == (golden_models.POSITIONS, expected.shape[1])
    assert golden_models.nmse(found, expected) <= 1e-10
    # A model that repeats its input would agree whatever its layers do.
    assert (expected.argmax(axis=1) == ids).mean() < 0.5
