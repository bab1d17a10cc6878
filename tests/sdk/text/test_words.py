"""Words of a text without the tokenizers library: what tokenizer.json says is read as that library reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny_tokenizers as tiny
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import BundleDamagedError
from edgepack.text.added import Added
from edgepack.text.bpe import Bpe
from edgepack.text.compiling import compile_tokenizer
from edgepack.text.splitting import Item, Step
from edgepack.text.tables import Tables
from edgepack.text.words import Front
from edgepack_packager.checkpoint.gguf.pretokenizers import NAMES

CASES = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s+(?!\S)|\s"
)
WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|.|\n"
)
SIGNS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[一-龥]+|\p{N}{2,}|\p{P}|\S(?=\s)"


def split(expression: str, behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert}


def by_text(text: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"String": text}, "behavior": behavior, "invert": False}


KNOWN = {
    "digits": {"type": "Digits", "individual_digits": True},
    "bytes": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
}
STEPS: dict[str, list[dict[str, Any]]] = {
    "cases": [split(CASES)],
    "words": [split(WORDS, "Removed", invert=True)],
    "between": [split(r"\s+", "Removed")],
    "signs": [split(SIGNS), {"type": "Digits", "individual_digits": True}],
    "digits": [{"type": "Digits", "individual_digits": False}, {"type": "Punctuation", "behavior": "Isolated"}],
    "before": [by_text("aa", "MergedWithPrevious")],
    "after": [by_text("aa", "MergedWithNext")],
    "end": [split(r"\s+$|\s")],
    "none": [],
} | {"/".join(names.values()): [KNOWN.get(part) or split(part) for part in parts] for parts, names in NAMES.items()}
NORMALIZERS: dict[str, Any] = {
    "none": None,
    "nfc": {"type": "NFC"},
    "replace": {"type": "Replace", "pattern": {"String": "aa"}, "content": "b"},
}


@lru_cache
def made(steps: str, normalizer: str, added: bool) -> tuple[tokenizers.Tokenizer, Bpe]:
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document = json.loads(tiny.byte_level())
    whole = [each for each in STEPS[steps] if each["type"] != "ByteLevel"]
    end = plain if len(whole) == len(STEPS[steps]) else KNOWN["bytes"]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*whole, end]}
    document["normalizer"] = NORMALIZERS[normalizer]
    if added:
        flags = {"special": False, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
        more = [{"lstrip": True}, {"rstrip": True}, {"normalized": True}, {"special": True, "rstrip": True}]
        names = ["<l>", "<r>", "aab", "<s>"]
        document["added_tokens"] += [
            {"id": 334 + place, "content": name, **flags, **more[place]} for place, name in enumerate(names)
        ]
    data = json.dumps(document).encode()
    tables = compile_tokenizer(data)
    assert tables.front is not None
    return tokenizers.Tokenizer.from_buffer(data), Bpe(tables)


ODD = "aAbB's\u017f\u212azß  \t\r\n\x0b\x1c\x85\xa0 \u2028\u3000019٣Ⅷ½,.!$^`~«一龥ǅʰऀ́e\u0301é€👩\u200d<>"
TEXTS = st.text(ODD, max_size=30) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMED = st.lists(st.sampled_from(["<l>", "<r>", "aab", "<s>", "<|end|>", "a", " ", "\n", "\x1c", "b"])).map("".join)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS | NAMED, special=st.booleans(), added=st.booleans())
def test_words_are_those_of_the_library(steps: str, normalizer: str, text: str, special: bool, added: bool) -> None:
    library, bpe = made(steps, normalizer, added)
    library.encode_special_tokens = not special
    assert bpe.encode(text, special=special) == library.encode(text, add_special_tokens=False).ids


REAL = ["tokenizers/llama-3.2", "tokenizers/phi-3.5-mini", "tokenizers/qwen3", "tokenizers/smollm2"]


@pytest.mark.shared
@pytest.mark.parametrize("place", REAL)
def test_characters_are_what_they_are_for_the_library(place: str, shared: Path) -> None:
    compare(shared / place, [chr(code) for code in (*range(0x3000), *range(0x3000, 0x33500, 29)) if is_character(code)])


@pytest.mark.hostile
@pytest.mark.shared
@pytest.mark.parametrize("place", REAL)
def test_every_character_is(place: str, shared: Path, portion: Callable[[int], int]) -> None:
    every = [chr(code) for code in (*range(0x33500), *range(0xE0000, 0xE0200)) if is_character(code)]
    compare(shared / place, every[: portion(len(every))])


def is_character(code: int) -> bool:
    """Whether it is no half of a surrogate pair."""
    return not 0xD800 <= code < 0xE000


def compare(place: Path, every: Sequence[str]) -> None:
    """Assert that characters give the ids of the library, in the midst of others."""
    data = (place / "tokenizer.json").read_bytes()
    library, tables = tokenizers.Tokenizer.from_buffer(data), compile_tokenizer(data)
    assert tables.front is not None
    bpe = Bpe(tables)
    texts = ["".join(f"a{char}1 {char}\n" for char in every[at : at + 4096]) for at in range(0, len(every), 4096)]
    for text, wanted in zip(texts, library.encode_batch(texts, add_special_tokens=False), strict=True):
        assert bpe.encode(text, special=True) == wanted.ids


def metaspace(scheme: str, *, split: bool) -> bytes:
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    return tiny.changed(tiny.sentencepiece(), normalizer=None, pre_tokenizer=step)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_spaces_are_those_of_the_library(scheme: str, split: bool) -> None:
    data = metaspace(scheme, split=split)
    library, tables = tokenizers.Tokenizer.from_buffer(data), compile_tokenizer(data)
    assert tables.front is not None
    bpe = Bpe(tables)
    for text in ("the sea", " the  sea ", "▁the▁▁sea", "<s>the sea<s> a", "a<s>b", "<s>", "", " ", "東京 €"):
        assert bpe.encode(text, special=True) == library.encode(text, add_special_tokens=False).ids


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    "fields",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, {"type": "Digits"}]}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        *({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(each), BYTE_LEVEL]}} for each in (
            r"^a|b",
            r"(a+)+b",
            r"(?:a+)?b",
            r"a+?",
            r"a{2,3}?",
            r"(?i:ss|x)",
            r"(?i:é)",
            r"(?<=a)b",
            r"\bb",
            r"a*",
            r"a+b+c+d",
        )),
    ],
)  # fmt: skip
def test_what_is_not_known_is_left_to_the_library(fields: dict[str, Any]) -> None:
    document = json.loads(tiny.byte_level()) | fields
    if (step := document["pre_tokenizer"]) and "pretokenizers" in step:
        for each in step["pretokenizers"]:
            if each["type"] == "Digits":
                each["individual_digits"] = True
    data = json.dumps(document).encode()
    tables = compile_tokenizer(data)
    assert tables.front is None
    library = tokenizers.Tokenizer.from_buffer(data)
    for text in ("aab ss ﬆ É 12", "Straße aaab"):
        assert Bpe(tables).encode(text, special=True) == library.encode(text, add_special_tokens=False).ids


def with_front(**fields: object) -> Tables:
    tables = compile_tokenizer(tiny.byte_level())
    assert tables.front is not None
    return msgspec.structs.replace(tables, front=msgspec.structs.replace(tables.front, **fields))


def steps(*items: Item) -> dict[str, object]:
    return {"steps": [Step([[*items]])]}


A = "\u0100"


@pytest.mark.parametrize(
    "fields",
    [
        {"symbols": ""},
        {"symbols": A},
        {"starts": memoryview(b"\x01\x00\x00\x00").cast("I"), "symbols": A},
        {"bytes": [0]},
        {"letters": {"ab": 1}},
        {"added": [Added("", 1)]},
        steps(Item(A, 0, 0)),
        steps(Item(A, 1, 0), Item(A, 1, 0), Item(A, 1, 0)),
        steps(Item(A, 5, 2)),
        steps(Item(A, 1, 65)),
        steps(Item(choices=[[Item(A, 1, 0)]])),
        steps(Item(choices=[[Item(A)]], most=0)),
        steps(Item()),
        steps(Item(A, ahead="is", choices=[[Item(A)]])),
    ],
)
def test_a_front_that_could_not_work_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BundleDamagedError, match=r"tokenizer\.bin is damaged"):
        Bpe(with_front(**fields))


def test_a_front_is_what_the_file_says() -> None:
    front = compile_tokenizer(tiny.byte_level()).front
    assert isinstance(front, Front)
    assert max(front.ids()) < 340
