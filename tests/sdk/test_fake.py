"""The fake runtime keeps the seam's promises, so that what is tested with it holds for an engine."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from edgepack import fake
from edgepack.errors import Cancelled, EngineError, PromptTooLongError, UsageError
from edgepack.fake import FakeRuntime, FakeSession
from edgepack.fake_runtime import FakeSequences
from edgepack.runtime import Options, Runtime, Sequences, Step

DECODER = fake.model().manifest.decoder


def opened(runtime: FakeRuntime | None = None, context: int = 32, chunk: int = 4) -> FakeSession:
    return (runtime or FakeRuntime()).open(Path(), DECODER, Options(context, 1, "f32", chunk))


def test_it_is_a_runtime() -> None:
    assert isinstance(FakeRuntime(), Runtime)


def test_logits_depend_on_the_cache_alone() -> None:
    one, other = opened(), opened()
    step_by_step = [one.forward([token]) for token in (5, 6, 7, 5, 6, 7)]
    at_once = other.forward_all([5, 6, 7, 5, 6, 7])
    assert np.array_equal(np.stack(step_by_step), at_once)
    assert at_once.shape == (6, DECODER.n_vocab)
    assert at_once.dtype == np.float32
    assert len({row.tobytes() for row in at_once}) == 6
    assert one.length == other.length == 6


def test_a_rewind_forgets() -> None:
    session = opened()
    first = session.forward([1, 2, 3])
    session.forward([4])
    session.rewind(2)
    assert session.length == 2
    assert np.array_equal(session.forward([3]), first)


def test_a_rewind_that_takes_back_too_much_forgets_all() -> None:
    session = opened(FakeRuntime(takes_back=3))
    first = session.forward_all([1, 2, 3, 4, 5])
    assert (session.rewind(2), session.length) == (2, 2)
    assert np.array_equal(session.forward_all([3, 4, 5]), first[2:])
    assert (session.rewind(1), session.length) == (0, 0)
    assert np.array_equal(session.forward_all([1, 2, 3]), first[:3])


def test_a_cancelled_prefill_that_cannot_be_taken_back_forgets_all() -> None:
    def cancel(each: FakeSession) -> None:
        if each.length >= 8:
            each.cancel()

    session = opened(FakeRuntime(takes_back=3, before_step=cancel))
    session.forward([1])
    with pytest.raises(Cancelled):
        session.forward(range(3, 20))
    assert session.length == 0


def test_returned_arrays_are_the_callers_own() -> None:
    session = opened()
    logits = session.forward([1, 2])
    before = logits.copy()
    session.forward([3])[:] = 0
    assert np.array_equal(logits, before)


def test_a_script_follows_every_prompt() -> None:
    session = opened(FakeRuntime([9, 9, 5]))
    for prompt in ([1, 2, 3], [9], [9, 9]):
        session.rewind(0)
        said = [int(session.forward(prompt).argmax())]
        said += [int(session.forward([said[-1]]).argmax()) for _ in range(2)]
        assert said == [9, 9, 5]


@pytest.mark.parametrize("tokens", [[], [-1], [1, 258]])
def test_wrong_tokens_change_nothing(tokens: list[int]) -> None:
    session = opened()
    session.forward([1])
    with pytest.raises(ValueError, match="token"):
        session.forward(tokens)
    assert session.length == 1


def test_a_full_context_changes_nothing() -> None:
    session = opened(context=4)
    session.forward([1, 2, 3])
    with pytest.raises(PromptTooLongError, match="context of 4"):
        session.forward_all([4, 5])
    assert session.length == 3
    session.forward([4])


@pytest.mark.parametrize("length", [-1, 4])
def test_a_rewind_stays_within_the_cache(length: int) -> None:
    session = opened()
    session.forward([1, 2, 3])
    with pytest.raises(ValueError, match="rewind"):
        session.rewind(length)


def test_a_cancel_between_two_steps_restores_the_length() -> None:
    steps: list[int] = []

    def cancel_at_the_third(session: FakeSession) -> None:
        steps.append(session.length)
        if len(steps) == 4:
            session.cancel()

    session = opened(FakeRuntime(before_step=cancel_at_the_third))
    expected = opened().forward([1, 2])
    session.forward([1])
    with pytest.raises(Cancelled):
        session.forward(list(range(12)))
    assert steps == [0, 1, 5, 9]
    assert session.length == 1
    assert np.array_equal(session.forward([2]), expected)


def test_a_cancel_from_another_thread_is_seen() -> None:
    def cancel_elsewhere(session: FakeSession) -> None:
        thread = Thread(target=session.cancel)
        thread.start()
        thread.join()

    with pytest.raises(Cancelled):
        opened(FakeRuntime(before_step=cancel_elsewhere)).forward([1])


def test_a_cancel_without_a_forward_does_nothing() -> None:
    session = opened()
    session.cancel()
    session.cancel()
    session.forward([1])


def test_a_session_belongs_to_its_thread() -> None:
    session, errors = opened(), []

    def use() -> None:
        for call in (lambda: session.forward([1]), lambda: session.rewind(0), session.close):
            with pytest.raises(EngineError, match="thread") as raised:
                call()
            errors.append(raised.value)

    thread = Thread(target=use)
    thread.start()
    thread.join()
    assert len(errors) == 3


def test_a_closed_session_refuses() -> None:
    session = opened()
    session.close()
    session.close()
    for call in (lambda: session.forward([1]), lambda: session.forward_all([1]), lambda: session.rewind(0)):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_planted_faults_come_when_asked() -> None:
    session = opened(FakeRuntime(fail_at=3, nan_at=2))
    assert np.isfinite(session.forward([1])).all()
    assert np.isnan(session.forward([2])).all()
    with pytest.raises(EngineError, match="forward 3"):
        session.forward([3])


def test_a_model_of_nothing_says_what_it_is_told() -> None:
    with fake.model(says="Grüße! 🚀") as model:
        assert model.generate("Hi").text == "Grüße! 🚀"
        assert model.chat([{"role": "user", "content": "Grüße! 🚀"}]).text == "Grüße! 🚀"
        assert model.backend == "fake"


def parallel(runtime: FakeRuntime | None = None, sequences: int = 3, context: int = 32) -> FakeSequences:
    session = (runtime or FakeRuntime()).open(Path(), DECODER, Options(context, 1, "f32", 4, sequences=sequences))
    assert isinstance(session, FakeSequences)
    return session


def test_a_session_of_one_text_is_as_before() -> None:
    assert not isinstance(opened(), Sequences)
    assert isinstance(parallel(), Sequences)


def test_each_sequence_says_the_script_for_itself() -> None:
    session = parallel(FakeRuntime([9, 8, 7]))
    session.forward_batch([Step(0, [1, 2, 3])])
    second = session.forward_batch([Step(1, [4, 5]), Step(0, [9])])
    assert [int(each.argmax()) for each in second] == [9, 8]
    third = session.forward_batch([Step(0, [8]), Step(1, [9])])
    assert [int(each.argmax()) for each in third] == [7, 8]
    session.copy(1, 2, 2)
    assert int(session.forward_batch([Step(2, [6])])[0].argmax()) == 9


def test_a_batch_counts_as_one_forward() -> None:
    session = parallel(FakeRuntime(fail_at=3, nan_at=2))
    session.forward_batch([Step(0, [1]), Step(1, [2])])
    assert all(np.isnan(each).all() for each in session.forward_batch([Step(0, [1]), Step(1, [2])]))
    with pytest.raises(EngineError, match="forward 3"):
        session.forward_batch([Step(0, [1])])


def test_a_cancelled_batch_leaves_each_sequence_as_it_was() -> None:
    def cancel(session: FakeSession) -> None:
        if session.length == 2:
            session.cancel()

    session = parallel(FakeRuntime(before_step=cancel))
    session.forward_batch([Step(0, [1]), Step(2, [1, 2, 3])])
    session.forward([2])
    with pytest.raises(Cancelled):
        session.forward_batch([Step(0, [1, 2]), Step(2, [4]), Step(1, [7])])
    assert [session.length_of(each) for each in range(3)] == [2, 0, 3]


def test_a_copy_that_would_take_back_too_much_holds_nothing() -> None:
    session = parallel(FakeRuntime(takes_back=2))
    session.forward_batch([Step(0, [1, 2, 3, 4])])
    assert (session.copy(0, 1, 1), session.length_of(1), session.length_of(0)) == (0, 0, 4)
    assert (session.copy(0, 1, 3), session.length_of(1)) == (3, 3)


def test_a_model_that_embeds_has_one_sequence() -> None:
    decoder = fake.embedding_model().manifest.decoder
    with pytest.raises(UsageError, match="sequences is 2"):
        FakeRuntime().open(Path(), decoder, Options(32, 1, "f32", sequences=2))
    with pytest.raises(UsageError, match="sequences is 0"):
        FakeRuntime().open(Path(), DECODER, Options(32, 1, "f32", sequences=0))
