"""GGUF files that were cut into parts: read as the one file that they were, and refused where they are not of one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf_files import changed, in_parts, packed
from models import LLAMA3, make_llama

import edgepack
from edgepack.errors import SourceError
from edgepack_packager import families, source
from edgepack_packager.build import build
from edgepack_packager.checkpoint.gguf.file import GgufCheckpoint
from edgepack_packager.recipe import Recipe
from edgepack_packager.source import place

TENSORS = 21


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a table of its rope, which any part may hold."""
    place = tmp_path_factory.mktemp("whole")
    return packed(make_llama(place / "model", rope=LLAMA3), place / "out", "q8_0")


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    """The same in parts of at most six tensors, alone in their folder."""
    (tmp_path / "parts").mkdir()
    return in_parts(whole, tmp_path / "parts" / "Tiny.Q8_0.gguf", 6)


@pytest.mark.parametrize("small_first", [False, True])
def test_parts_are_the_file_that_they_were(whole: Path, small_first: bool, tmp_path: Path) -> None:
    found = in_parts(whole, tmp_path / "Tiny.Q8_0.gguf", 6, small_first=small_first)
    assert [path.name for path in found][-1] == f"Tiny.Q8_0-0000{len(found)}-of-0000{len(found)}.gguf"
    for given in (found[0], found[-1], tmp_path):
        one, other = source.find(str(given)), source.find(str(whole))
        assert one.name == "Tiny.Q8_0"
        assert (one.folder / "tokenizer.json").read_bytes() == (other.folder / "tokenizer.json").read_bytes()
        with source.open_weights(one) as split, source.open_weights(other) as single:
            assert isinstance(split, GgufCheckpoint)
            assert split.files == found
            assert len(split.file.tensors) == TENSORS
            assert split.file.holder(split.file.tensors["rope_freqs.weight"]) == found[small_first]
            ours, theirs = families.open_model(split), families.open_model(single)
            assert (ours.decoder, ours.dtype) == (theirs.decoder, theirs.dtype)
            for name, shape in theirs.decoder.tensors():
                assert np.array_equal(ours.rows(name, 0, shape[0]), theirs.rows(name, 0, shape[0])), name


