"""The types that other programs quantise to: the build compares a file of each with llama.cpp, logits and ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_files import packed, random_blocks
from models import make_llama

from edgepack.errors import ProofError
from edgepack_packager import source
from edgepack_packager.build import build
from edgepack_packager.checkpoint.gguf.dequantize import dequantize
from edgepack_packager.recipe import Recipe

OTHERS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "TQ1_0", "TQ2_0", "MXFP4")
"""What edgepack reads and does not write."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose rows are whole blocks of 256."""
    place = tmp_path_factory.mktemp("wide")
    return make_llama(place / "model", hidden=256, heads=4, kv_heads=2, intermediate=512)


def compared(file: Path, out: Path) -> list[str]:
    """Build a file, and return what the manifest says of the comparison with llama.cpp."""
    notes = build(str(file), Recipe(("onnx",), ("f32",)), out).manifest.producer.recipe["notes"]
    assert isinstance(notes, list)
    return [note for note in notes if "is read as" in note or "not compared" in note]


@pytest.mark.parametrize("scheme", ["iq4_nl", "iq4_xs", "iq3_s", "q2_k", "q3_k_m", "q4_k_m"])
def test_what_edgepack_writes_is_proven_as_a_source(scheme: str, wide: Path, tmp_path: Path) -> None:
    file = packed(wide, tmp_path / "out", scheme).rename(tmp_path / "tiny.gguf")
    (told,) = compared(file, tmp_path / "tiny.edgepack")
    assert "is read as" in told
    assert "the ids of" in told


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_type_is_proven_as_a_source(kind: str, wide: Path, tmp_path: Path) -> None:
    file = random_blocks(packed(wide, tmp_path / "out", "f32"), tmp_path / "tiny.gguf", kind)
    assert f"% in {kind.lower()} of its weights" in source.find(str(file)).notes[0]
    (told,) = compared(file, tmp_path / "tiny.edgepack")
    assert "is read as" in told
    assert "the ids of" in told


def test_a_type_that_is_read_wrongly_is_not_sealed(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = random_blocks(packed(wide, tmp_path / "out", "f32"), tmp_path / "tiny.gguf", "IQ2_XS")

    def louder(kind: str, rows: np.ndarray) -> np.ndarray:
        return dequantize(kind, rows) * np.float32(1.1 if kind == "IQ2_XS" else 1)

    monkeypatch.setattr("edgepack_packager.checkpoint.gguf.file.dequantize", louder)
    with pytest.raises(ProofError, match=r"tiny\.gguf is not read as llama\.cpp reads it: the logits' error is"):
        build(str(file), Recipe(("onnx",), ("f32",)), tmp_path / "tiny.edgepack")
