"""Vectors of texts: the part of a ``Model`` that a bundle without a head has, and the others refuse."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.embedding import Embedding
from edgepack.bundle.manifest import Manifest
from edgepack.decoding.desk import Desk
from edgepack.errors import PromptTooLongError, UsageError
from edgepack.pooling import first_needed, pooled
from edgepack.runtime import Hidden
from edgepack.text.embedded import ids_of, prompt_of
from edgepack.text.messages import whole
from edgepack.text.tokenizer import Tokenizer

Float32 = NDArray[np.float32]


class Embeds:
    """What a model does that embeds."""

    _manifest: Manifest
    _tokenizer: Tokenizer
    _desk: Desk
    _dense: Sequence[Float32]

    def embed(self, texts: str | Sequence[str], prompt: str | None = None) -> Float32:
        """Return the vector of each text: float32 [n, size]. A single text is one of one.

        ``prompt`` is the name of one of the bundle's prompts ("query"), whose text stands before each; None takes the
        bundle's default, where it has one, and "" none. A text is whole or refused: it is never cut. Each is evaluated
        by itself, so that its vector does not depend on the others.
        Raises ``UsageError`` for a model that does not embed, a prompt that the bundle does not have or what is no
        text, ``PromptTooLongError``, in all cases before anything is evaluated; ``EngineError`` where the engine fails.
        """
        embedding, asked = self._asked(texts, prompt)
        found = [self._desk.call(partial(self._vector, embedding, ids)) for ids in asked]
        return np.stack(found) if found else np.empty((0, embedding.size), np.float32)

    async def aembed(self, texts: str | Sequence[str], prompt: str | None = None) -> Float32:
        """``embed`` for an event loop, which goes on meanwhile. A cancelled task stops the engine."""
        embedding, asked = self._asked(texts, prompt)
        found = [await self._desk.acall(partial(self._vector, embedding, ids)) for ids in asked]
        return np.stack(found) if found else np.empty((0, embedding.size), np.float32)

    def _asked(self, texts: str | Sequence[str], prompt: str | None) -> tuple[Embedding, list[list[int]]]:
        """Return what is to be made of texts, and their ids."""
        embedding = self._manifest.embedding
        if embedding is None:
            raise UsageError(
                "This model writes texts, and makes no vectors of them.", hint="Load a bundle of a model that embeds."
            )
        before = prompt_of(embedding, prompt)
        each = [texts] if isinstance(texts, str) else list(texts)
        return embedding, [self._ids(embedding, before, text, f"texts[{place}]") for place, text in enumerate(each)]

    def _ids(self, embedding: Embedding, before: str, text: str, place: str) -> list[int]:
        if not isinstance(text, str):
            raise UsageError(f"{place} is of type {type(text).__name__}.", hint="Pass a str.")
        whole(text, place)
        most = self._desk.options.context
        if (least := self._tokenizer.at_least(before + text)) > most:
            raise _too_long(place, f"at least {least}", most)
        ids = ids_of(self._tokenizer, embedding, text, before)
        if not ids:
            raise UsageError(f"{place} is empty, and this model reads nothing beside it.", hint="Pass a text.")
        if len(ids) > most:
            raise _too_long(place, str(len(ids)), most)
        return ids

    def _vector(self, embedding: Embedding, ids: list[int]) -> Float32:
        """Evaluate a text from an empty cache, on the owner's thread."""
        session = self._desk.session
        if not isinstance(session, Hidden):
            raise UsageError("This engine gives no states.", hint="Load the bundle with another backend.")
        self._desk.seat.rewind(0)
        states = self._desk.seat.step(partial(session.hidden, first=first_needed(embedding, len(ids))), ids)
        return pooled(embedding, states, self._dense)


def _too_long(place: str, count: str, most: int) -> PromptTooLongError:
    return PromptTooLongError(
        f"{place} has {count} tokens, the context {most}.",
        hint="Cut it into parts, or load with a larger context; it is never cut silently.",
    )
