"""The token gate: a payload's own tokenizer, held to the bundle's by the engine itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from decoders import describe
from models import make_llama

from edgepack import runtime
from edgepack.device.hardware import detect
from edgepack.errors import EngineError, ProofError
from edgepack.runtime import Tokenizing
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import families
from edgepack_packager.proof import tokens
from edgepack_packager.proof.tokens import Tokens
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf import GgufTarget
from edgepack_packager.text import golden, read_text
from edgepack_packager.text.side import Text


def source_of(folder: Path) -> Text:
    make_llama(folder)
    config = json.loads((folder / "config.json").read_text())
    text = read_text(folder, config, families.describe(config))
    assert text is not None
    return text


def prove(runtime_name: str, variant: Path, text: Text) -> Tokens:
    tokenizer = Tokenizer.from_json(text.files["tokenizer.json"], text.bos, text.add_bos)
    found = tokens.prove(runtime_name, variant, text, golden.vectors(text, tokenizer), tokenizer)
    assert found is not None
    return found


def write_gguf(text: Text, folder: Path, name: str = "model") -> Path:
    """Write a GGUF whose vocabulary is the source's and whose weights are holes in the file."""
    if not runtime.find("gguf").probe(detect()).devices:
        pytest.skip("no gguf engine runs here")
    folder.mkdir()
    ids = [*text.tokenizer["model"]["vocab"].values(), *(added["id"] for added in text.tokenizer["added_tokens"])]
    model = Model(name, describe(n_vocab=max(ids) + 1), "f32", text=text)
    GgufTarget().open(folder, model, "f32").abort()
    return folder


def changed(text: Text, **fields: object) -> Text:
    """The text side with another tokenizer.json."""
    document = dict(text.tokenizer) | fields
    files = dict(text.files) | {"tokenizer.json": json.dumps(document).encode()}
    return Text(files, document, text.bos, text.add_bos, text.stops, text.chat_template)


def test_a_vocabulary_gives_the_ids_of_its_tokenizer(tmp_path: Path) -> None:
    text = source_of(tmp_path / "source")
    found = prove("gguf", write_gguf(text, tmp_path / "gguf-f32"), text)
    assert (found.gate.name, found.gate.value, found.gate.passes) == ("tokens.equal", 1.0, True)
    assert found.figures["left_out"] == {}
    # The battery, and of 381 ordinary tokens those that are no part of a character.
    assert found.figures["compared"] == 31 + 6 + 10 + 253


