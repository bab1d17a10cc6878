"""Texts that a model writes to be calibrated with: they come from it, calibrate again, and say something."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import golden_models
import pytest

import edgepack
from edgepack.errors import EngineCrashedError, SourceError, UsageError
from edgepack.model import Model
from edgepack.runtime import Support
from edgepack_packager import allocation, calibration, families, targets
from edgepack_packager.build import Built, build
from edgepack_packager.calibration import dictation
from edgepack_packager.calibration.text import read
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.progress import Silent
from edgepack_packager.proof import held_out
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Request
from edgepack_packager.text import read_text
from edgepack_packager.text.compiled import compiled

RECIPE = Recipe(("gguf",), ("q4_0",), calibrate="auto")


class Watched(Silent):
    """It counts the steps of each stage, and what was said to be all of them."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.of: dict[str, int] = {}
        self.current = ""

    def stage(self, title: str, total: int) -> None:
        self.current, self.of[title] = title, total

    def advance(self, steps: int = 1) -> None:
        self.done[self.current] += steps


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """One window calibrates, and nothing is held out of which nobody asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_WINDOWS", 1)
        patch.setattr(held_out, "BUDGET", 0.0)
        yield


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, watched: Watched) -> Built:
    return build("demo", RECIPE, tmp_path_factory.mktemp("auto") / "auto.edgepack", progress=watched)


@pytest.fixture(scope="module")
def model(built: Built) -> Iterator[Model]:
    with edgepack.load(built.path) as model:
        yield model


def statistics(bundle: Path, variant: str) -> object:
    return json.loads((bundle / "evidence" / f"{variant}.json").read_bytes())["calibration"]


def payload(built: Built) -> list[str]:
    return [file.sha256 for variant in built.manifest.variants for file in variant.files]


def test_the_text_that_a_model_wrote_is_kept_and_calibrates_another_build_alike(
    built: Built, watched: Watched, tmp_path: Path
) -> None:
    kept = built.path / "evidence" / "calibration.jsonl"
    said = built.manifest.producer.recipe
    assert (said["calibrate"], said["calibrate_sha256"]) == ("auto", read(str(kept)).sha256)
    assert "evidence/calibration.jsonl" in [file.path for file in built.manifest.files]
    again = build("demo", replace(RECIPE, calibrate=str(kept)), tmp_path / "again.edgepack")
    (variant,) = (each.id for each in again.manifest.variants)
    assert variant == "gguf-q4_0-cal"
    assert statistics(again.path, variant) == statistics(built.path, variant)
    assert payload(again) == payload(built)
    assert not (again.path / "evidence" / "calibration.jsonl").exists()
    title = "Writing the text that calibrates"
    assert watched.done[title] == watched.of[title] == calibration.size(built.manifest.decoder.context)
    assert [path.name for path in built.path.parent.iterdir()] == ["auto.edgepack"]


def test_a_text_is_what_the_model_answers_by_its_template_with_fixed_seeds(built: Built, model: Model) -> None:
    first, again = (dictation.dictate(model, 512, lambda _: None) for _ in range(2))
    assert first == again
    told = [list(each.messages) for each in first.conversations]
    asked = [prompt.say for prompt in dictation.prompts()][: len(told)]
    assert [tuple(each["content"] for each in one[::2]) for one in told] == [tuple(say) for say in asked]
    assert {tuple(each["role"] for each in one) for one in told} == {
        ("user", "assistant"),
        ("user", "assistant", "user", "assistant"),
    }
    question = told[0][0]
    answer = model.chat([question], max_tokens=128, temperature=0.8, top_p=0.95, seed=0).text
    assert told[0][1]["content"] == answer


def test_a_base_model_goes_on_with_the_beginnings_of_texts_and_onnx_writes_too(tmp_path: Path) -> None:
    recipe = Recipe(("onnx",), ("q4",), calibrate="auto", no_chat=True)
    built = build("demo", recipe, tmp_path / "a.edgepack")
    corpus = read(str(built.path / "evidence" / "calibration.txt"))
    assert corpus.sha256 == built.manifest.producer.recipe["calibrate_sha256"]
    texts = corpus.text.split(dictation.prompts()[1].begin)
    assert len(texts) == 2
    begin = dictation.prompts()[0].begin
    assert texts[0].startswith(begin)
    assert len(texts[0].strip()) > len(begin)


def test_the_prompts_are_of_many_kinds_and_none_is_held_out() -> None:
    asked = dictation.prompts()
    assert len(asked) == 24
    assert all(prompt.begin and prompt.say for prompt in asked)
    assert any(len(prompt.say) > 1 for prompt in asked)
    judged = held_out.read(held_out.BUILT_IN).text
    assert not [each for prompt in asked for each in (*prompt.say, prompt.begin) if len(each) > 40 and each in judged]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "demo wrote 0 tokens to 192 prompts, which makes no text"), ("one", "wrote [0-9]+ tokens to [0-9]+ prompts")],
)
def test_a_model_that_says_next_to_nothing_is_refused(
    text: str, said: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = model.chat([{"role": "user", "content": "Hello"}], max_tokens=1)
    short = replace(answer, text=text, token_ids=answer.token_ids[: len(text)])
    monkeypatch.setattr(model, "chat", lambda *_, **__: short)
    with pytest.raises(SourceError, match=said) as refused:
        dictation.dictate(model, 512, lambda _: None)
    assert "--calibrate built-in" in str(refused.value.hint)


def test_a_model_that_repeats_itself_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = model.chat([{"role": "user", "content": "Hello"}], max_tokens=8)
    loop = replace(answer, token_ids=tuple(answer.token_ids[:3]) * 40)
    monkeypatch.setattr(model, "chat", lambda *_, **__: loop)
    with pytest.raises(SourceError, match=r"repeats itself: of the runs of 4 tokens in its answers, [0-9]+% are new"):
        dictation.dictate(model, 512, lambda _: None)


def test_an_engine_that_takes_hours_writes_nothing() -> None:
    with pytest.raises(UsageError, match="no engine of these targets writes a text here within minutes") as refused:
        build("demo", Recipe(("mlx",), ("q4",), calibrate="auto"), Path("never.edgepack"))
    assert "built-in" in str(refused.value.hint)
    requests = [Request(targets.find(name), "q4", "q4") for name in ("mlx", "gguf")]
    engines = MappingProxyType({"mlx": Support(("cpu",)), "gguf": Support(("cpu",))})
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        weights = families.open_model(checkpoint)
        side = compiled(read_text(golden_models.DEMO, checkpoint.config, weights.decoder))
        demo = targets.Model("demo", weights.decoder, weights.dtype, checkpoint.config, side)
    assert dictation.speaker(requests, engines, demo).id == "gguf-q8_0"
    assert dictation.speaker(requests, {**engines, "mlx": Support(("metal", "cpu"))}, demo).id == "mlx-8bit"


def test_an_engine_that_ends_while_it_writes_is_an_error_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise EngineCrashedError("The engine ended.")

    monkeypatch.setattr(dictation, "dictate", crash)
    with pytest.raises(EngineCrashedError) as refused:
        build("demo", RECIPE, tmp_path / "a.edgepack")
    assert "--calibrate built-in" in str(refused.value.hint)
    assert os.listdir(tmp_path) == []


def test_a_text_that_has_what_is_held_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = held_out.read(held_out.BUILT_IN).text
    line = json.dumps([{"role": "user", "content": told}])
    monkeypatch.setattr(dictation, "dictate", lambda *_: calibration.text.dictated(line + "\n", lines=True))
    with pytest.raises(SourceError, match="built-in cannot judge what auto calibrated"):
        build("demo", replace(RECIPE, receipt="built-in"), tmp_path / "a.edgepack")


def test_nobody_writes_where_nothing_is_proven_or_the_text_is_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--calibrate was given with --unproven"):
        replace(RECIPE, unproven=True)
    (tmp_path / "recipe.toml").write_text('calibrate = "auto"\n["gguf-own".forms]\n"layers.*" = "q4_0"\n')
    table = allocation.table.read(tmp_path / "recipe.toml")
    with pytest.raises(UsageError, match="calibrated with auto, which is not in it") as refused:
        Recipe(("gguf",), (), table=str(tmp_path / "recipe.toml")).text(table)
    assert "--calibrate evidence/calibration.* of its bundle" in str(refused.value.hint)
