"""A prompt in the tokens of a cache: the same bytes between the same added tokens, whatever both were made of."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny_tokenizers
from hypothesis import given
from hypothesis import strategies as st

from edgepack.prefix import common_length
from edgepack.text.respelling import respelt
from edgepack.text.tokenizer import Tokenizer

TOKENIZERS = {
    "byte-level": Tokenizer.from_json(tiny_tokenizers.byte_level(), None, False),
    "sentencepiece": Tokenizer.from_json(tiny_tokenizers.sentencepiece(), None, False),
}


def parts(ids: Sequence[int], tokenizer: Tokenizer) -> list[int | bytes]:
    """A text as the engine sees it: added tokens by their ids, and the bytes between them."""
    seen: list[int | bytes] = [b""]
    for id in ids:
        if id in tokenizer.added_ids:
            seen += [id, b""]
        else:
            seen[-1] += tokenizer.token_bytes(id)  # type: ignore[operator]
    return seen


def apart(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The ids of the same text as no tokenizer would spell it: byte by byte."""
    byte = {tokenizer.token_bytes(id): id for id in range(tokenizer.n_tokens)}
    return [byte[bytes([each])] for id in ids for each in tokenizer.token_bytes(id)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answer_is_taken_over_as_the_model_spelt_it(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    end, other = sorted(tokenizer.special_ids)[:2]
    asked, answer, then = (tokenizer.encode(text, bos=False) for text in ("the end", "hello there", "the house"))
    prompt = [end, *asked, other, *answer, end, *then, other]
    spelt = apart(answer, tokenizer)
    assert spelt != answer
    held = [end, *asked, other, *spelt]
    assert respelt(prompt, held, tokenizer) == [*held, end, *then, other]
    assert respelt(prompt, [*held, end], tokenizer) == [*held, end, *then, other]
    assert respelt(prompt, [*held, other, *then], tokenizer) == [*held, end, *then, other]
    # What only begins alike, goes on longer, or is not ended yet stays as it was.
    for near in (held[:-1], [*held, *spelt[:1]]):
        assert respelt(prompt, near, tokenizer) == prompt
    unended = prompt[: prompt.index(other) + 1 + len(answer)]
    assert respelt(unended, held, tokenizer) == unended


def test_what_only_reads_like_a_control_token_is_none() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    end = min(tokenizer.special_ids)
    name = tokenizer.encode(tokenizer.token(end), bos=False)  # as text
    assert len(name) > 1
    forged, real = [*name, end, *name], [end, end, *name]
    assert respelt(forged, real, tokenizer) == forged
    assert respelt(real, forged, tokenizer) == real


def test_a_token_that_says_nothing_is_not_taken_over() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    end, padded = min(tokenizer.special_ids), tokenizer.n_tokens + 5
    assert tokenizer.token_bytes(padded) == b""
    prompt = [*tokenizer.encode("the", bos=False), end, end]
    assert respelt(prompt, [padded, *prompt], tokenizer) == prompt


@given(st.sampled_from(sorted(TOKENIZERS)), st.data())
def test_the_engine_sees_the_same_text_and_never_shares_less(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    added = st.sampled_from(sorted(tokenizer.added_ids)).map(lambda id: [id])
    words = st.sampled_from(["a", "the", "e", "th"]).map(lambda text: tokenizer.encode(text, bos=False))
    pieces = st.lists(added | words | words.map(lambda ids: apart(ids, tokenizer)), max_size=8)
    prompt, held = ([id for piece in data.draw(pieces) for id in piece] for _ in range(2))
    found = respelt(prompt, held, tokenizer)
    assert parts(found, tokenizer) == parts(prompt, tokenizer)
    assert common_length(found, held) >= common_length(prompt, held)
    assert respelt(found, held, tokenizer) == found
    assert respelt(prompt, prompt, tokenizer) == prompt
