"""What is appended to several sequences, and what comes back of it, as every session of several takes and gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepack.admission import admitted_steps
from edgepack.runtime import Step

Float32 = NDArray[np.float32]


class Part(NamedTuple):
    """Ids to append to a sequence; the logits after those from index ``first`` on are wanted."""

    sequence: int
    ids: list[int]
    first: int


def parts_of(steps: Sequence[Step], *, n_vocab: int, lengths: Sequence[int], context: int, chunk: int) -> list[Part]:
    """Return steps as what is appended. Arguments and errors are those of ``admitted_steps``."""
    asked = [(step.sequence, step.tokens) for step in steps]
    admitted = admitted_steps(asked, n_vocab=n_vocab, lengths=lengths, context=context, chunk=chunk)
    firsts = [0 if step.every else len(ids) - 1 for step, ids in zip(steps, admitted, strict=True)]
    return [Part(step.sequence, ids, first) for step, ids, first in zip(steps, admitted, firsts, strict=True)]


def rows_for(parts: Sequence[Part], n_vocab: int) -> list[Float32]:
    """Return room for the logits that each part wants: float32 [n, n_vocab]."""
    return [np.empty((len(part.ids) - part.first, n_vocab), np.float32) for part in parts]


def wanted(steps: Sequence[Step], rows: Sequence[Float32]) -> list[Float32]:
    """Return the rows of each step as ``forward_batch`` does: those of one without ``every`` as [n_vocab]."""
    return [each if step.every else each[0] for step, each in zip(steps, rows, strict=True)]