def swapped_tokens(text: Text) -> Text:
    vocab = dict(text.tokenizer["model"]["vocab"])
    first, second = [word for word in vocab if len(word) > 2][-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    return changed(text, model=text.tokenizer["model"] | {"vocab": vocab})


def without_a_merge(text: Text) -> Text:
    return changed(text, model=text.tokenizer["model"] | {"merges": text.tokenizer["model"]["merges"][1:]})


def an_ordinary_special_token(text: Text) -> Text:
    end, start, *others = text.tokenizer["added_tokens"]
    return changed(text, added_tokens=[end, start | {"special": False}, *others])


@pytest.mark.parametrize("fault", [swapped_tokens, without_a_merge, an_ordinary_special_token])
def test_a_vocabulary_of_another_tokenizer_is_caught(fault: Any, tmp_path: Path) -> None:
    text = source_of(tmp_path / "source")
    variant = write_gguf(fault(text), tmp_path / "gguf-f32")
    with pytest.raises(ProofError, match=r"gguf-f32 failed the proof: tokens\.equal .* gives \[.* tokens of '"):
        prove("gguf", variant, text)


def test_what_the_engine_cannot_do_stands_in_the_evidence(tmp_path: Path) -> None:
    plain = source_of(tmp_path / "source")
    marks = [
        {"id": 384, "content": "<|fim_prefix|>", "special": False},
        {"id": 385, "content": "<think>", "special": False},
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [*plain.tokenizer["added_tokens"], *(flags | mark for mark in marks)]
    text = changed(plain, normalizer={"type": "NFC"}, added_tokens=added)
    found = prove("gguf", write_gguf(text, tmp_path / "gguf-f32"), text)
    left_out: Any = found.figures["left_out"]
    composed = "llama.cpp does not normalise a text, and tokenizer.json composes it first (NFC)"
    assert left_out[composed] == ["e\u0301 o\u0308 \u1e9b\u0323 \uac00\u11a8"]
    # A token of code models is named by a key, or llama.cpp would make it a control token.
    assert not any(mark in words for texts in left_out.values() for words in texts for mark in ("think", "fim"))


def test_a_variant_without_a_vocabulary_of_its_own_has_nothing_to_compare(tmp_path: Path) -> None:
    text = source_of(tmp_path / "source")
    tokenizer = Tokenizer.from_json(text.files["tokenizer.json"], text.bos, text.add_bos)
    assert tokens.prove("onnx", tmp_path, text, golden.vectors(text, tokenizer), tokenizer) is None


def test_an_engine_that_fails_says_why(tmp_path: Path) -> None:
    text = source_of(tmp_path / "source")
    variant = write_gguf(text, tmp_path / "gguf-f32")
    data = (variant / "model.gguf").read_bytes()
    (variant / "model.gguf").write_bytes(data.replace(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0xxxx", 1))
    with pytest.raises(EngineError, match=r"gguf on gguf-f32 failed: .*unknown tokenizer"):
        prove("gguf", variant, text)
    (variant / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match="gguf on gguf-f32 failed"):
        prove("gguf", variant, text)


def test_a_slice_has_no_vocabulary(tmp_path: Path) -> None:
    engine = runtime.find("gguf")
    assert isinstance(engine, Tokenizing)
    write_gguf(source_of(tmp_path / "source"), tmp_path / "gguf-f32")
    GgufTarget().open(tmp_path, Model("slice", describe(), "f32"), "f32").abort()
    with pytest.raises(EngineError, match="has no vocabulary"):
        engine.tokenize(tmp_path, ["x"], special=False)


REAL = [
    ("tokenizers/llama-3.2", set()),
    ("tokenizers/phi-3.5-mini", set()),
    ("tokenizers/smollm2", set()),
    ("models/stories-260K", set()),
    ("tokenizers/qwen3", {"does not normalise", "by its name"}),
]


@pytest.mark.shared
@pytest.mark.parametrize(("folder", "excused"), REAL)
def test_real_vocabularies_give_the_ids_of_their_tokenizers(
    folder: str, excused: set[str], shared: Path, tmp_path: Path
) -> None:
    document = json.loads((shared / folder / "tokenizer.json").read_text())
    files = {path.name: path.read_bytes() for path in (shared / folder).glob("*.json*")}
    text = Text(files, document, None, False, (), None)
    found = prove("gguf", write_gguf(text, tmp_path / "gguf-f32"), text)
    left_out: Any = found.figures["left_out"]
    assert all(any(words in reason for words in excused) for reason in left_out)
    assert sum(map(len, left_out.values())) < 0.01 * len(document["model"]["vocab"])


@pytest.mark.parametrize("explained", [True, False])
def test_words_are_asked_together_until_one_differs(explained: bool) -> None:
    """An engine that reads X otherwise, and Q beside another word; a rule may say so of X."""

    class Letters:
        def encode(self, text: str, *, bos: bool) -> list[int]:
            return [ord(letter) for letter in text]

    asked: list[int] = []

    def ask(cases: Sequence[tokens.Case]) -> list[list[int]]:
        asked.append(len(cases))
        return [
            [0] if "Q\n" in case.text else [ord(letter) * (letter != "X") for letter in case.text] for case in cases
        ]

    def reasons(words: Sequence[str]) -> list[str | None]:
        return ["X is another letter" if explained and "X" in word else None for word in words]

    parts = [["a", "b", "c"], ["a", "Xb", "c", "d", "eX"], ["f"], ["Q", "r", "s", "t"]]
    found = tokens.differing(parts, cast(Any, Letters()), ask, reasons)
    assert [[case.text for case, _ in others] for others in found] == [[], ["Xb", "eX"], [], ["Q\nr"]]
    assert asked == ([4, 5, 2] if explained else [4, 4, 6, 2])
