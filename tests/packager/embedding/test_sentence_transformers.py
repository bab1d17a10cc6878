"""What the files of sentence-transformers say is read, and what is not understood is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_models import MODELS, PROMPTS, make_embedding

from edgepack.errors import SourceError
from edgepack_packager.checkpoint.safetensors import SafetensorsFile
from edgepack_packager.text import sentence_transformers

Change = Callable[[Any], object]


@pytest.mark.parametrize(
    ("name", "pooling", "normalized", "prompts", "default"),
    [
        ("last", "last", True, PROMPTS, None),
        ("mean", "mean", False, PROMPTS, "query"),
        ("first", "first", True, {}, None),
    ],
)
def test_it_is_read(
    name: str, pooling: str, normalized: bool, prompts: dict[str, str], default: str | None, tmp_path: Path
) -> None:
    found, dense = sentence_transformers.read(MODELS[name](tmp_path), 64, (0,))
    assert dense == []
    assert (found.pooling, found.normalized, found.prompts, found.default_prompt) == (
        pooling,
        normalized,
        prompts,
        default,
    )
    assert (found.size, found.ends, found.similarity) == (64, [0], "cosine")


def test_files_that_say_no_more_may_be_missing(tmp_path: Path) -> None:
    folder = make_embedding(tmp_path)
    (folder / "config_sentence_transformers.json").unlink()
    found, _ = sentence_transformers.read(folder, 64, ())
    assert (found.prompts, found.similarity, sentence_transformers.longest(folder)) == ({}, "cosine", None)


def test_the_newer_spellings_mean_the_same(tmp_path: Path) -> None:
    folder = make_embedding(tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    for module, kind in zip(
        modules, ("transformer.Transformer", "pooling.Pooling", "normalize.Normalize"), strict=True
    ):
        module["type"] = f"sentence_transformers.sentence_transformer.modules.{kind}"
    (folder / "modules.json").write_text(json.dumps(modules))
    newer = {"embedding_dimension": 64, "pooling_mode": "lasttoken", "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(newer))
    found, _ = sentence_transformers.read(folder, 64, ())
    assert (found.pooling, found.normalized) == ("last", True)


def several(said: dict[str, Any]) -> None:
    said["pooling_mode_mean_tokens"] = True


def none(said: dict[str, Any]) -> None:
    said["pooling_mode_lasttoken"] = False


def by_max(said: dict[str, Any]) -> None:
    none(said)
    said["pooling_mode_max_tokens"] = True


def layer_norm(said: list[Any]) -> None:
    said.insert(2, {"idx": 2, "name": "2", "path": "2_LayerNorm", "type": "sentence_transformers.models.LayerNorm"})


def custom(said: list[Any]) -> None:
    said[0]["type"] = "custom_st.Transformer"


def elsewhere(said: list[Any]) -> None:
    said[1]["path"] = "../1_Pooling"


def in_a_folder(said: list[Any]) -> None:
    said[0]["path"] = "0_Transformer"


FAULTS: list[tuple[str, Change, str]] = [
    ("1_Pooling/config.json", several, "pools by mean_tokens and lasttoken"),
    ("1_Pooling/config.json", none, "pools by nothing"),
    ("1_Pooling/config.json", by_max, "pools by max_tokens"),
    ("1_Pooling/config.json", lambda said: said.update(include_prompt=False), "include_prompt is False"),
    ("1_Pooling/config.json", lambda said: said.update(word_embedding_dimension=32), "not the hidden size, 64"),
    ("1_Pooling/config.json", lambda said: said.update(weights=[1]), r"weights is \[1\]"),
    ("modules.json", layer_norm, "LayerNorm"),
    ("modules.json", custom, "custom_st.Transformer"),
    ("modules.json", elsewhere, "the name of a folder"),
    ("modules.json", in_a_folder, "0_Transformer"),
    ("modules.json", lambda said: said.clear(), "no module"),
    ("config_sentence_transformers.json", lambda said: said.update(truncate_dim=32), "truncate_dim is 32"),
    ("config_sentence_transformers.json", lambda said: said.update(similarity_fn_name="manhatten"), "manhatten"),
    ("config_sentence_transformers.json", lambda said: said.update(default_prompt_name="q"), "one of the prompts"),
    ("config_sentence_transformers.json", lambda said: said.update(prompts={"query": 1}), "texts by their names"),
]


@pytest.mark.parametrize(("file", "change", "said"), FAULTS)
def test_what_is_not_understood_is_refused(file: str, change: Change, said: str, tmp_path: Path) -> None:
    path = make_embedding(tmp_path) / file
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(SourceError, match=said) as raised:
        sentence_transformers.read(tmp_path, 64, ())
    assert file.rpartition("/")[2] in str(raised.value)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"do_lower_case": True}, "do_lower_case"),
        ({"max_seq_length": 0}, "max_seq_length"),
        ({"max_seq_length": float("nan")}, "max_seq_length"),
        ({"tokens": 3}, "tokens is 3"),
        ({"transformer_task": "text-generation"}, "transformer_task is 'text-generation'"),
        ({"modality_config": {"text": {"method": "forward"}}}, "modality_config is"),
    ],
)
def test_what_else_would_be_done_to_a_text_is_refused(said: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = make_embedding(tmp_path)
    (folder / "sentence_bert_config.json").write_text(json.dumps(said))
    with pytest.raises(SourceError, match=why):
        sentence_transformers.longest(folder)


def test_the_longest_text(tmp_path: Path) -> None:
    folder = make_embedding(tmp_path)
    said = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    said |= {"modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(said))
    assert sentence_transformers.longest(folder) is None
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 300}))
    assert sentence_transformers.longest(folder) == 300
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 100, "do_lower_case": False}))
    assert sentence_transformers.longest(folder) == 100


def test_dense_matrices_are_read(tmp_path: Path) -> None:
    found, dense = sentence_transformers.read(MODELS["gemma"](tmp_path), 96, ())
    assert (found.pooling, found.size, found.normalized) == ("mean", 64, True)
    assert (
        [(each.rows, each.columns) for each in found.dense] == [each.shape for each in dense] == [(160, 96), (64, 160)]
    )
    with closing(SafetensorsFile(tmp_path / "3_Dense" / "model.safetensors")) as file:
        assert np.array_equal(dense[1], file.rows("linear.weight", 0, 64))


DENSE: list[tuple[str, Change, str]] = [
    ("2_Dense/config.json", lambda said: said.update(bias=True), "bias is True"),
    ("2_Dense/config.json", lambda said: said.update(activation_function="torch.nn.modules.activation.Tanh"), "Tanh"),
    ("2_Dense/config.json", lambda said: said.update(out_features=161), "linear.weight of"),
    ("3_Dense/config.json", lambda said: said.update(module_input_name="x"), "module_input_name is 'x'"),
]


@pytest.mark.parametrize(("file", "change", "said"), DENSE)
def test_other_dense_modules_are_refused(file: str, change: Change, said: str, tmp_path: Path) -> None:
    path = MODELS["gemma"](tmp_path) / file
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(SourceError, match=said):
        sentence_transformers.read(tmp_path, 96, ())


def test_a_norm_is_one_of_the_vector(tmp_path: Path) -> None:
    folder = make_embedding(tmp_path)
    (folder / "2_Normalize").mkdir()
    said = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    (folder / "2_Normalize" / "config.json").write_text(json.dumps(said))
    assert sentence_transformers.read(folder, 64, ())[0].normalized
    (folder / "2_Normalize" / "config.json").write_text(json.dumps({**said, "module_input_name": "token_embeddings"}))
    with pytest.raises(SourceError, match=r"2_Normalize/config\.json: module_input_name is 'token_embeddings'"):
        sentence_transformers.read(folder, 64, ())
