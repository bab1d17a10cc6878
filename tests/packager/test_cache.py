"""What builds remember of each other: sound, bounded, and never needed."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from models import make_llama

from edgepack.errors import ProofError
from edgepack_packager import cache
from edgepack_packager.build import build
from edgepack_packager.proof import recalled
from edgepack_packager.recipe import Recipe
from edgepack_packager.text import compiled


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGEPACK_CACHE", str(folder))
    return folder


def test_an_answer_is_found_again_under_its_key_alone() -> None:
    cache.keep(cache.key(b"one", b"two"), b"answer")
    assert cache.recall(cache.key(b"one", b"two")) == b"answer"
    assert cache.recall(cache.key(b"onetwo")) is None
    assert cache.recall(cache.key(b"one", b"two", b"")) is None


@pytest.mark.parametrize("damage", [b"", b"short", bytes(32) + b"answer"])
def test_a_damaged_answer_is_none_and_goes(damage: bytes, place: Path) -> None:
    cache.keep("name", b"answer")
    (place / "name").write_bytes(damage)
    assert cache.recall("name") is None
    assert not (place / "name").exists()


def test_what_was_used_longest_ago_makes_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT", 3 * 132)
    for age, name in enumerate(("a", "b", "c")):
        cache.keep(name, bytes(100))
        os.utime(place / name, (age, age))
    assert cache.recall("a") == bytes(100)  # and so was used just now
    cache.keep("d", bytes(100))
    assert sorted(file.name for file in place.iterdir()) == ["a", "c", "d"]


def test_a_folder_that_cannot_be_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "file" / "cache"))
    cache.keep("name", b"answer")
    assert cache.recall("name") is None


def test_builds_that_share_it_see_whole_answers(place: Path) -> None:
    answers = [bytes([number]) * 100_000 for number in range(8)]

    def work(answer: bytes) -> bool:
        for _ in range(20):
            cache.keep("name", answer)
            found = cache.recall("name")
            if found is not None and found not in answers:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, answers))
    assert [file.name for file in place.iterdir()] == ["name"]


def test_a_bundle_is_the_same_with_and_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_llama(tmp_path / "source")
    recipe = Recipe(("gguf", "onnx"), ("q8",))
    first = build(str(source), recipe, tmp_path / "first")
    with monkeypatch.context() as patch:
        for module, name in FORGOTTEN:
            patch.setattr(module, name, None)  # what is called here is not remembered
        second = build(str(source), recipe, tmp_path / "second")
    monkeypatch.setenv("EDGEPACK_CACHE", "/dev/null/cache")
    third = build(str(source), recipe, tmp_path / "third")
    assert files(first.path) == files(second.path) == files(third.path)


FORGOTTEN = [(compiled, "compile_tokenizer"), (compiled, "prove"), (recalled, "reference")]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_failed_its_proof_is_not_kept(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ProofError("tokenizer.bin failed the proof.")

    monkeypatch.setattr(compiled, "prove", fails)
    with pytest.raises(ProofError):
        build(str(make_llama(tmp_path / "source")), Recipe(("gguf",), ("q8",)), tmp_path / "out")
    assert not place.exists()
