"""Published tokenizers of other families: the compiled form and a GGUF's vocabulary give the ids of tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from decoders import describe

from edgepack import runtime
from edgepack.device.hardware import detect
from edgepack.text.tables import FILE, decode
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.proof import tokens
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf import GgufTarget
from edgepack_packager.text import entries, golden, read_text
from edgepack_packager.text.compiled import compiled

pytestmark = pytest.mark.real


@pytest.mark.parametrize(("name", "pre"), [("deepseek_v3", "deepseek-v3"), ("llama3_1", "llama-bpe")])
def test_a_published_tokenizer_is_read_exactly(
    name: str, pre: str, published: Callable[[str], Path], tmp_path: Path
) -> None:
    if not runtime.find("gguf").probe(detect()).devices:
        pytest.skip("no gguf engine runs here")
    folder = published(name)
    rows = max(entries(json.loads((folder / "tokenizer.json").read_text()))) + 1
    text = read_text(folder, {}, describe(n_vocab=rows))
    assert text is not None
    text = compiled(text)  # which compares it with the tokenizers library
    ours = Tokenizer(decode(text.files[FILE]), text.bos, text.add_bos)
    GgufTarget().open(tmp_path, Model(name, describe(n_vocab=rows), "f32", text=text), "f32").abort()
    assert f"\0{pre}".encode() in (tmp_path / "model.gguf").read_bytes()
    found = tokens.prove("gguf", tmp_path, text, golden.vectors(text, ours), ours)
    assert found is not None
    assert found.figures["left_out"] == {}
