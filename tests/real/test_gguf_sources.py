"""A trained model from a GGUF file of uneven levels that was cut into parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_files import in_parts, packed

from edgepack_packager.build import build
from edgepack_packager.recipe import Recipe

pytestmark = pytest.mark.real


@pytest.mark.parametrize("scheme", ["iq4_xs", "iq3_s"])
def test_llama_cpp_reads_it_so(scheme: str, smollm2_off: Path, tmp_path: Path) -> None:
    """Rows of 576 are in iq4_nl, those of 1536 in the scheme's own type."""
    parts = in_parts(packed(smollm2_off, tmp_path / "out", scheme), tmp_path / "smollm2.gguf", 100, small_first=True)
    built = build(str(parts[-1]), Recipe(("mlx",), ("f16",)), tmp_path / "smollm2.edgepack")
    assert [file.path for file in built.manifest.source.files] == [path.name for path in parts]
    notes = built.manifest.producer.recipe["notes"]
    assert isinstance(notes, list)
    (told,) = [note for note in notes if "is read as" in note]
    assert all(f"% in {kind}" in notes[0] for kind in ("iq4_nl", scheme))
    assert "the ids of 48895 texts are the same" in told
