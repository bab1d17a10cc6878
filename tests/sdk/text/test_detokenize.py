"""Tokens to text one at a time: the same text as all at once, and only a character withheld that is not complete."""

from __future__ import annotations

import tiny_tokenizers as tiny
from endings import whole
from hypothesis import given
from hypothesis import strategies as st

from edgepack.text.detokenize import Detokenizer
from edgepack.text.tokenizer import Tokenizer

# In this vocabulary the token 3 + b is the byte b.
TOKENIZER = Tokenizer.from_json(tiny.sentencepiece(), 1, False)
PARTS = [b"\xe2\x82\xac", b"\xf0\x9f\x98\x80", b"\xe2\x82", b"\xf0\x9f", b"\xed\xa0\x80", b"\xc0", b"\xf4\x90", b"\x80"]
TRICKY = st.lists(st.sampled_from([*PARTS, b"a", b" ", b"\xff"]), max_size=12).map(b"".join)
BYTES = st.binary(max_size=30) | TRICKY


@given(BYTES)
def test_the_pieces_joined_are_the_whole_characters(data: bytes) -> None:
    detokenizer = Detokenizer(TOKENIZER, at_start=False)
    pieces = [detokenizer.push(3 + byte) for byte in data]
    assert "".join(pieces) == whole(data)
    assert detokenizer.unfinished == (whole(data) != data.decode(errors="replace"))


@given(BYTES)
def test_only_the_beginning_of_a_character_is_withheld(data: bytes) -> None:
    detokenizer = Detokenizer(TOKENIZER, at_start=False)
    shown = ""
    for length, byte in enumerate(data, start=1):
        shown += detokenizer.push(3 + byte)
        assert any(
            shown == data[: length - held].decode(errors="replace") and _unfinished(data[length - held : length])
            for held in range(4)
        )


def _unfinished(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        # CPython waits for the third byte of an encoded surrogate before it gives up on the first two.
        surrogate = len(data) == 2 and data[0] == 0xED and data[1] in range(0xA0, 0xC0)
        return (error.start == 0 and error.reason == "unexpected end of data") or surrogate
    return data == b""


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_a_whole_text_streams_as_it_decodes(text: str) -> None:
    ids = TOKENIZER.encode(text)
    detokenizer = Detokenizer(TOKENIZER)
    assert "".join(map(detokenizer.push, ids)) == TOKENIZER.decode(ids)
    assert not detokenizer.unfinished


def test_the_first_space_stays_after_a_text() -> None:
    first, *rest = TOKENIZER.encode("the sea")
    after, alone = Detokenizer(TOKENIZER, at_start=False), Detokenizer(TOKENIZER, at_start=True)
    assert "".join(map(after.push, [first, *rest])) == " the sea"
    assert "".join(map(alone.push, [first, *rest])) == "the sea"


def test_only_one_space_is_dropped_and_special_tokens_do_not_count() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.push(token) for token in (1, 3 + 0x20, 3 + 0x20, 3 + 0x61)] == ["", "", " ", "a"]


def test_byte_level_tokenizers_keep_their_spaces() -> None:
    tokenizer = Tokenizer.from_json(tiny.byte_level(), None, False)
    assert "".join(map(Detokenizer(tokenizer).push, tokenizer.encode(" the sea"))) == " the sea"
