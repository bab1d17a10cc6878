"""A result again: the same to the token from its own JSON, and a difference told where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgepack
from edgepack.cli import main
from edgepack.decoding.results import Result
from edgepack.errors import BundleError, UsageError
from edgepack.measuring.rerun import read_result, rerun
from edgepack_packager.build import Built

ENGINES = ("gguf", "mlx", "onnx")


def recorded(path: Path, result: Result) -> Path:
    path.write_text(json.dumps(result.to_dict()))
    return path


def test_results_from_before_a_setting_are_read(demo_bundle: Built, tmp_path: Path) -> None:
    with edgepack.load(demo_bundle.path, "onnx", 256) as model:
        document = model.generate("Once upon", max_tokens=4).to_dict()
    assert document["repro"]["setup"].pop("spin", "absent") is None
    (tmp_path / "old.json").write_text(json.dumps(document))
    again = rerun(read_result(tmp_path / "old.json"))
    assert (again.same, again.changed) == (True, {})


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_says_the_same_again(engine: str, demo_bundle: Built, tmp_path: Path) -> None:
    """Also the second turn of a conversation, whose cache was made by single steps, with a cut and a stop."""
    with edgepack.load(demo_bundle.path, engine, 256, threads=1) as model:
        asked = [{"role": "user", "content": "What is edgepack?"}]
        chat = model.chat(temperature=1.5, seed=5, max_tokens=40)
        results = [
            model.generate("Once upon", temperature=1.5, seed=3, max_tokens=30),
            model.generate("Once upon", temperature=1.0, seed=3, stop="e", prompt_lookup=True),
            model.generate("Once " * 300, temperature=1.0, seed=3, max_tokens=12, on_overflow="rolling"),
            chat.send("What is edgepack?"),
            chat.send("Tell me more."),
            model.chat(asked, temperature=1.5, seed=5, max_tokens=40),
        ]
        told = {"role": "assistant", "content": results[-1].text}
        results += [
            model.chat([*asked, told, *asked], temperature=1.5, seed=5, max_tokens=40),
            model.generate("Once upon", temperature=1.5, seed=3, max_tokens=30, reuse="exact"),
            model.generate("Once upon a time there was", temperature=1.5, seed=3, max_tokens=30),
        ]
    steps = [step for result in (results[4], *results[6:]) for step in result.repro.cached]
    assert any(kept < evaluated for kept, evaluated, _ in steps)
    for number, result in enumerate(results):
        again = rerun(read_result(recorded(tmp_path / f"{number}.json", result)))
        assert (again.same, again.first_difference, again.changed) == (True, None, {})
        assert again.result.token_ids == result.token_ids


def test_a_cancelled_result_is_made_as_far_as_it_went(demo_bundle: Built, tmp_path: Path) -> None:
    with (
        edgepack.load(demo_bundle.path, "gguf", 256) as model,
        model.stream("Once upon", temperature=1.5, seed=3, max_tokens=40) as stream,
    ):
        assert next(stream).token_ids
    again = rerun(read_result(recorded(tmp_path / "result.json", stream.result)))
    assert stream.result.finish_reason == "cancelled"
    assert again.same


def test_a_difference_is_told_with_what_changed(
    demo_bundle: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with edgepack.load(demo_bundle.path, "gguf", 256) as model:
        result = model.generate("Once upon", max_tokens=8)
    path = recorded(tmp_path / "result.json", result)
    assert main(["replay", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == result.text.strip()
    assert "The same text" in captured.err
    document = json.loads(path.read_text())
    document["token_ids"][3] += 1
    document["repro"]["setup"]["engine"] = "0.0.1"
    document["repro"]["setup"]["packages"]["numpy"] = "1.0"
    path.write_text(json.dumps(document))
    assert main(["replay", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["same"], told["first_difference"]) == (False, 3)
    assert told["changed"]["engine"][0] == "0.0.1"
    assert "differs from token 3 on" in captured.err
    assert "engine, numpy" in captured.err


def test_what_cannot_be_made_again(demo_bundle: Built, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with edgepack.load(demo_bundle.path, "gguf", 256) as model:
        document = model.generate("Once upon", max_tokens=2).to_dict()
    with pytest.raises(FileNotFoundError):
        read_result(path)
    for damaged in ("", "[]", "{}", json.dumps(document | {"repro": {}}), json.dumps(document | {"token_ids": ["x"]})):
        path.write_text(damaged)
        with pytest.raises(UsageError, match="is not a result"):
            read_result(path)
    document["repro"]["setup"]["bundle_id"] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="not the bundle"):
        rerun(read_result(path))
