"""Any text, split into tokens at any byte, with any stops: what a stream shows is what the whole text would have given.

The engine is the fake, told what to say; each example has a tokenizer of its own, whose tokens are the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from endings import cut, whole
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from pieces import tokenizer_of

from edgepack import Chunk, FakeRuntime, Model, Result, fake
from edgepack.decoding.generation import Generation, Request
from edgepack.decoding.sample import Sampling
from edgepack.decoding.stream import Stream
from edgepack.runtime import Options
from edgepack.text.detokenize import Detokenizer
from edgepack.text.stop import StopMatcher

END, SILENT, FIRST = 256, 257, 258  # the stop token, a token without text, the first of an example's own
NAMES = {END: "<|end|>", SILENT: "<|start|>"}
MOST = 64
RUNTIME = FakeRuntime()

# Whole characters, halves of them, bytes that are never UTF-8, and what stands for them.
PARTS = [
    *(text.encode() for text in ("a", "b", "ab", "\n", "é", "€", "🚀", "👩‍🚀", "\ufffd")),
    *(b"\xe2\x82", b"\x82", b"\xf0\x9f", b"\xc3", b"\xff", b"\xed\xa0\x80"),
]
TRICKY = st.lists(st.sampled_from(PARTS), max_size=14).map(b"".join)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).map(str.encode)
DATA = TRICKY | TEXTS | st.binary(max_size=30)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[bytes], list[str]]:
    """Return the pieces of a text, "" for a token without text, and stops, many of them from the text itself."""
    data = draw(DATA)
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=MOST - 2)) | {0, len(data)})
    pieces = [data[start:end] for start, end in pairwise(cuts)]
    if draw(st.booleans()):
        pieces.insert(draw(st.integers(0, len(pieces))), b"")
    text = data.decode(errors="replace")
    places = st.tuples(st.integers(0, len(text)), st.integers(1, 6))
    inside = places.map(lambda place: text[place[0] : place[0] + place[1]])
    other = st.text("ab\né€🚀\ufffd", max_size=4)
    longer = inside.map(lambda stop: f"{stop}a")
    return pieces, [stop for stop in draw(st.lists(inside | other | longer, max_size=4)) if stop]


@pytest.fixture(scope="module")
def model() -> Model:
    """A model whose vocabulary has room for an example's pieces."""
    base = fake.model().manifest
    manifest = msgspec.structs.replace(base, decoder=msgspec.structs.replace(base.decoder, n_vocab=FIRST + MOST))
    options = Options(context=256, threads=1, kv_cache="f32")
    return Model(
        manifest=manifest,
        setup=fake.setup(manifest, options),
        opening=lambda: RUNTIME.open(Path(), manifest.decoder, options),
        options=options,
        tokenizer=tokenizer_of({}, NAMES),
        template=None,
    )


def say(
    model: Model, pieces: Sequence[bytes], stops: Sequence[str], limit: int = 2 * MOST, read: int = 2 * MOST
) -> tuple[list[int], list[Chunk], Result]:
    """Let the model say the pieces, a token each; return its tokens, the first chunks that are read, the result."""
    own = {piece: FIRST + index for index, piece in enumerate(dict.fromkeys(p for p in pieces if len(p) > 1))}
    ids = [own.get(piece, piece[0] if piece else SILENT) for piece in pieces]
    RUNTIME.script = (*ids, END)
    request = Request(
        prompt=[0],
        sampling=Sampling(),
        limit=limit,
        stop_ids=frozenset({END}),
        stops=tuple(stops),
        at_start=False,
        began=0.0,
        setup=model.setup,
    )

    def work() -> tuple[list[Chunk], Result]:
        with Stream(model._desk, Generation(tokenizer_of(own, NAMES), request)) as stream:
            chunks = [chunk for chunk, _ in zip(stream, range(read), strict=False)]
        return chunks, stream.result

    return ids, *model._desk.owner.call(work)


def check(model: Model, pieces: Sequence[bytes], stops: Sequence[str]) -> None:
    ids, chunks, result = say(model, pieces, stops)
    shown, stop = cut(whole(b"".join(pieces)), stops)
    assert "".join(chunk.text for chunk in chunks) == result.text == shown
    assert (result.stop, result.finish_reason) == (END if stop is None else stop, "stop")
    assert [token for chunk in chunks for token in chunk.token_ids] == list(result.token_ids)
    assert list(result.token_ids) == ids[: len(result.token_ids)]
    if stop is None:
        assert len(result.token_ids) == len(ids)
    for chunk in chunks[:-1]:
        assert chunk.text


@settings(max_examples=2000, deadline=None)
@given(answers())
@example(([b"a", b"\xe2\x82"], ["\ufffd"]))
@example(([b"\xf0\x9f", b"\x9a\x80\xf0"], ["🚀\ufffd", "\ufffd"]))
@example(([b"ab", b"", b"ab", b"a"], ["abaab", "baba"]))
def test_a_stream_shows_what_the_whole_text_gives(model: Model, answer: tuple[list[bytes], list[str]]) -> None:
    check(model, *answer)


@settings(max_examples=300, deadline=None)
@given(answers(), st.integers(1, 20))
def test_a_limit_shows_what_its_tokens_give(model: Model, answer: tuple[list[bytes], list[str]], limit: int) -> None:
    pieces, stops = answer
    _, chunks, result = say(model, pieces, stops, limit)
    shown, stop = cut(whole(b"".join(pieces[:limit])), stops)
    assert "".join(chunk.text for chunk in chunks) == result.text == shown
    assert result.usage.completion_tokens <= limit
    if stop is None:
        assert result.finish_reason == ("length" if len(pieces) >= limit else "stop")


@settings(max_examples=300, deadline=None)
@given(answers(), st.integers(0, 8))
def test_what_was_read_before_an_end_stays(model: Model, answer: tuple[list[bytes], list[str]], read: int) -> None:
    pieces, stops = answer
    _, chunks, result = say(model, pieces, stops, read=read)
    shown, _ = cut(whole(b"".join(pieces)), stops)
    assert shown.startswith("".join(chunk.text for chunk in chunks))
    assert result.text.startswith("".join(chunk.text for chunk in chunks))


def leaks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StopMatcher, "_open", lambda self, text: 0)


def eats(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StopMatcher, "finish", lambda self: "")


def takes_the_first_that_is_listed(patch: pytest.MonkeyPatch) -> None:
    real: Any = StopMatcher.__init__
    patch.setattr(StopMatcher, "__init__", lambda self, stops: real(self, stops[:1]))


def splits_characters(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Detokenizer, "push", lambda self, token: self._tokenizer.token_bytes(token).decode(errors="replace"))


def shows_half_a_character(patch: pytest.MonkeyPatch) -> None:
    real = Detokenizer.push
    patch.setattr(Detokenizer, "push", lambda self, token: real(self, token) + "\ufffd" * self.unfinished)


@pytest.mark.parametrize(
    "fault", [leaks, eats, takes_the_first_that_is_listed, splits_characters, shows_half_a_character]
)
def test_a_planted_fault_is_found(fault: Callable[[pytest.MonkeyPatch], None], model: Model) -> None:
    @settings(max_examples=300, deadline=None, phases=[Phase.generate], report_multiple_bugs=False)
    @given(answers())
    def hold(answer: tuple[list[bytes], list[str]]) -> None:
        check(model, *answer)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):
        fault(patch)
        hold()
