"""The commands over a bundle that embeds."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np
import pytest

import edgepack
from edgepack.cli import main
from edgepack_packager.build import Built
from edgepack_packager.source import catalog

Capture = pytest.CaptureFixture[str]


def test_embed_prints_a_line_for_each_text(bundles: Mapping[str, Built], capsys: Capture) -> None:
    path = str(bundles["last"].path)
    assert main(["embed", path, "one", "größer", "--prompt", "query", "-b", "onnx", "--variant", "onnx-f32"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["one", "größer"]
    with edgepack.load(path, "onnx", variant="onnx-f32") as model:
        vectors = model.embed(["one", "größer"], "query")
    assert np.array_equal(np.array([line["embedding"] for line in lines], np.float32), vectors)


def test_embed_reads_lines(bundles: Mapping[str, Built], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(bundles["last"].path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    assert main(["embed", path, "-b", "mlx"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["one", "two"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["embed", path]) == 2
    assert "There is no text." in capsys.readouterr().err


def test_a_prompt_that_is_none_and_a_model_that_writes(
    bundles: Mapping[str, Built], demo_bundle: Built, capsys: Capture
) -> None:
    assert main(["embed", str(bundles["first"].path), "text", "--prompt", "query"]) == 2
    assert "has no prompt 'query'" in capsys.readouterr().err
    assert main(["embed", str(demo_bundle.path), "text"]) == 2
    assert "This model writes texts" in capsys.readouterr().err
    assert main(["run", str(bundles["last"].path), "text"]) == 2
    assert "This model embeds texts, and writes none." in capsys.readouterr().err


def test_inspect_says_that_it_embeds(bundles: Mapping[str, Built], capsys: Capture) -> None:
    assert main(["inspect", str(bundles["mean"].path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "embeds 64 numbers, the mean of all states, compared by cosine; prompts: query (unless told" in said
    assert "cosine with the source's vectors" in said
    assert "stops at" not in said
    assert "temperature" not in said


def test_verify_repeats_it(bundles: Mapping[str, Built], capsys: Capture) -> None:
    assert main(["verify", str(bundles["last"].path), "--replay", "--json"]) == 0
    replays = {each["name"]: each["verdict"] for each in json.loads(capsys.readouterr().out)["replays"]}
    assert len(replays) == 2 + len(bundles["last"].manifest.variants)
    assert set(replays.values()) == {"same"}


def test_models_that_embed(capsys: Capture) -> None:
    assert main(["models", "--embeds", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert [each["alias"] for each in found] == [each.alias for each in catalog.entries() if each.embeds] != []
    assert main(["models", "--embeds"]) == 0
    assert "makes vectors of texts (edgepack embed), and writes none" in " ".join(capsys.readouterr().out.split())
