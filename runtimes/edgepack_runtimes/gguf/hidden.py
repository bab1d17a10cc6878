"""A session of a model without a head: llama.cpp's embeddings without pooling, which are what a head would read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepack.admission import WithoutHead, check_first
from edgepack_runtimes.gguf.native import Float32
from edgepack_runtimes.gguf.session import GgufSession
from edgepack_runtimes.gguf.stepping import OUTPUTS


class HiddenSession(WithoutHead, GgufSession):
    """See ``edgepack.runtime.Hidden``."""

    def hidden(self, tokens: Sequence[int], first: int = 0) -> Float32:
        """Append tokens and return the states after each from ``first`` on: float32 [n_tokens - first, hidden size]."""
        ids = self._admit(tokens)
        check_first(first, len(ids))
        return self._evaluate(ids, first)

    def _run(self, ids: list[int], first: int) -> Float32:
        native, step = self._native, min(self._chunk, OUTPUTS)
        states = np.empty((len(ids) - first, native.columns), np.float32)
        # While it gives embeddings llama.cpp gives them of every token, and computes the head for each.
        native.native.llama_set_embeddings(native.context, False)
        for begin in range(0, first, self._chunk):
            silent = ids[begin : min(begin + self._chunk, first)]
            self._step(silent, len(silent))
        native.native.llama_set_embeddings(native.context, True)
        for begin in range(first, len(ids), step):
            part = ids[begin : begin + step]
            self._step(part, 0)
            states[begin - first : begin - first + len(part)] = native.results(len(part))
        return states


class AtOnceSession(HiddenSession):
    """Of a model whose tokens see those after them: a text is one batch, of which llama.cpp keeps nothing."""

    def _run(self, ids: list[int], first: int) -> Float32:
        self._step(ids, 0)
        self._length = self._placed = 0
        states: Float32 = self._native.results(len(ids))[first:].copy()
        return states
