"""The tokens of a model in the form that llguidance works with: the bytes that each of them shows a user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from edgepack import threads
from edgepack.structured.closing import BYTES
from edgepack.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

NUMERIC = b"-+.0123456789eE"  # what a number in JSON is written with


class Vocabulary:
    """``bytes`` of each token, ``ids`` by bytes, and ``native``, which has one token more: the end of an answer.

    Tokens that show nothing, such as special ones and rows without a token, are in no answer. ``spaced`` are those
    that begin with a space, by the byte behind it. ``numeric`` is how many bytes at the beginning of each may go on a
    number.
    """

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.strips_space = tokenizer.strips_space
        self.bytes = [tokenizer.token_bytes(token) for token in range(n_vocab)]
        self.ids = {data: token for token, data in enumerate(self.bytes) if data}
        self.spaced: dict[bytes, list[int]] = {}
        for token, data in enumerate(self.bytes):
            if data.startswith(b" "):
                self.spaced.setdefault(data[1:2], []).append(token)
        self.numeric = np.array([len(data) - len(data.lstrip(NUMERIC)) for data in self.bytes], np.uint32)
        self.native = _native(self.bytes)


_making = threads.lock()
_known: WeakKeyDictionary[Tokenizer, dict[int, Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Tokenizer, n_vocab: int) -> Vocabulary:
    """Return the vocabulary of a model with ``n_vocab`` rows; it is made once."""
    with _making:  # 128k tokens take half a second, which is not to be spent twice
        known = _known.setdefault(tokenizer, {})
        if n_vocab not in known:
            known[n_vocab] = Vocabulary(tokenizer, n_vocab)
        return known[n_vocab]


@lru_cache(1)
def of_bytes() -> LLTokenizer:
    """Return a vocabulary of the 256 bytes and the end of an answer."""
    return _native(BYTES)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What llguidance wants to know of a tokenizer."""

    tokens: list[bytes]
    eos_token_id: int
    bos_token_id: None = None

    def __call__(self, text: bytes) -> list[int]:
        """Is not asked for while nothing is forced (see ``edgepack.structured.lark``)."""
        return []


def _native(tokens: Sequence[bytes]) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    whole = LLTokenizer(TokenizerWrapper(_Tokens([*tokens, b""], len(tokens))), slices=[])
    # By itself, so that other threads run in between: each of the two holds the interpreter.
    return whole.with_slices(LLTokenizer.general_slices())
