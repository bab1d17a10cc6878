"""Exports: the variant that goes out, the files that go with it, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from exported_bundles import WEIGHTS, names, record, small

from edgepack.cli import main
from edgepack.errors import BundleDamagedError, OutputExistsError, UsageError
from edgepack_ship.exports.export import export, systems

SHARED = {"LICENSE", "chat_template.jinja", "edgepack-export.json", "tokenizer.json", "tokenizer_config.json"}


def test_each_system_is_a_line_of_the_entry_points() -> None:
    assert {"llamacpp", "mlx", "ort-genai"} <= set(systems())


def test_llamacpp_gets_the_file_its_template_and_the_command_lines(tmp_path: Path) -> None:
    made = export(small(tmp_path / "b"), "llamacpp", tmp_path / "out")
    assert names(tmp_path / "out") == {
        "LICENSE", "README.md", "chat_template.jinja", "edgepack-export.json", "model.gguf"
    }  # fmt: skip
    assert made.variant == "gguf-q4_0"
    assert (tmp_path / "out/model.gguf").read_bytes() == WEIGHTS["gguf-q4_0"]["model.gguf"]
    (cli, server) = made.use
    wanted = "-m model.gguf -c 4096 --jinja --chat-template-file chat_template.jinja --temp 0 --top-k 0 --top-p 1"
    assert cli.startswith(f"llama-cli {wanted}")
    assert cli.endswith("-n 8")
    assert server in (tmp_path / "out/README.md").read_text()
    assert '"</s>"' in (tmp_path / "out/README.md").read_text()


def test_a_penalty_counts_all_tokens_in_llamacpp_too(tmp_path: Path) -> None:
    bundle = small(tmp_path / "b", generation={"repetition_penalty": 1.1})
    (cli, _) = export(bundle, "llamacpp", tmp_path / "out").use
    assert "--repeat-penalty 1.1 " in cli
    assert cli.endswith("--repeat-last-n -1")


@pytest.mark.parametrize(("system", "id"), [("mlx", "mlx-4bit"), ("ort-genai", "onnx-int4")])
def test_a_folder_has_the_text_side_beside_the_weights(tmp_path: Path, system: str, id: str) -> None:
    made = export(small(tmp_path / "b"), system, tmp_path / "out")
    assert made.variant == id
    assert names(tmp_path / "out") == SHARED | set(WEIGHTS[id])
    for name, data in WEIGHTS[id].items():  # the variant's own before the bundle's
        assert (tmp_path / "out" / name).read_bytes() == data


@pytest.mark.parametrize("system", ["mlx", "ort-genai"])
def test_a_stop_that_a_system_does_not_know_is_said(tmp_path: Path, system: str) -> None:
    stops = [{"id": 257, "text": "</s>", "sources": []}, {"id": 258, "text": "<|user|>", "sources": []}]
    made = export(small(tmp_path / "b", stops=stops), system, tmp_path / "out")
    assert any("does not end an answer at <|user|>:" in each for each in made.differs)
    assert record(tmp_path / "out")["differs"] == list(made.differs)


def test_the_variant_that_is_asked_for_goes_out(tmp_path: Path) -> None:
    made = export(small(tmp_path / "b"), "llamacpp", tmp_path / "out", variant="gguf-f16")
    assert made.variant == record(tmp_path / "out")["variant"] == "gguf-f16"


def test_a_proven_variant_goes_before_a_smaller_one(tmp_path: Path) -> None:
    bundle = small(tmp_path / "b", unproven=("gguf-q4_0",))
    assert export(bundle, "llamacpp", tmp_path / "out").variant == "gguf-f16"


def test_what_the_bundle_does_not_hold_is_said_with_what_it_does(tmp_path: Path) -> None:
    bundle = small(tmp_path / "b", ids=("mlx-4bit",))
    with pytest.raises(UsageError, match=r"has no variant for llamacpp, which takes gguf\.") as caught:
        export(bundle, "llamacpp", tmp_path / "out")
    assert caught.value.hint == "It holds: mlx-4bit. A build makes one with --target gguf."
    with pytest.raises(UsageError, match="llamacpp takes no variant of mlx"):
        export(bundle, "llamacpp", tmp_path / "out", variant="mlx-4bit")
    with pytest.raises(UsageError, match="No system is called 'else'"):
        export(bundle, "else", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_source_is_nothing_for_a_variant(tmp_path: Path) -> None:
    bundle = small(tmp_path / "b")
    for named in ({"source": "demo"}, {"adapters": [tmp_path]}):
        with pytest.raises(UsageError, match="llamacpp gets a variant, which the bundle holds") as caught:
            export(bundle, "llamacpp", tmp_path / "out", **named)
        assert caught.value.hint == "Leave --source and --adapter out."


@pytest.mark.parametrize("system", ["llamacpp", "mlx", "ort-genai"])
def test_a_damaged_payload_leaves_nothing(tmp_path: Path, system: str) -> None:
    bundle = small(tmp_path / "b")
    for name in ("gguf-q4_0/model.gguf", "mlx-4bit/model.safetensors", "onnx-int4/model.onnx.data"):
        place = bundle / "variants" / name
        place.write_bytes(bytes([place.read_bytes()[0] ^ 1]) + place.read_bytes()[1:])
    with pytest.raises(BundleDamagedError, match="its sha256 differs"):
        export(bundle, system, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_force_replaces_an_export_and_nothing_else(tmp_path: Path) -> None:
    bundle, out = small(tmp_path / "b"), tmp_path / "out"
    export(bundle, "mlx", out)
    with pytest.raises(OutputExistsError, match="exists already"):
        export(bundle, "llamacpp", out)
    export(bundle, "llamacpp", out, force=True)
    assert "model.gguf" in names(out)
    with pytest.raises(OutputExistsError, match=r"has no edgepack-export.json, and --force replaces nothing else"):
        export(bundle, "llamacpp", bundle, force=True)


def test_a_graph_of_another_exporter_is_nothing_for_genai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS, "onnx-f32", {"model.onnx": b"graph", "model.onnx.data": b"data"})
    bundle = small(tmp_path / "b", ids=("onnx-f32",))
    with pytest.raises(UsageError, match=r"onnx-f32 has no genai_config\.json"):
        export(bundle, "ort-genai", tmp_path / "out")


def test_the_command_says_what_is_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(small(tmp_path / "b")), "--to", "mlx", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "otherwise: mlx-lm samples by its own defaults" in said
    assert "mlx_lm.chat --model ." in said
