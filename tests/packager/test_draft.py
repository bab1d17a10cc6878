"""A build with a draft model: one bundle, the same texts on every engine, and no draft that speaks otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import make_llama

import edgepack
from edgepack.bundle.files import open_bundle
from edgepack.errors import SourceError
from edgepack.measuring.rerun import read_result, rerun
from edgepack.runtime import Snapshots
from edgepack_packager.build import Built, VariantsFailedError, build
from edgepack_packager.draft import recipe_of
from edgepack_packager.progress import Silent
from edgepack_packager.recipe import Recipe

ALL = ("gguf", "mlx", "onnx")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("large") / "large", seed=1, layers=3)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("small") / "small", seed=2, layers=1, context=256)


@pytest.fixture(scope="module")
def pair(large: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("pair") / "pair.edgepack"
    return build(str(large), Recipe(ALL, ("f32",), draft=str(small)), out)


@pytest.fixture(scope="module")
def itself(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("itself") / "itself.edgepack"
    return build(str(large), Recipe(ALL, ("f32",), draft=str(large)), out)


def test_the_draft_is_proven_and_pinned(pair: Built) -> None:
    bundle = open_bundle(pair.path)
    assert bundle.draft is not None
    assert bundle.draft.id == bundle.manifest.draft
    assert [each.id for each in bundle.draft.manifest.variants] == [each.id for each in bundle.manifest.variants]
    assert all(each.proof for each in bundle.draft.manifest.variants)
    assert bundle.draft.manifest.context.verified == 256
    assert bundle.manifest.schema.features.count("draft") == 1
    assert not any(file.path.startswith("draft/") for file in bundle.manifest.files)
    assert [path.name for path in pair.path.parent.iterdir()] == [pair.path.name]


ASKED = [
    {},
    {"temperature": 1.5, "seed": 7},
    {"prompt_lookup": True},
    {"on_overflow": "rolling", "max_tokens": 600},  # past the context of both
    {"max_tokens": 300},  # past that of the draft
    {"regex": "[a-z ]{30}"},
]


@pytest.mark.parametrize("engine", ALL)
def test_a_draft_changes_no_text(pair: Built, engine: str, tmp_path: Path) -> None:
    with edgepack.load(pair.path, engine, draft=True) as model:
        for more in ASKED:
            asked = {"max_tokens": 60} | more
            alone = model.generate("Once upon", draft=False, **asked)  # type: ignore[arg-type]
            result = model.generate("Once upon", **asked)  # type: ignore[arg-type]
            assert result.token_ids == alone.token_ids, more
            assert result.usage.drafted_tokens > 0, more
        chat = model.chat(max_tokens=20)
        chat.send("Hello")
        second = chat.send("And now?")
        assert second.usage.cached_tokens
        assert second.usage.drafted_tokens
    place = tmp_path / "result.json"
    place.write_text(json.dumps(second.to_dict()))
    again = rerun(read_result(place))
    assert (again.same, again.changed) == (True, {})
    assert again.result.usage.drafted_tokens == second.usage.drafted_tokens


@pytest.mark.parametrize("engine", ALL)
def test_a_model_that_drafts_for_itself_is_right(itself: Built, engine: str) -> None:
    with edgepack.load(itself.path, engine, draft=True) as model:
        usage = model.generate("Once upon", max_tokens=60).usage
        assert usage.accepted_tokens == usage.drafted_tokens > 30


@pytest.mark.parametrize("engine", ["gguf"])
def test_a_draft_runs_isolated_and_beside_snapshots(pair: Built, engine: str) -> None:
    with (
        edgepack.load(pair.path, engine, draft=True, isolate=True) as apart,
        edgepack.load(pair.path, engine) as alone,
    ):
        assert isinstance(apart._desk.session, Snapshots)
        result = apart.generate("Once upon", max_tokens=30)
        assert result.usage.drafted_tokens > 0
        assert result.token_ids == alone.generate("Once upon", max_tokens=30).token_ids


def test_the_draft_has_no_chat_and_nothing_that_is_said_of_one() -> None:
    small = recipe_of(Recipe(ALL, ("q4",), draft="small", date="passed", thinks=True))
    assert small == Recipe(ALL, ("q4",), no_chat=True)


def test_stages_say_which_model_they_are_of(large: Path, small: Path, tmp_path: Path) -> None:
    class Titles(Silent):
        def stage(self, title: str, total: int) -> None:
            titles.append(title)

    titles: list[str] = []
    recipe = Recipe(("onnx",), ("f32",), draft=str(small), unproven=True)
    build(str(large), recipe, tmp_path / "pair.edgepack", progress=Titles())
    assert [each for each in titles if "onnx-f32" in each] == ["draft: Writing onnx-f32", "Writing onnx-f32"]


def test_a_draft_with_another_vocabulary_is_refused(large: Path, tmp_path: Path) -> None:
    other = make_llama(tmp_path / "other", seed=3, layers=1)
    document = json.loads((other / "tokenizer.json").read_bytes())
    vocabulary = document["model"]["vocab"]
    a, b = list(vocabulary)[5:7]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match=r"other cannot draft for large.*with the id 5 in the vocabulary"):
        build(str(large), Recipe(("gguf",), ("f32",), draft=str(other)), tmp_path / "out.edgepack")
    assert not (tmp_path / "out.edgepack").exists()


@pytest.mark.parametrize("unproven", [False, True])
def test_a_draft_with_other_merges_is_refused(large: Path, tmp_path: Path, unproven: bool) -> None:
    other = make_llama(tmp_path / "other", seed=3, layers=1)
    document = json.loads((other / "tokenizer.json").read_bytes())
    document["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match="other cannot draft for large: its tokenizer makes"):
        build(str(large), Recipe(("gguf",), ("f32",), unproven=unproven, draft=str(other)), tmp_path / "out.edgepack")


def test_a_draft_that_fails_its_proof_seals_nothing(large: Path, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.edgepack"
    with pytest.raises(VariantsFailedError, match=r"draft/gguf-q4_k_m failed the proof.*Nothing is sealed") as caught:
        build(str(large), Recipe(("gguf",), ("q4",), max_kl=0.0, draft=str(small)), out)
    assert caught.value.built is None
    assert not out.exists()
    assert caught.value.evidence == tmp_path / "out.draft.failed"
    assert [path.name for path in caught.value.evidence.iterdir()] == ["gguf-q4_k_m.json"]
