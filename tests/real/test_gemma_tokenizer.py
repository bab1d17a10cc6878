"""Gemma 3's published tokenizer: 262,145 tokens for 262,144 rows, runs of spaces among the added ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from decoders import describe

from edgepack import runtime
from edgepack.device.hardware import detect
from edgepack.runtime import Tokenizing
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.proof import tokens
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf import GgufTarget
from edgepack_packager.text import golden, read_text
from edgepack_packager.text.side import Text

pytestmark = pytest.mark.real
ROWS = 262144
SPACES = "\N{LOWER ONE EIGHTH BLOCK}"


@pytest.fixture(scope="module")
def text(published: Callable[[str], Path]) -> Text:
    """Gemma's text side as a build reads it."""
    found = read_text(published("gemma3"), {"eos_token_id": [1, 106], "bos_token_id": 2}, describe(n_vocab=ROWS))
    assert found is not None
    return found


def test_the_mark_without_a_row_is_left_out(text: Text) -> None:
    names = {token["content"]: token["id"] for token in text.tokenizer["added_tokens"]}
    assert max(names.values()) < ROWS
    assert "<image_soft_token>" not in names
    assert text.stops == (1, 106)
    assert (text.bos, text.add_bos) == (2, True)


def test_llama_cpp_gives_the_same_ids(text: Text, tmp_path: Path) -> None:
    """For every token's text, and for runs of white space of every length up to twice the longest token's."""
    engine = runtime.find("gguf")
    if not engine.probe(detect()).devices:
        pytest.skip("no gguf engine runs here")
    assert isinstance(engine, Tokenizing)
    GgufTarget().open(tmp_path, Model("gemma", describe(n_vocab=ROWS), "f32", text=text), "f32").abort()
    ours = Tokenizer.from_json(text.files["tokenizer.json"], text.bos, text.add_bos)
    runs = [f"a{mark * length}b c{mark * length}" for mark in " \n\t" for length in range(70)]
    assert engine.tokenize(tmp_path, runs, special=False) == [ours.encode(run, bos=False) for run in runs]
    found = tokens.prove("gguf", tmp_path, text, golden.vectors(text, ours), ours)
    assert found is not None
    left_out: Any = found.figures["left_out"]
    # Both are about what a text rarely holds: the block character itself, and HTML's </s>, which ends other models.
    assert {re.sub(" a text.*| a control token.*", "", reason) for reason in left_out} == {
        f"llama.cpp reads {SPACES} in",
        "llama.cpp takes </s> for",
    }
    assert max(map(len, left_out.values())) <= 12
