"""The reference against transformers, recomputed, and the families against what transformers writes."""

from __future__ import annotations

from pathlib import Path

import golden_models
import numpy as np
import pytest
from oracle_models import ORACLE_MODELS
from variants import nmse

from edgepack_packager import families, reference
from edgepack_packager.checkpoint import open_checkpoint

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("name", golden_models.params())
def test_the_reference_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import oracle

    folder = golden_models.folder(name, tmp_path)
    ids = golden_models.ids(name, folder)
    with open_checkpoint(folder) as checkpoint:
        found = reference.logits(families.open_model(checkpoint, golden_models.context(name)), ids)
    expected = oracle.logits(folder, ids)

    assert found.shape == expected.shape == (len(ids), expected.shape[1])
    assert nmse(found, expected) <= 1e-10
    # A model that repeats its input would agree whatever its layers do.
    assert (expected.argmax(axis=1) == ids).mean() < 0.5


@pytest.mark.parametrize("name", ORACLE_MODELS)
@pytest.mark.parametrize("original_names", [True, False])
def test_what_transformers_saves_is_read_as_the_same_model(name: str, original_names: bool, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import oracle

    folder, saved = golden_models.folder(name, tmp_path), tmp_path / "saved"
    model = oracle.auto_class(folder).from_pretrained(folder, dtype="auto")
    model.save_pretrained(saved, save_original_format=original_names)

    context = golden_models.context(name)
    with open_checkpoint(folder) as first, open_checkpoint(saved) as second:
        weights, again = families.open_model(first, context), families.open_model(second, context)
        assert weights.decoder == again.decoder
        for tensor, shape in weights.decoder.tensors():
            assert np.array_equal(weights.rows(tensor, 0, shape[0]), again.rows(tensor, 0, shape[0])), tensor
