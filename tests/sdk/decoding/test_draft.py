"""A draft model: what it guesses is what its own session says, the text is the other's, and both end together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack import FakeRuntime, fake, fake_facts
from edgepack.bundle.decoder import Decoder
from edgepack.decoding.draft import Draft
from edgepack.errors import EngineCrashedError, EngineError, UsageError
from edgepack.fake import FakeSession
from edgepack.model import Model
from edgepack.runtime import Options
from edgepack.text.tokenizer import Tokenizer

MANIFEST = fake_facts.manifest()
N_VOCAB = MANIFEST.decoder.n_vocab
NEVER = b"\xff"[0]  # a token that no text of these tests has


def options(context: int = 64, chunk: int = 4) -> Options:
    return Options(context=context, threads=1, kv_cache="f32", chunk=chunk)


def session(runtime: FakeRuntime | None = None, context: int = 64) -> FakeSession:
    return (runtime or FakeRuntime()).open(Path(), MANIFEST.decoder, options(context))


def go_on() -> None:
    return None


def greedy(text: Sequence[int], count: int) -> list[int]:
    """The likeliest tokens after a text, each by a session that has seen nothing else."""
    found: list[int] = []
    while len(found) < count:
        found.append(int(session().forward([*text, *found]).argmax()))
    return found


texts = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(st.lists(st.tuples(texts, st.integers(1, 5)), min_size=1, max_size=6))
def test_a_guess_is_the_same_whatever_was_asked_before(asked: list[tuple[list[int], int]]) -> None:
    draft = Draft(session(), options(), N_VOCAB)
    for text, most in asked:
        assert draft.guess(text, most, go_on) == greedy(text, most)


def test_a_text_that_goes_on_is_not_read_again() -> None:
    lengths: list[int] = []
    runtime = FakeRuntime(before_step=lambda each: lengths.append(each.length))
    draft = Draft(session(runtime), options(), N_VOCAB)
    text = [1, 2, 3]
    right = draft.guess(text, 3, go_on)
    draft.guess([*text, *right, 9], 1, go_on)
    draft.guess([*text, right[0], 8], 1, go_on)
    # Three tokens and two guesses; then the last guess, which was not in the cache, with what came after it; then what
    # came instead of the second guess.
    assert lengths == [0, 3, 4, 5, 4]


@given(st.lists(texts, max_size=3), st.lists(st.integers(0, 1), min_size=5, max_size=30))
def test_the_steps_of_a_text_follow_from_it_alone(before: list[list[int]], text: list[int]) -> None:
    def steps(of: list[list[int]]) -> list[int]:
        ends: list[int] = []
        runtime = FakeRuntime(before_step=lambda each: ends.append(each.length))
        draft = Draft(session(runtime), options(), N_VOCAB)
        for each in of:
            draft.begin()
            for end in range(1, len(each)):
                draft.guess(each[:end], 2, go_on)
        draft.begin()
        ends.clear()
        draft.guess(text[:-1], 3, go_on)
        draft.guess(text, 3, go_on)
        return ends

    alone, after = steps([]), steps([*before, text, before[0] if before else text])
    # What is left out are whole chunks of the beginning.
    assert alone[len(alone) - len(after) :] == after
    assert alone[: len(alone) - len(after)] == list(range(0, after[0], 4))


def test_a_guess_ends_at_the_end_of_the_context() -> None:
    draft = Draft(session(context=8), options(context=8), N_VOCAB)
    assert len(draft.guess([1] * 6, 10, go_on)) == 3  # the last of them needs no room
    assert len(draft.guess([1] * 8, 10, go_on)) == 1
    assert draft.guess([1] * 9, 10, go_on) == []
    assert draft.guess([1] * 4, 0, go_on) == []


def test_ids_that_only_one_of_the_two_knows_are_neither_asked_about_nor_guessed() -> None:
    draft = Draft(session(), options(), 7)
    assert all(token < 7 for token in draft.guess([1, 2, 3], 9, go_on))
    assert draft.guess([1, 2, 7], 9, go_on) == []
    assert draft.guess([1, 2, 3], 1, go_on)  # as before


@contextmanager
def model(runtime: FakeRuntime, draft: FakeRuntime | None, opened: list[FakeSession] | None = None) -> Iterator[Model]:
    def opening(of: FakeRuntime) -> FakeSession:
        found = of.open(Path(), MANIFEST.decoder, options(128))
        if opened is not None:
            opened.append(found)
        return found

    drafting = None if draft is None else lambda: Draft(opening(draft), options(128), N_VOCAB)
    with Model(
        manifest=MANIFEST,
        setup=fake.setup(MANIFEST, options(128)),
        opening=lambda: opening(runtime),
        options=options(128),
        tokenizer=Tokenizer(fake_facts.tables(), None, False),
        template=None,
        drafting=drafting,
    ) as made:
        yield made


def counting(counts: list[int]) -> Callable[[FakeSession], None]:
    return lambda each: counts.append(each.length)


ASKED = [{}, {"temperature": 3.0, "seed": 5}, {"on_overflow": "rolling", "max_tokens": 200}, {"prompt_lookup": True}]


@pytest.mark.parametrize("more", ASKED)
@pytest.mark.parametrize("script", [(), (NEVER,)])
def test_the_text_is_the_same_with_a_draft(more: dict[str, object], script: tuple[int, ...]) -> None:
    with model(FakeRuntime(), FakeRuntime(script)) as drafted:
        asked = {"max_tokens": 50} | more
        plain = drafted.generate("Once", draft=False, **asked)  # type: ignore[arg-type]
        result = drafted.generate("Once", **asked)  # type: ignore[arg-type]
        assert result.token_ids == plain.token_ids
        assert result.usage.drafted_tokens > plain.usage.drafted_tokens or "prompt_lookup" in more
        assert (result.repro.draft, plain.repro.draft) == (True, False)
        assert drafted._repeat(result.repro, result.sampling).token_ids == result.token_ids


@pytest.mark.parametrize("more", ASKED)
@pytest.mark.parametrize("takes_back", [0, 1, 3, 20])
def test_the_text_is_the_same_on_engines_that_forget(more: dict[str, object], takes_back: int) -> None:
    opened: list[FakeSession] = []
    asked = {"max_tokens": 50} | more
    with model(FakeRuntime(), FakeRuntime((NEVER,))) as plain:
        first = plain.generate("Once", **asked)  # type: ignore[arg-type]
        second = plain.generate("Once upon", **asked)  # type: ignore[arg-type]
    with model(FakeRuntime(takes_back=takes_back), FakeRuntime((NEVER,), takes_back=takes_back), opened) as forgetful:
        for _ in range(2):
            result = forgetful.generate("Once", **asked)  # type: ignore[arg-type]
            assert result.token_ids == first.token_ids
            assert forgetful._desk.session.length == len(forgetful._desk.cache.tokens)
            assert forgetful.generate("Once upon", **asked).token_ids == second.token_ids  # type: ignore[arg-type]
            assert forgetful._repeat(result.repro, result.sampling).token_ids == result.token_ids


def test_a_model_that_drafts_for_itself_is_always_right_and_takes_few_steps() -> None:
    steps: list[int] = []
    with model(FakeRuntime(before_step=counting(steps)), FakeRuntime()) as drafted:
        usage = drafted.generate("Once", max_tokens=50).usage
        assert usage.drafted_tokens == usage.accepted_tokens > 0
        steps.clear()
        drafted.generate("Once", max_tokens=50, draft=False)
        alone = len(steps)
        steps.clear()
        drafted.generate("Once", max_tokens=50)
        assert len(steps) < alone / 2


def test_a_cancel_is_seen_between_the_steps_of_a_draft() -> None:
    def cancel(each: FakeSession) -> None:
        if each.length > 10:
            stream.cancel()

    with model(FakeRuntime(), FakeRuntime(before_step=cancel)) as drafted:
        with drafted.stream("Once", max_tokens=50) as stream:
            count = sum(len(chunk.token_ids) for chunk in stream)
        assert stream.result.finish_reason == "cancelled"
        assert 0 < count < 50
        assert drafted.generate("Once", max_tokens=20, draft=False).finish_reason == "length"


def test_a_draft_that_fails_is_the_error_of_the_call_and_of_those_that_follow() -> None:
    with model(FakeRuntime(), FakeRuntime(fail_at=2)) as drafted:
        with pytest.raises(EngineError, match="as planned"):
            drafted.generate("Once", max_tokens=50)
        with pytest.raises(EngineError, match="failed earlier"):
            drafted.generate("Once", max_tokens=50, draft=False)


def test_a_draft_whose_process_is_lost_begins_again() -> None:
    losses = [1]

    def crash(each: FakeSession) -> None:
        if losses and each.length > 8:
            losses.pop()
            each.rewind(0)  # as another process would stand there
            raise EngineCrashedError("The process was lost.")

    with model(FakeRuntime(), FakeRuntime(before_step=crash)) as drafted:
        with pytest.raises(EngineCrashedError):
            drafted.generate("Once", max_tokens=50)
        result = drafted.generate("Once", max_tokens=50)
        assert result.usage.accepted_tokens == result.usage.drafted_tokens > 0
        assert result.token_ids == drafted.generate("Once", max_tokens=50, draft=False).token_ids


def test_both_sessions_are_closed() -> None:
    opened: list[FakeSession] = []
    with model(FakeRuntime(), FakeRuntime(), opened):
        assert [each._closed for each in opened] == [False, False]
    assert [each._closed for each in opened] == [True, True]


def test_a_draft_that_does_not_open_leaves_nothing_open() -> None:
    closed = Event()

    class Watched(FakeRuntime):
        def open(self, variant: Path, decoder: Decoder, options: Options) -> FakeSession:
            found = super().open(variant, decoder, options)
            found.close = closed.set  # type: ignore[method-assign]
            return found

    class Broken(FakeRuntime):
        def open(self, variant: Path, decoder: Decoder, options: Options) -> FakeSession:
            raise EngineError("No room is left.")

    with pytest.raises(EngineError, match="No room"), model(Watched(), Broken()):
        pass
    assert closed.wait(60)


def test_a_draft_is_refused_where_none_is_loaded() -> None:
    with model(FakeRuntime(), None) as alone:
        assert not alone.generate("Once", max_tokens=9).repro.draft
        with pytest.raises(UsageError, match="no draft model is loaded"):
            alone.generate("Once", draft=True)
        with pytest.raises(UsageError, match="draft is 1"):
            alone.generate("Once", draft=1)  # type: ignore[arg-type]
