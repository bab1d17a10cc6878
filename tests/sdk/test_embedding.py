"""Vectors of texts: what is refused before anything is evaluated, and what comes of the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgepack import fake
from edgepack.bundle.embedding import Embedding
from edgepack.errors import Cancelled, EngineError, PromptTooLongError, UsageError
from edgepack.fake import FakeSession
from edgepack.model import Model
from edgepack.pooling import cosine, first_needed, pooled
from edgepack.runtime import Hidden, Session

PROMPTS = {"query": "Find: ", "document": ""}
STATES = np.arange(1, 13, dtype=np.float32).reshape(3, 4)


def embedding(**changes: Any) -> Embedding:
    said: dict[str, Any] = {"pooling": "last", "size": 4, "normalized": False, "ends": [], "prompts": {}}
    return Embedding(**{**said, "default_prompt": None, "similarity": "cosine", **changes})


@pytest.mark.parametrize(
    ("pooling", "vector", "first"),
    [("last", [9, 10, 11, 12], 2), ("mean", [5, 6, 7, 8], 0), ("first", [1, 2, 3, 4], 0)],
)
def test_pooling(pooling: str, vector: list[float], first: int) -> None:
    said = embedding(pooling=pooling)
    assert pooled(said, STATES).tolist() == vector
    assert first_needed(said, 3) == first
    assert pooled(said, STATES[first_needed(said, 3) :]).tolist() == vector


def test_a_norm() -> None:
    found = pooled(embedding(normalized=True), STATES)
    assert np.allclose(found, STATES[-1] / np.sqrt(np.square(STATES[-1]).sum()))
    assert pooled(embedding(normalized=True), np.zeros((1, 4), np.float32)).tolist() == [0, 0, 0, 0]


def test_cosine() -> None:
    one = np.array([1, 0], np.float32)
    assert cosine(one, np.array([3, 3], np.float32)) == pytest.approx(0.5**0.5)
    assert cosine(one, np.array([0, 0], np.float32)) == 0
    assert cosine(one, np.array([np.nan, 1], np.float32)) == 0


def test_a_vector_for_each_text() -> None:
    with fake.embedding_model(size=6, prompts=PROMPTS) as model:
        found = model.embed(["one", "two", "one"])
        assert (found.shape, found.dtype) == ((3, 6), np.float32)
        assert np.array_equal(found[0], found[2])
        assert not np.array_equal(found[0], found[1])
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        assert np.array_equal(model.embed("two"), found[1:2])
        assert model.embed([]).shape == (0, 6)


def test_a_prompt_stands_before_a_text() -> None:
    with fake.embedding_model(prompts=PROMPTS) as model:
        plain, query = model.embed("one"), model.embed("one", prompt="query")
        assert np.array_equal(query, model.embed("Find: one"))
        assert not np.array_equal(query, plain)
        assert np.array_equal(model.embed("one", "document"), plain)


def test_the_default_prompt() -> None:
    import msgspec

    with fake.embedding_model(prompts=PROMPTS) as model:
        plain, query = model.embed("one"), model.embed("one", "query")
        said = msgspec.structs.replace(model.manifest.embedding, default_prompt="query")
        model._manifest = msgspec.structs.replace(model.manifest, embedding=said)
        assert np.array_equal(model.embed("one"), query)
        assert np.array_equal(model.embed("one", ""), plain)


def test_every_text_ends_with_the_end() -> None:
    seen: list[list[int]] = []

    def watch(session: FakeSession) -> None:
        assert isinstance(session, Hidden)
        evaluate = session._evaluate

        def noted(tokens: Any, first: int) -> Any:
            seen.append(list(tokens))
            return evaluate(tokens, first)

        session._evaluate = noted  # type: ignore[method-assign]

    with fake.embedding_model(before_step=watch) as model:
        model.embed("warm")
        model.embed("ab")
    assert seen[0] == [*b"ab", 256]


def test_a_text_that_is_too_long_is_never_cut() -> None:
    with fake.embedding_model(context=8) as model:
        assert model.embed("1234567").shape == (1, 8)
        with pytest.raises(PromptTooLongError, match=r"texts\[1\] has 9 tokens, the context 8"):
            model.embed(["1", "12345678"])
        with pytest.raises(PromptTooLongError, match=r"texts\[0\] has at least 11 tokens"):
            model.embed("1" * 99)


def test_all_is_refused_before_anything_is_evaluated() -> None:
    with fake.embedding_model(context=8, fail_at=1) as model:
        for texts in (["1", "123456789"], ["1", 2], ["1", "\ud800"]):
            with pytest.raises((PromptTooLongError, UsageError), match=r"texts\[1\]"):
                model.embed(texts)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="has no prompt 'question'") as raised:
            model.embed("1", prompt="question")
        assert "none" in (raised.value.hint or "")
        with pytest.raises(EngineError, match="as planned"):
            model.embed("1")


WRITES: list[tuple[str, Callable[[Model], object]]] = [
    ("generate", lambda model: model.generate("text")),
    ("stream", lambda model: model.stream("text")),
    ("chat", lambda model: model.chat([{"role": "user", "content": "Hi"}])),
    ("conversation", lambda model: model.chat(system="Be brief.").send("Hi")),
    ("logits", lambda model: model.logits([1, 2])),
    ("evaluate", lambda model: model.evaluate([1, 2])),
    ("score", lambda model: model.score("text")),
    ("template", lambda model: model.template),
]


@pytest.mark.parametrize(("name", "call"), WRITES)
def test_it_writes_nothing(name: str, call: Callable[[Model], object]) -> None:
    with fake.embedding_model() as model:
        with pytest.raises(UsageError, match="embeds texts, and writes none") as raised:
            call(model)
        assert "embed" in (raised.value.hint or "")
        assert model.embed("it goes on").shape == (1, 8)


def test_a_model_that_writes_makes_no_vectors() -> None:
    with fake.model(says="Hi") as model:
        assert not isinstance(model._desk.session, Hidden)
        with pytest.raises(UsageError, match="writes texts, and makes no vectors"):
            model.embed("text")


def test_a_session_without_a_head_has_no_logits() -> None:
    with fake.embedding_model() as model:
        session: Session = model._desk.session
        assert isinstance(session, Hidden)
        for forward in (session.forward, session.forward_all):
            with pytest.raises(UsageError, match="gives no logits"):
                forward([1])
        for first in (-1, 2, 3):
            with pytest.raises(ValueError, match="states from index"):
                session.hidden([1, 2], first)


def test_a_cancelled_text_is_forgotten() -> None:
    def stop(session: FakeSession) -> None:
        if session.length == 128:  # behind the first step
            session.cancel()

    with fake.embedding_model(before_step=stop) as model:
        with pytest.raises(Cancelled):
            model.embed("a" * 300)
        assert model._desk.session.length == 0
        assert np.array_equal(model.embed("a"), fake.embedding_model().embed("a"))


def test_in_an_event_loop() -> None:
    async def ask() -> None:
        async with fake.embedding_model() as model:
            one, two = await asyncio.gather(model.aembed("one"), model.aembed(["two"]))
            assert np.array_equal(np.concatenate([one, two]), await model.aembed(["one", "two"]))
            with pytest.raises(UsageError, match=r"texts\[0\]"):
                await model.aembed([1])  # type: ignore[list-item]

    asyncio.run(ask())


def test_vectors_are_numbers_of_json() -> None:
    with fake.embedding_model() as model:
        vector = model.embed("text")[0]
    numbers = [float(str(each)) for each in vector]
    assert np.array_equal(np.array(json.loads(json.dumps(numbers)), np.float32), vector)
