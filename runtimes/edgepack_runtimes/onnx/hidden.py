"""A session of a model without a head, whose graph ends at the last norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepack.admission import WithoutHead, check_first
from edgepack_runtimes.onnx.session import OnnxSession
from edgepack_runtimes.onnx.stepping import Float32


class HiddenSession(WithoutHead, OnnxSession):
    """See ``edgepack.runtime.Hidden``."""

    def hidden(self, tokens: Sequence[int], first: int = 0) -> Float32:
        """Append tokens and return the states after each from ``first`` on: float32 [n_tokens - first, hidden size]."""
        ids = self._admit(tokens)
        check_first(first, len(ids))
        states = np.empty((len(ids) - first, self._decoder.outputs), np.float32)
        self._evaluate(ids, states)
        if self._decoder.at_once:
            self._length = 0  # nothing of it was kept
        return states
