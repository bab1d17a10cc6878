"""A checkpoint whose files say something odd is refused in one sentence that names the file and the field."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import make_llama

from edgepack.errors import BuildError, SourceError
from edgepack_packager.checkpoint.strictjson import MAX_BYTES, MAX_DEPTH, parse_object, read_bytes
from edgepack_packager.prepare import prepare
from edgepack_packager.progress import Silent
from edgepack_packager.recipe import Recipe

Edit = Callable[[dict[str, Any]], object]

ODD: list[tuple[str, Edit, str]] = [
    ("config.json", lambda said: said.update(x="\ud800"), r"config\.json: x holds half of a surrogate pair"),
    ("config.json", lambda said: said.update({"\udfff": 1}), r"config\.json: the top holds half"),
    ("config.json", lambda said: said.update(num_hidden_layers=10**7), "num_hidden_layers is 10000000, more than 512"),
    ("tokenizer_config.json", lambda said: said.update(bos_token={}), "bos_token must be text"),
    ("tokenizer_config.json", lambda said: said.update(eos_token={"x": 1}), "eos_token must be text"),
    ("special_tokens_map.json", lambda said: said.update(eos_token=[1]), "eos_token must be text"),
    ("tokenizer_config.json", lambda said: said.update(chat_template=[{"name": []}]), "text or a list of named"),
    ("tokenizer.json", lambda said: said["post_processor"].update(special_tokens={}), "its special_tokens lack"),
    ("tokenizer.json", lambda said: said["post_processor"].update(single=[]), "leaves out the text itself"),
    ("tokenizer.json", lambda said: said["model"].update(continuing_subword_prefix=9 * "x"), "is not a tokenizer"),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_llama(tmp_path / "source", add_bos=True)


def refuse(place: Path | str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as refused:
        prepare(str(place), Recipe(("gguf",), ("q8",), unproven=True), None, Silent())
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(("name", "edit", "message"), ODD)
def test_an_odd_field_is_named(name: str, edit: Edit, message: str, source: Path) -> None:
    said = json.loads((source / name).read_text("utf-8"))
    edit(said)
    (source / name).write_text(json.dumps(said))
    refuse(source, message)


def test_a_value_is_quoted_as_far_as_anybody_reads(source: Path) -> None:
    said = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(said | {"rms_norm_eps": 100_000 * "x"}))
    refuse(source, r"rms_norm_eps must be .*x \.\.\. x")


def test_an_unknown_token_that_is_none_does_not_matter(source: Path) -> None:
    said = json.loads((source / "tokenizer.json").read_text())
    said["model"]["unk_token"] = "<nothing>"
    (source / "tokenizer.json").write_text(json.dumps(said))
    prepare(str(source), Recipe(("gguf",), ("q8",), unproven=True), None, Silent())


@pytest.mark.parametrize("name", ["special_tokens_map.json", "tokenizer_config.json"])
def test_a_damaged_file_is_named_whether_or_not_it_would_decide(name: str, source: Path) -> None:
    (source / name).write_bytes(b'{"bos_token"')
    refuse(source, rf"{re.escape(name)} is not valid JSON")


def test_nesting_is_bounded_on_every_interpreter() -> None:
    def nested(levels: int) -> bytes:
        return b'{"x":' * (levels - 1) + b"{}" + b"}" * (levels - 1)

    parse_object(nested(MAX_DEPTH), "config.json")
    for levels in (MAX_DEPTH + 1, 2000, 200_000):
        with pytest.raises(SourceError, match=f"config.json is nested deeper than {MAX_DEPTH} levels"):
            parse_object(nested(levels), "config.json")


def test_a_pair_of_escapes_is_one_character() -> None:
    assert parse_object(rb'{"x": "\ud83d\ude00"}', "config.json") == {"x": "\N{GRINNING FACE}"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_a_pipe_is_not_waited_for(name: str, source: Path) -> None:
    (source / name).unlink()
    os.mkfifo(source / name)
    with pytest.raises(SourceError, match=rf"{re.escape(name)} is no plain file"):
        read_bytes(source / name)


def test_a_file_that_is_too_large_is_not_read(source: Path) -> None:
    for name in ("config.json", "README.md", "LICENSE"):
        kept = (source / name).read_bytes() if (source / name).exists() else b""
        with open(source / name, "wb") as file:
            file.truncate(MAX_BYTES + 1)
        refuse(source, rf"{re.escape(name)} has {MAX_BYTES + 1} bytes")
        (source / name).write_bytes(kept)


@pytest.mark.parametrize("name", [3000 * "x", "x/" * 3000, "~nobody-is-called-this/x"])
def test_a_name_that_is_no_path_is_refused(name: str) -> None:
    refuse(name, "cannot be read|is neither a folder nor a model")


def test_an_output_that_is_no_path_is_refused(source: Path) -> None:
    with pytest.raises(BuildError, match="Cannot write beside"):
        prepare(str(source), Recipe(("gguf",), ("q8",), unproven=True), Path(3000 * "x"), Silent())
