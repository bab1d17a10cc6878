"""Conversations: a turn evaluates only what is new, and forks, undone turns and saved ones say what they would have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from contract.case import CHUNK, Case, holds_what_it_should
from contract.ends import miscounted
from contract.registry import promise
from contract.text import COPY
from edgepack import conversation
from edgepack.conversation import Conversation
from edgepack.decoding import generation
from edgepack.decoding.cache import Cache
from edgepack.decoding.seat import Asking, Seat
from edgepack.decoding.steps import Steps
from edgepack.errors import BundleError, UsageError
from edgepack.text import respelling

SYSTEM = "Be brief. The apples are red, and the baskets are on the table by the door of the house."
FIRST, SECOND, THIRD = "How many apples?", "Thank you. What is red?", "Once upon a time there was a child."
ANSWER: dict[str, Any] = {"max_tokens": 6}
SAID = " apples, green apples, blue apples, green apples."  # after ``COPY``


def alone(case: Case, *said: str) -> str:
    """Return the last answer of a conversation that nothing came between."""
    talk = case.model.chat(system=SYSTEM, **ANSWER)
    return [talk.send(text).text for text in said][-1]


@promise
def a_turn_evaluates_only_what_is_new(case: Case) -> None:
    talk = case.model.chat(system=SYSTEM, **ANSWER)
    before = talk.send(FIRST)
    for said in (SECOND, THIRD):
        case.watch.reset()
        after = talk.send(said)
        known = before.usage.prompt_tokens + len(before.token_ids)
        if not isinstance(before.stop, int):
            known -= 1  # the last token was chosen and never evaluated
        new = after.usage.prompt_tokens - known
        assert after.usage.cached_tokens == known
        assert 0 < new < after.usage.prompt_tokens // 2
        prefill = -(-new // CHUNK)
        assert sum(map(len, case.watch.calls[:prefill])) == new
        case.same(("turn", said), (after.text, after.usage.to_dict()))
        before = after
    assert [message["role"] for message in talk.messages] == ["system", *["user", "assistant"] * 3]


@a_turn_evaluates_only_what_is_new.broken_by
def a_turn_that_prefills_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cache, "shared", lambda self, prompt, chunk: 0)


@a_turn_evaluates_only_what_is_new.broken_by
def a_turn_that_only_says_so(patch: pytest.MonkeyPatch) -> None:
    real = Cache.shared
    shared: list[int] = []

    def forget(self: Cache, prompt: Any, chunk: int | None) -> int:
        shared.append(real(self, prompt, chunk))
        return 0

    patch.setattr(Cache, "shared", forget)
    miscounted(patch, lambda counts: counts | {"cached_tokens": shared[-1]})


def spelt(case: Case, text: str) -> list[int]:
    """Return the ids of a text letter by letter, as no tokenizer would spell it."""
    return [id for letter in text for id in case.model.tokenizer.encode(letter, bos=False)]


@promise
def messages_take_over_an_answer_as_the_model_spelt_it(case: Case) -> None:
    model, answer = case.model, "Seven apples."
    said = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": FIRST}]
    ids = spelt(case, answer)
    case.watch.says(len(model.chat(said, max_tokens=1).repro.prompt_ids), ids)
    first = model.chat(said, max_tokens=len(ids))
    assert (first.text, list(first.token_ids)) == (answer, ids)
    case.watch.reset()
    for told in (answer, "Eight apples.", "Seven apples"):
        whole = [*said, {"role": "assistant", "content": told}, {"role": "user", "content": SECOND}]
        model.chat(said, max_tokens=1, reuse="exact")
        case.watch.says(first.usage.prompt_tokens, ids)
        model.chat(said, max_tokens=len(ids))
        case.watch.reset()
        second = model.chat(whole, **ANSWER)
        exact = model.chat(whole, **ANSWER, reuse="exact")
        assert model.detokenize(second.repro.prompt_ids) == model.detokenize(exact.repro.prompt_ids)
        known = first.usage.prompt_tokens + (len(ids) - 1 if told == answer else 0)
        assert second.usage.cached_tokens >= known
        assert exact.usage.cached_tokens % CHUNK == 0
        assert exact.repro.prompt_ids != second.repro.prompt_ids or told != answer
        case.same(("spelt", told), (second.text, second.usage.to_dict()))


@messages_take_over_an_answer_as_the_model_spelt_it.broken_by
def messages_that_are_spelt_by_the_tokenizer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generation, "respelt", lambda prompt, held, tokenizer: prompt)


@messages_take_over_an_answer_as_the_model_spelt_it.broken_by
def an_answer_without_its_last_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cache, "said", property(lambda self: self.tokens))


@messages_take_over_an_answer_as_the_model_spelt_it.broken_by
def another_answer_that_passes_for_what_was_said(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(respelling, "_same", lambda a, b, tokenizer: True)


@messages_take_over_an_answer_as_the_model_spelt_it.broken_by
def an_exact_answer_that_takes_over_all(patch: pytest.MonkeyPatch) -> None:
    real = Cache.shared
    patch.setattr(Cache, "shared", lambda self, prompt, chunk: real(self, prompt))


@promise
def a_system_prompt_is_evaluated_once(case: Case) -> None:
    case.model.chat(system=SYSTEM, **ANSWER).send(FIRST)
    case.watch.reset()
    other = case.model.chat(system=SYSTEM, **ANSWER).send(SECOND)
    system = len(case.model.tokenizer.encode(SYSTEM, bos=False))
    assert system > CHUNK
    assert other.usage.cached_tokens >= system
    assert sum(map(len, case.watch.calls)) < other.usage.prompt_tokens + len(other.token_ids) - system
    case.same("system prompt", (other.text, other.usage.to_dict()))


@a_system_prompt_is_evaluated_once.broken_by
def a_cache_of_one_conversation_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cache, "shared", lambda self, prompt, chunk: 0)


@promise
def a_fork_goes_its_own_way(case: Case) -> None:
    talk = case.model.chat(system=SYSTEM, **ANSWER)
    talk.send(FIRST)
    fork = talk.fork()
    answers = talk.send(SECOND).text, fork.send(THIRD).text
    assert answers == (alone(case, FIRST, SECOND), alone(case, FIRST, THIRD))
    assert [message["content"] for message in talk.messages[1::2]] == [FIRST, SECOND]
    assert [message["content"] for message in fork.messages[1::2]] == [FIRST, THIRD]
    case.same("fork", answers)


@a_fork_goes_its_own_way.broken_by
def a_fork_that_is_the_same_conversation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Conversation, "fork", lambda self: self)


@promise
def an_undone_turn_was_never_said(case: Case) -> None:
    talk = case.model.chat(system=SYSTEM, **ANSWER)
    talk.send(FIRST)
    said = talk.messages
    talk.send(THIRD)
    talk.send(SECOND)
    talk.undo(2)
    assert talk.messages == said
    assert talk.send(SECOND).text == alone(case, FIRST, SECOND)
    talk.undo(2)
    assert talk.send(FIRST).text == alone(case, FIRST)
    with pytest.raises(ValueError, match="There is 1 turn to undo"):
        talk.undo(2)


@an_undone_turn_was_never_said.broken_by
def an_undo_that_does_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Conversation, "undo", lambda self, turns=1: None)


@promise
def what_an_engine_could_not_keep_is_evaluated_again(case: Case) -> None:
    model, watch = case.model, case.watch
    wanted = alone(case, FIRST, SECOND)
    start, said = len(model.tokenize(COPY)), model.tokenizer.encode(SAID, bos=False)
    watch.says(start, said)
    copied = model.generate(COPY, max_tokens=len(said), prompt_lookup=True)
    assert copied.usage.drafted_tokens > copied.usage.accepted_tokens
    watch.reset()
    for keeps in (lambda length: 0, lambda length: length // 2):
        talk = model.chat(system=SYSTEM, **ANSWER)
        talk.send(FIRST)
        known = len(talk.send(THIRD).repro.prompt_ids)
        talk.undo()
        watch.keeps = keeps
        again = talk.send(SECOND)
        assert again.text == wanted
        assert again.usage.cached_tokens < known // 2
        assert holds_what_it_should(model)
        assert model._repeat(again.repro, again.sampling).token_ids == again.token_ids
        watch.says(start, said)
        result = model.generate(COPY, max_tokens=len(said), prompt_lookup=True)
        assert (result.token_ids, result.usage.drafted_tokens) == (copied.token_ids, copied.usage.drafted_tokens)
        assert holds_what_it_should(model)
        watch.reset()


@what_an_engine_could_not_keep_is_evaluated_again.broken_by
def a_rewind_that_is_taken_for_granted(patch: pytest.MonkeyPatch) -> None:
    def rewind(self: Seat, length: int) -> int:
        if length < len(self.cache.tokens):
            self.seats.session.rewind(length)
            self.cache.cut(length)
        return length

    patch.setattr(Seat, "rewind", rewind)


@what_an_engine_could_not_keep_is_evaluated_again.broken_by
def guesses_that_take_more_with_them(patch: pytest.MonkeyPatch) -> None:
    def stand_after(self: Steps, tokens: Sequence[int]) -> Asking[None]:
        self._seat.rewind(len(tokens))
        yield from ()

    patch.setattr(Steps, "_stand_after", stand_after)


@promise
def a_saved_conversation_goes_on_elsewhere(case: Case) -> None:
    talk = case.model.chat(system=SYSTEM, **ANSWER)
    talk.send(FIRST)
    path = case.folder / f"{case.engine}.talk"
    talk.save(path)
    straight = talk.send(SECOND)
    other, watch = case.open()
    resumed = other.resume(path)
    assert resumed.messages == talk.messages[:3]
    again = resumed.send(SECOND, **ANSWER)
    assert (again.text, again.token_ids) == (straight.text, straight.token_ids)
    assert again.usage == straight.usage
    assert sum(map(len, watch.calls)) < again.usage.prompt_tokens
    case.same("resumed", (again.text, again.usage.to_dict()))
    # An engine that has something else in its cache by now gives the same.
    case.model.generate(THIRD, max_tokens=2)
    assert case.model.resume(path).send(SECOND, **ANSWER).text == straight.text


@a_saved_conversation_goes_on_elsewhere.broken_by
def a_state_that_is_not_put_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Seat, "restore", lambda self, state, tokens, steps: None)


@a_saved_conversation_goes_on_elsewhere.broken_by
def a_save_that_forgets_the_last_answer(patch: pytest.MonkeyPatch) -> None:
    real = Conversation._resume.__func__  # type: ignore[attr-defined]

    def resume(cls: type[Conversation], /, model: Any, path: Path) -> Conversation:
        found: Conversation = real(cls, model, path)
        found._turns = found._turns[:1]
        return found

    patch.setattr(Conversation, "_resume", classmethod(resume))


@promise
def a_file_that_is_no_conversation_is_refused(case: Case) -> None:
    path = case.folder / "no.talk"
    for wrong in (b"", b"not a conversation", b"\x80"):
        path.write_bytes(wrong)
        with pytest.raises(BundleError, match=r"no\.talk is not a conversation") as caught:
            case.model.resume(path)
        assert caught.value.hint
    with pytest.raises(FileNotFoundError):
        case.model.resume(case.folder / "nowhere.talk")


@a_file_that_is_no_conversation_is_refused.broken_by
def a_damaged_file_that_is_taken_for_an_empty_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Conversation, "_resume", classmethod(lambda cls, model, path: model.chat()))


@promise
def a_turn_that_fails_or_is_cut_leaves_a_conversation_usable(case: Case) -> None:
    talk = case.model.chat(system=SYSTEM, **ANSWER)
    talk.send(FIRST)
    before = talk.messages
    with pytest.raises(ValueError, match="max_tokens"):
        talk.send(SECOND, max_tokens=0)
    assert talk.messages == before
    with talk.stream(SECOND) as stream:
        first = next(stream).text
    assert stream.result.finish_reason == "cancelled"
    assert [message["content"] for message in talk.messages[-2:]] == [SECOND, first]
    talk.undo()
    assert talk.send(SECOND).text == alone(case, FIRST, SECOND)


@a_turn_that_fails_or_is_cut_leaves_a_conversation_usable.broken_by
def a_turn_that_is_remembered_before_it_was_answered(patch: pytest.MonkeyPatch) -> None:
    real = Conversation.stream

    def stream(self: Conversation, said: Any, **options: Any) -> Any:
        self._turns.append(self._turns[-1])
        return real(self, said, **options)

    patch.setattr(Conversation, "stream", stream)


@promise
def a_second_turn_at_once_is_refused_before_its_first_piece(case: Case) -> None:
    talk = case.model.chat(system=SYSTEM, **ANSWER)
    asked = talk.stream(THIRD)
    with talk.stream(FIRST) as stream:
        next(stream)
        for other in (lambda: talk.send(SECOND), talk.undo):
            with pytest.raises(UsageError, match="still being answered"):
                other()
        for _ in stream:
            pass
    with pytest.raises(UsageError, match="has changed"), asked:
        pass
    assert talk.send(SECOND).text == alone(case, FIRST, SECOND)


@a_second_turn_at_once_is_refused_before_its_first_piece.broken_by
def a_conversation_that_takes_them_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Conversation, "_check_still", lambda self: None)


@promise
def what_is_saved_after_undo_keeps_the_state_that_both_share(case: Case) -> None:
    talk = case.model.chat(system=SYSTEM, **ANSWER)
    talk.send(FIRST)
    straight = talk.send(SECOND)
    talk.undo()
    path = case.folder / f"{case.engine}.undone"
    talk.save(path)
    other, _ = case.open()
    again = other.resume(path).send(SECOND, **ANSWER)
    assert again.text == straight.text
    assert again.usage.cached_tokens >= straight.usage.cached_tokens
    assert talk.send(SECOND).usage.cached_tokens >= straight.usage.cached_tokens


@what_is_saved_after_undo_keeps_the_state_that_both_share.broken_by
def a_save_that_wants_all_or_nothing(patch: pytest.MonkeyPatch) -> None:
    real = conversation.common_length
    patch.setattr(conversation, "common_length", lambda held, ids: real(held, ids) * (len(held) <= len(ids)))


@what_is_saved_after_undo_keeps_the_state_that_both_share.broken_by
def a_save_that_cuts_the_cache(patch: pytest.MonkeyPatch) -> None:
    real = Seat.snapshot

    def snapshot(self: Seat, length: int) -> bytes:
        state = real(self, length)
        self.rewind(0)
        return state

    patch.setattr(Seat, "snapshot", snapshot)