def test_parts_become_a_chat_bundle_for_all_engines(whole: Path, tmp_path: Path) -> None:
    """Also where the first holds no tensor, and so not the table that the engine's own check reads."""
    parts = in_parts(whole, tmp_path / "Tiny.Q8_0.gguf", 6, small_first=True)
    built = build(str(parts[1]), Recipe(("gguf", "mlx", "onnx"), ("f32",)), tmp_path / "tiny.edgepack")
    assert [file.path for file in built.manifest.source.files] == [path.name for path in parts]
    notes = built.manifest.producer.recipe["notes"]
    assert isinstance(notes, list)
    (told,) = (note for note in notes if "is read as" in note)
    assert told.startswith(parts[0].name)
    assert "the ids of" in told
    command = [sys.executable, "-m", "edgepack", "inspect", str(built.path)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Tiny.Q8_0 (a GGUF file in 5 parts)" in shown
    with edgepack.load(built.path, backend="onnx") as model:
        assert model.chat([{"role": "user", "content": "Hello"}], max_tokens=4).token_ids


def test_parts_that_are_read_wrongly_are_not_sealed(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack_packager.families.gguf.rotates", lambda name, architecture: False)
    with pytest.raises(edgepack.ProofError, match=r"-00001-of-00004\.gguf is not read as llama\.cpp reads it"):
        build(str(parts[0]), Recipe(("gguf",), ("f32",)), tmp_path / "tiny.edgepack")


def _gone(parts: list[Path]) -> None:
    parts[1].unlink()


def _two_gone(parts: list[Path]) -> None:
    _gone(parts)
    parts[2].unlink()


def _exchanged(parts: list[Path]) -> None:
    parts[1].rename(parts[1].with_suffix(".x"))
    parts[2].rename(parts[1])
    parts[1].with_suffix(".x").rename(parts[2])


def _of_another_model(parts: list[Path]) -> None:
    folder = parts[0].parent.parent / "other"
    file = packed(make_llama(folder / "model", layers=3), folder / "out", "q8_0")
    shutil.copy(in_parts(file, folder / "x.gguf", 8)[1], parts[1])


def _twice(parts: list[Path]) -> None:
    shutil.copy(parts[2], parts[1])
    changed(parts[1], {"split.no": 1})


def _whole(parts: list[Path]) -> None:
    changed(parts[1], {"split.no": None, "split.count": None, "split.tensors.count": None})


def _cut(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[1].read_bytes()[:-64])


def _no_gguf(parts: list[Path]) -> None:
    parts[1].write_bytes(b"<html>" * 100)


def _all(keys: dict[str, object]) -> Callable[[list[Path]], None]:
    def change(parts: list[Path]) -> None:
        for path in parts:
            changed(path, keys)

    return change


def _one(keys: dict[str, object]) -> Callable[[list[Path]], None]:
    return lambda parts: changed(parts[1], keys)


DAMAGE: dict[str, tuple[Callable[[list[Path]], None], str]] = {
    "missing": (_gone, r"00001-of-00004\.gguf is part 1 of 4, and \S*-00002-of-00004\.gguf is missing beside it"),
    "two missing": (_two_gone, r"and \S*-00002-of-00004\.gguf and 1 more are missing"),
    "exchanged": (_exchanged, r"-00002-of-00004\.gguf is by its metadata part 3 of 4, and by its name part 2 of 4"),
    "of another model": (_of_another_model, r"-00002-of-00004\.gguf is of a file with 29 tensors, and \S* of 21"),
    "a tensor twice": (_twice, r"-00003-of-00004\.gguf has the tensor \S*, and so has \S*-00002-of-00004\.gguf"),
    "whole": (_whole, r"-00002-of-00004\.gguf is named as a part of a file, and by its metadata it is none"),
    "cut short": (_cut, r"-00002-of-00004\.gguf ends at \d+, inside"),
    "no GGUF file": (_no_gguf, r"-00002-of-00004\.gguf does not start with GGUF"),
    "number": (_one({"split.no": 4}), r"-00002-of-00004\.gguf is part 5 of 4"),
    "no number": (_one({"split.no": None}), r"-00002-of-00004\.gguf lacks the key split.no"),
    "a text": (_one({"split.no": "1"}), r"-00002-of-00004\.gguf must have a whole number as split.no, not '1'"),
    "count": (
        _one({"split.count": 5}),
        r"-00002-of-00004\.gguf is by its metadata part 2 of 5, and by its name part 2 of 4",
    ),
    "too few tensors": (_all({"split.tensors.count": 22}), "tells of 22 tensors in all parts, which have 21"),
    "too many tensors": (_all({"split.tensors.count": 17}), "tells of 17 tensors in all parts, which have more"),
    "another value": (
        _one({"llama.block_count": 7}),
        "00002-of-00004.gguf has another value as llama.block_count than",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_one_file_is_refused(name: str, parts: list[Path]) -> None:
    damage, message = DAMAGE[name]
    damage(parts)
    with pytest.raises(SourceError, match=message) as raised:
        source.find(str(parts[0]))
    assert raised.value.hint


def test_a_part_may_say_what_the_first_says(whole: Path, parts: list[Path]) -> None:
    """Also a list; another one is refused."""
    tokens = [str(token) for token in GGUFReader(parts[0]).fields["tokenizer.ggml.tokens"].contents()]
    changed(parts[1], {"general.architecture": "llama", "tokenizer.ggml.tokens": tokens})
    expected = source.read_config(str(parts[0]))
    assert source.read_config(str(parts[1])) == expected
    changed(parts[1], {"tokenizer.ggml.tokens": [*tokens[:-1], "other"]})
    with pytest.raises(SourceError, match=r"-00002-of-00004\.gguf has another list as tokenizer.ggml.tokens than"):
        source.find(str(parts[0]))


def test_a_part_with_another_name_is_told_its_own(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("mine.gguf"))
    with pytest.raises(SourceError, match=r"mine\.gguf is by its metadata part 1 of 4") as raised:
        source.find(str(renamed))
    assert "Name it Tiny.Q8_0-00001-of-00004.gguf" in str(raised.value.hint)
    alone = renamed.rename(renamed.parent.parent / "mine.gguf")
    with pytest.raises(SourceError) as raised:
        source.find(str(alone))
    assert "Name it mine-00001-of-00004.gguf" in str(raised.value.hint)


def test_a_folder_with_other_files_asks_for_one(parts: list[Path]) -> None:
    shutil.copy(parts[0], parts[0].with_name("other.gguf"))
    with pytest.raises(SourceError, match=r"has no config\.json, but Tiny"):
        source.find(str(parts[0].parent))


def test_a_split_of_one_part_is_a_file(whole: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(whole, tmp_path / "x-00001-of-00001.gguf"))
    changed(file, {"split.no": 0, "split.count": 1, "split.tensors.count": TENSORS})
    assert source.find(str(file)).name == "x"


def test_a_repository_with_parts_says_how_to_fetch_all_of_them() -> None:
    names = ["README.md", "tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"]
    error = place.no_config("owner/tiny", names, dict)
    assert "hf download owner/tiny --include 'tiny-*-of-00002.gguf'" in str(error.hint)
