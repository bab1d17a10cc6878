"""A decode loop on llama.cpp: chunks of tokens in, logits out, with a cancel that stops in the middle of a chunk."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgepack import snapshot
from edgepack.admission import admitted
from edgepack.errors import EngineError
from edgepack.snapshot import Buffer
from edgepack_runtimes.gguf import abi
from edgepack_runtimes.gguf.native import Float32, Native
from edgepack_runtimes.gguf.ring import Bytes, Ring
from edgepack_runtimes.gguf.state import read_rest, read_state, rearrange, remove_from, write_sequence, write_state
from edgepack_runtimes.gguf.stepping import OUTPUTS, Stepping
from edgepack_runtimes.marks import Marks
from edgepack_runtimes.threads import Threads

_SEQUENCE: Final = 0
_OLDEST: Final = struct.Struct("<i")


class GgufSession(Stepping):
    """A ``Session`` on llama.cpp, see ``edgepack.runtime``."""

    def __init__(
        self,
        native: Native,
        *,
        path: Path,
        device: str,
        facts: Mapping[str, str],
        n_vocab: int,
        context: int,
        chunk: int,
        ring: Ring | None,
        marks: Marks[Bytes] | None,
        threads: Threads | None,
        spin: bool | None,
    ) -> None:
        super().__init__(
            native,
            path=path,
            device=device,
            n_vocab=n_vocab,
            context=context,
            chunk=chunk,
            threads=threads,
            spin=spin,
        )
        self._facts = facts
        self._ring = ring
        self._marks = marks  # None where all layers can forget single tokens
        self._length = 0
        self._placed = 0  # of the tokens that were given to the engine
        self._oldest = 0  # what llama.cpp does not know of ``_held_from``

    @property
    def length(self) -> int:
        """Tokens in the KV cache. Raises ``EngineError`` after ``close``."""
        if self._native.closing:
            raise self._closed()
        return self._length

    def forward(self, tokens: Sequence[int]) -> Float32:
        """Append tokens (at least one) and return the logits after the last: float32 [n_vocab]."""
        ids = self._admit(tokens)
        logits: Float32 = self._evaluate(ids, len(ids) - 1)[0]
        return logits

    def forward_all(self, tokens: Sequence[int]) -> Float32:
        """Append tokens and return the logits after each: float32 [n_tokens, n_vocab]."""
        return self._evaluate(self._admit(tokens), 0)

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens, or all where the layers with a window have forgotten too much.

        Returns how many are kept. Raises ``ValueError`` unless 0 <= length <= self.length.
        """
        self._enter()
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self._length} tokens")
        if length < self._length:
            with self._inside():
                self._forget(length)
        return self._length

    def snapshot(self) -> bytes:
        """Return the position from which on layers with a window hold all tokens, int32, and the cache as llama.cpp
        writes it, sealed with what it belongs to."""
        self._enter()
        with self._inside() as native:
            oldest = self._held_from()
            payload = self._written(native)
        if payload is None:
            raise EngineError(f"llama.cpp cannot write the state of {self._path}.")
        return snapshot.seal(self._facts, self._length, [_OLDEST.pack(oldest), *payload])

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot. Raises ``ValueError``; where llama.cpp refuses it, the cache is empty."""
        self._enter()
        length, payload = snapshot.unseal(state, self._facts, self._context)
        with self._inside():
            self._forget(0)  # the state of an empty cache would leave another as it is
            if not self._read(length, payload):
                self._forget(0)
                raise ValueError(f"llama.cpp refuses the snapshot of {length} tokens for {self._path}.")
            self._length = self._placed = length
            if self._marks is not None:
                self._marks.clear()
                self._mark()

    def _written(self, native: Native) -> Sequence[Buffer] | None:
        if self._marks is None:
            return write_state(native.native, native.context)
        state = write_sequence(native.native, native.context, abi.STATE_OF_ALL)
        return None if state is None else [state.data]

    def _read(self, length: int, payload: memoryview) -> bool:
        native = self._native
        if len(payload) < _OLDEST.size:
            return False
        (self._oldest,) = _OLDEST.unpack_from(payload)
        found = read_state(native.native, native.context, payload[_OLDEST.size :])
        return found == length and 0 <= self._oldest <= length and self._has_order(length)

    def _admit(self, tokens: Sequence[int]) -> list[int]:
        self._enter()
        return admitted(tokens, n_vocab=self._n_vocab, length=self._length, context=self._context)

    def _evaluate(self, ids: list[int], first: int) -> Float32:
        """Append ids; return the outputs after each from index ``first`` on: float32 [len(ids) - first, columns]."""
        start = self._length
        try:
            self._begin()
            with self._native.busy:
                if len(ids) > 1:  # a prompt, or guesses
                    self._mark()
                logits = self._run(ids, first)
                if len(ids) > 1:
                    self._mark()
            self._end()
        except BaseException:
            self._abandon(lambda: self._forget(start))
            raise
        return logits

    def _run(self, ids: list[int], first: int) -> Float32:
        native = self._native
        if first == len(ids) - 1:  # a prompt, or a token: the last chunk alone has logits
            logits, step = None, self._chunk
        else:
            logits, step = np.empty((len(ids) - first, self._n_vocab), np.float32), min(self._chunk, OUTPUTS)
        for begin in range(0, len(ids), step):
            chunk = ids[begin : begin + step]
            n = len(chunk)
            silent = min(max(first - begin, 0), n)
            self._step(chunk, silent)
            if logits is not None and silent < n:
                logits[begin + silent - first : begin + n - first] = native.results(n - silent)
        return native.results(1).copy() if logits is None else logits

    def _step(self, chunk: list[int], silent: int) -> None:
        """Append a chunk of ids, of which the first ``silent`` have no outputs."""
        native = self._native
        for place, token in enumerate(chunk):
            native.tokens[place] = token
            native.positions[place] = self._length + place
            native.outputs[place] = int(place >= silent)
        self._placed = self._length + len(chunk)
        self._decode(len(chunk), f"after {self._length}")
        self._length = self._placed

    def _forget(self, length: int) -> None:
        native, ring, oldest = self._native, self._ring, self._held_from()
        if ring is not None and oldest > ring.oldest_seen(length):
            length = 0
        if self._marks is not None and length < self._placed:
            length, state = self._marks.back(length)
            if state is not None and not read_rest(native.native, native.context, state):
                raise EngineError(f"llama.cpp cannot go back to {length} tokens in {self._path}.")
        if not remove_from(native.native, native.memory, length):
            raise EngineError(f"llama.cpp cannot remove the tokens after {length} from the cache of {self._path}.")
        if ring is not None and ring.is_crossed(length, self._placed) and not self._has_order(length):
            raise EngineError(f"llama.cpp cannot put the tokens before {length} in order in {self._path}.")
        self._length = self._placed = length
        self._oldest = min(oldest, length)

    def _mark(self) -> None:
        native = self._native
        if self._marks is None or not self._length or self._length in self._marks or native.context is None:
            return
        if (state := write_sequence(native.native, native.context, abi.STATE_OF_THE_REST)) is None:
            raise EngineError(f"llama.cpp cannot write the state of {self._path}.")
        self._marks.keep(self._length, state)

    def _has_order(self, length: int) -> bool:
        """Put the tokens of layers with a window where they belong, and say whether llama.cpp did."""
        native, ring = self._native, self._ring
        return ring is None or not length or rearrange(native.native, native.context, ring, length)

    def _held_from(self) -> int:
        """Return the position from which on layers with a window hold all tokens.

        llama.cpp knows it, but for cells that were only filled: see ``ring.rearranged``.
        """
        if self._ring is None:
            return 0
        found: int = self._native.native.llama_memory_seq_pos_min(self._native.memory, _SEQUENCE)
        return max(self._oldest, found)
