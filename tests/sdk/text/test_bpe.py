"""The compiled tokenizer against the tokenizers library, whatever part of the merges is left to that."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny_tokenizers as tiny
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import BundleDamagedError, BundleError, ProofError, UnsupportedModelError
from edgepack.text import tables as tokenizer_tables
from edgepack.text.bpe import Bpe
from edgepack.text.compiling import FIRST, compile_tokenizer
from edgepack.text.tables import Tables
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.text.compiled import prove

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(
    st.sampled_from([*" ".join(tiny.LINES).split(" "), " ", "  ", "\n", "<|end|>", "<s>", "▁", "▁▁", "é è", "<0x41>"]),
    max_size=12,
).map("".join)


def whole_words() -> bytes:
    """A byte-level tokenizer that takes a word whole where it is a token, which no merge makes."""
    document = json.loads(tiny.byte_level())
    vocab = document["model"]["vocab"]
    first = max(vocab.values()) + 10  # behind the added tokens, with a gap
    vocab |= {word: first + place for place, word in enumerate(["Ġlittle", "zebra", "she", "theĠsea"])}
    document["model"] |= {"ignore_merges": True, "vocab": vocab}
    return json.dumps(document).encode()


def within_words() -> bytes:
    """A SentencePiece-style tokenizer without a merge that reaches over the beginning of a word, as real ones are."""
    document = json.loads(tiny.sentencepiece())
    merges = document["model"]["merges"]
    document["model"]["merges"] = [
        [left, right] for left, right in merges if left.endswith("▁") or not right.startswith("▁")
    ]
    return json.dumps(document).encode()


def old_merges() -> bytes:
    """Merges as "a b", as tokenizers before 0.20 writes them."""
    document = json.loads(tiny.byte_level())
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    return json.dumps(document).encode()


KINDS = [tiny.byte_level, tiny.sentencepiece, whole_words, within_words, old_merges]


@lru_cache
def both(kind: Callable[[], bytes], first: int | None) -> tuple[tokenizers.Tokenizer, Bpe]:
    """The library, and what makes words by itself (None) or leaves them and the first merges to the library."""
    tables = compile_tokenizer(kind()) if first is None else compile_tokenizer(kind(), first, library=True)
    assert (tables.front is None) == (first is not None)
    return tokenizers.Tokenizer.from_buffer(kind()), Bpe(tables)


@pytest.mark.parametrize("first", [None, 0, 7, FIRST])
@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, special=st.booleans())
def test_it_gives_the_ids_of_the_library(
    kind: Callable[[], bytes], first: int | None, text: str, special: bool
) -> None:
    library, bpe = both(kind, first)
    library.encode_special_tokens = not special
    assert bpe.encode(text, special=special) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("first", [None, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_word_may_be_as_long_as_a_text(kind: Callable[[], bytes], first: int | None) -> None:
    library, bpe = both(kind, first)
    for text in ("a" * 5000, "theseahello" * 500, "▁" * 999, " " * 999):
        assert bpe.encode(text, special=False) == library.encode(text, add_special_tokens=False).ids


def test_words_are_told_apart_where_no_merge_reaches_over() -> None:
    assert compile_tokenizer(within_words()).splits
    assert not compile_tokenizer(tiny.sentencepiece()).splits
    assert not compile_tokenizer(tiny.byte_level()).splits  # its library splits


def test_every_token_has_the_text_of_the_vocabulary() -> None:
    for kind in KINDS:
        library, bpe = both(kind, 7)
        vocab = library.get_vocab(with_added_tokens=True)
        assert {bpe.text(id).decode(): id for id in range(max(vocab.values()) + 99) if bpe.text(id)} == vocab
        assert bpe.text(-1) == b""


def test_the_file_gives_the_same_tables() -> None:
    tables = compile_tokenizer(tiny.byte_level(), 7)
    data = tokenizer_tables.encode(tables)
    assert tokenizer_tables.decode(data) == tables
    assert tokenizer_tables.encode(compile_tokenizer(tiny.byte_level(), 7)) == data


def test_a_damaged_file_is_refused() -> None:
    data = tokenizer_tables.encode(compile_tokenizer(tiny.byte_level()))
    fields: dict[str, Any] = msgspec.msgpack.decode(data)
    odd = msgspec.msgpack.encode(fields | {"ids": fields["ids"][:-1]})
    for damaged in (b"", data[:-1], b"\xc1" + data, msgspec.msgpack.encode({"rest": ""}), odd):
        with pytest.raises(BundleDamagedError, match=r"tokenizer\.bin is damaged"):
            tokenizer_tables.decode(damaged)


def words(values: list[int], format: str = "I") -> bytes:
    return np.array(values, f"<u{4 if format == 'I' else 8}").tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"n_tokens": 0},
        {"n_tokens": 10**6},
        {"ends": b""},
        {"ends": words([9, 3, 20])},
        {"ends": words([0, 2**32 - 1])},
        {"texts": b"\xff" * 20},
        {"texts": b"a" * 2000, "ends": words([2000])},
        {"texts": "é".encode(), "ends": words([1, 2])},
        {"ids": words([2**32 - 1])},
        {"joined": words([2**31] * 72)},
        {"ranks": b""},
        {"pairs": words([1] * 72, "Q")},
        {"pairs": words([place << 40 for place in range(72)], "Q")},
        {"pairs": words([2**32 - 1 - place for place in range(72)][::-1], "Q")},
        {"sorted": words([10**6])},
    ],
)
def test_tables_that_do_not_fit_together_are_refused(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = msgspec.msgpack.decode(tokenizer_tables.encode(compile_tokenizer(tiny.byte_level())))
    assert len(fields["ranks"]) == 72 * 4
    with pytest.raises(BundleDamagedError, match=r"tokenizer\.bin is damaged"):
        tokenizer_tables.decode(msgspec.msgpack.encode(fields | changes))


def test_a_token_has_a_longest_length() -> None:
    tables = compile_tokenizer(tiny.byte_level())
    room = tokenizer_tables.LONGEST - (tables.ends[-1] - tables.ends[-2])

    def longer(more: int) -> bytes:
        ends = [*tables.ends[:-1], tables.ends[-1] + more]
        changed = {"texts": bytes(tables.texts) + b"a" * more, "ends": words(ends)}
        return msgspec.msgpack.encode(msgspec.msgpack.decode(tokenizer_tables.encode(tables)) | changed)

    assert tokenizer_tables.decode(longer(room)).n_tokens == tables.n_tokens
    with pytest.raises(BundleDamagedError, match="more than 1024 bytes"):
        tokenizer_tables.decode(longer(room + 1))


def rest(**changes: Any) -> str:
    return json.dumps(json.loads(compile_tokenizer(tiny.byte_level(), library=True).rest) | changes)


GROWS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        rest(added_tokens=[{"id": 10**6, "content": "<s>", "special": True}]),
        rest(model={"type": "BPE", "vocab": {"a": 10**9}, "merges": []}),
        rest(normalizer={"type": "Sequence", "normalizers": [GROWS, GROWS]}),
        rest(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
    ],
)
def test_a_remainder_that_is_no_tokenizer_is_refused(text: str) -> None:
    tables = msgspec.structs.replace(compile_tokenizer(tiny.byte_level(), library=True), rest=text)
    with pytest.raises(BundleError):
        Tokenizer(tables, None, False)


def test_a_regular_expression_without_end_is_an_error_of_the_bundle(capfd: pytest.CaptureFixture[str]) -> None:
    endless = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tables = compile_tokenizer(tiny.byte_level(), library=True)
    tables = msgspec.structs.replace(tables, rest=rest(pre_tokenizer=endless))
    with pytest.raises(BundleDamagedError, match="the tokenizers library says"):
        Tokenizer(tables, None, False).encode("a" * 40 + "b")
    capfd.readouterr()  # a panic writes where it happened


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "a model of type WordLevel"),
        ({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}, "a model of type Unigram"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}, "BPE with dropout"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}, "BPE with end_of_word_suffix"),
    ],
)
def test_another_model_is_refused_by_name(model: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{why} is not supported"):
        compile_tokenizer(tiny.changed(tiny.byte_level(), model=model, added_tokens=[]))


def exchanged(tables: Tables) -> Tables:
    ids = memoryview(tables.joined.tobytes()[4:8] + tables.joined.tobytes()[:4] + tables.joined.tobytes()[8:])
    return msgspec.structs.replace(tables, joined=ids.cast("I"))


def without_last(tables: Tables) -> Tables:
    highest = max(tables.ranks)
    kept = [place for place, rank in enumerate(tables.ranks) if rank != highest]
    arrays = {
        name: memoryview(b"".join(getattr(tables, name)[place : place + 1].tobytes() for place in kept)).cast(format)
        for name, format in (("pairs", "Q"), ("ranks", "I"), ("joined", "I"))
    }
    return msgspec.structs.replace(tables, **arrays)


def never_whole(tables: Tables) -> Tables:
    return msgspec.structs.replace(tables, sorted=tables.sorted[:0])


def split_wrongly(tables: Tables) -> Tables:
    return msgspec.structs.replace(tables, splits=True)


def other_words(tables: Tables) -> Tables:
    assert tables.front is not None
    return msgspec.structs.replace(tables, front=msgspec.structs.replace(tables.front, steps=[]))


def unchanged(tables: Tables) -> Tables:
    assert tables.front is not None
    return msgspec.structs.replace(tables, front=msgspec.structs.replace(tables.front, changes=[]))


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (tiny.byte_level, exchanged),
        (tiny.sentencepiece, exchanged),
        (tiny.sentencepiece, without_last),
        (whole_words, never_whole),
        (tiny.sentencepiece, split_wrongly),
        (whole_words, other_words),
        (tiny.sentencepiece, unchanged),
    ],
)
def test_the_proof_finds_a_fault(kind: Callable[[], bytes], fault: Callable[[Tables], Tables]) -> None:
    tables = compile_tokenizer(kind(), 0, library=fault is split_wrongly)
    prove(kind(), tables)
    with pytest.raises(ProofError, match=r"tokenizer\.bin failed the proof: it gives"):
        prove(kind(), fault(tables))
