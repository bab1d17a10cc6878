"""A session of a model without a head: llama.cpp's embeddings without pooling, which are what a head would read."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.admission import WithoutHead, check_first
from edgepack_runtimes.gguf.session import Float32, GgufSession


class HiddenSession(WithoutHead, GgufSession):
    """See ``edgepack.runtime.Hidden``."""

    def hidden(self, tokens: Sequence[int], first: int = 0) -> Float32:
        """Append tokens and return the states after each from ``first`` on: float32 [n_tokens - first, hidden size]."""
        ids = self._admit(tokens)
        check_first(first, len(ids))
        return self._evaluate(ids, first)
