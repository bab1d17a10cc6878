"""Several sequences in one context of llama.cpp: what is appended to them is computed in one batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgepack.admission import admitted, check_copy, check_sequence
from edgepack.errors import EngineError
from edgepack.runtime import Step
from edgepack_runtimes.gguf import abi
from edgepack_runtimes.gguf.native import Float32, Native
from edgepack_runtimes.gguf.ring import Bytes
from edgepack_runtimes.gguf.state import read_rest, write_sequence
from edgepack_runtimes.gguf.stepping import OUTPUTS, Stepping
from edgepack_runtimes.marks import Marks
from edgepack_runtimes.parts import Part, parts_of, rows_for, wanted
from edgepack_runtimes.spans import spans
from edgepack_runtimes.threads import Threads


class _Piece(NamedTuple):
    """The ids from ``begin`` to ``end`` of the part at that place."""

    part: int
    begin: int
    end: int


@dataclass(slots=True)
class _Text:
    """What a sequence holds: ``length`` tokens, of ``placed`` that were given to the engine, and what was marked of
    layers that keep a state, None where there are none."""

    length: int
    placed: int
    marks: Marks[Bytes] | None


class ParallelSession(Stepping):
    """A ``Session`` with ``Sequences`` on llama.cpp, see ``edgepack.runtime``.

    The cells of layers with a window are as many as those of others, so that nothing is forgotten.
    """

    def __init__(
        self,
        native: Native,
        *,
        path: Path,
        device: str,
        n_vocab: int,
        context: int,
        chunk: int,
        threads: Threads | None,
        spin: bool | None,
        states: bool,
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
        self._states = states
        self._texts = [_Text(0, 0, Marks() if states else None) for _ in native.sequences]

    @property
    def sequences(self) -> int:
        """How many there are."""
        return len(self._texts)

    @property
    def length(self) -> int:
        """Tokens of sequence 0. Raises ``EngineError`` after ``close``."""
        return self.length_of(0)

    def length_of(self, sequence: int) -> int:
        """Return the tokens that a sequence holds. Raises ``EngineError`` after ``close``."""
        if self._native.closing:
            raise self._closed()
        check_sequence(sequence, len(self._texts))
        return self._texts[sequence].length

    def forward(self, tokens: Sequence[int]) -> Float32:
        """Append tokens to sequence 0 and return the logits after the last: float32 [n_vocab]."""
        ids = self._admit(tokens)
        logits: Float32 = self._evaluate([Part(0, ids, len(ids) - 1)])[0][0]
        return logits

    def forward_all(self, tokens: Sequence[int]) -> Float32:
        """Append tokens to sequence 0 and return the logits after each: float32 [n_tokens, n_vocab]."""
        return self._evaluate([Part(0, self._admit(tokens), 0)])[0]

    def forward_batch(self, steps: Sequence[Step]) -> list[Float32]:
        """Append tokens to sequences; return float32 [n_vocab] for each step, with ``every`` [n_tokens, n_vocab]."""
        self._enter()
        lengths = [text.length for text in self._texts]
        parts = parts_of(steps, n_vocab=self._n_vocab, lengths=lengths, context=self._context, chunk=self._chunk)
        return wanted(steps, self._evaluate(parts))

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens of sequence 0, and return how many are kept."""
        return self.rewind_sequence(0, length)

    def rewind_sequence(self, sequence: int, length: int) -> int:
        """Forget all but the first ``length`` tokens of a sequence, and return how many are kept.

        Raises ``ValueError`` unless 0 <= length <= its length.
        """
        self._enter()
        check_sequence(sequence, len(self._texts))
        text = self._texts[sequence]
        if not 0 <= length <= text.length:
            raise ValueError(f"cannot rewind to {length}: sequence {sequence} holds {text.length} tokens")
        if length < text.length:
            with self._inside():
                self._forget(sequence, length)
        return text.length

    def copy(self, source: int, target: int, length: int) -> int:
        """Let a sequence hold the first ``length`` tokens of another, and return how many it holds.

        llama.cpp copies all of the other's cells before the next step; where sequences share cells, none.
        """
        self._enter()
        check_copy(source, target, length, [text.length for text in self._texts])
        its, mine = self._texts[source], self._texts[target]
        with self._inside() as native:
            self._forget(target, 0)
            if length:
                native.native.llama_memory_seq_cp(native.memory, source, target, -1, -1)
                mine.length = mine.placed = its.length
                mine.marks = None if its.marks is None else its.marks.copied()
                self._forget(target, length)
        return mine.length

    def _admit(self, tokens: Sequence[int]) -> list[int]:
        self._enter()
        return admitted(tokens, n_vocab=self._n_vocab, length=self._texts[0].length, context=self._context)

    def _evaluate(self, parts: Sequence[Part]) -> list[Float32]:
        """Append ids; return for each part the logits from its ``first`` on: float32 [n, n_vocab]."""
        lengths = [text.length for text in self._texts]
        prompts = [part.sequence for part in parts if len(part.ids) > 1]  # or guesses
        found = rows_for(parts, self._n_vocab)
        try:
            self._begin()
            with self._native.busy:
                self._mark(prompts)
                for pieces in _packed(parts, self._chunk, len(self._texts)):
                    self._step(parts, pieces, found)
                self._mark(prompts)
            self._end()
        except BaseException:
            self._abandon(lambda: self._take_back(lengths))
            raise
        return found

    def _step(self, parts: Sequence[Part], pieces: Sequence[_Piece], found: Sequence[Float32]) -> None:
        """Append what is evaluated together, and put the logits where they belong.

        llama.cpp computes together what follows each other, by the number and in the batch.
        """
        native, place = self._native, 0
        given = {parts[piece.part].sequence: piece for piece in pieces}
        resting = self._resting(given, sum(end - begin for _, begin, end in pieces))
        for sequence in sorted((*given, *resting)):
            text, pointer, ids, first = self._texts[sequence], native.sequences[sequence], [0], 1
            if sequence in given:
                part, begin, end = given[sequence]
                ids, first = parts[part].ids[begin:end], parts[part].first - begin
            for at, token in enumerate(ids):
                native.tokens[place] = token
                native.positions[place] = text.length + at
                native.outputs[place] = int(at >= first)
                native.batch.seq_id[place] = pointer
                place += 1
            text.placed = text.length + len(ids)
        self._decode(place, f"of {len(given)} sequences")
        for sequence in resting:
            self._forget(sequence, self._texts[sequence].length)
        rows = native.results(sum(max(0, end - max(begin, parts[part].first)) for part, begin, end in pieces))
        row = 0
        for sequence in sorted(given):
            part, begin, end = given[sequence]
            self._texts[sequence].length = self._texts[sequence].placed
            if (count := end - max(begin, first := parts[part].first)) > 0:
                found[part][end - first - count : end - first] = rows[row : row + count]
                row += count

    def _resting(self, given: Collection[int], tokens: int) -> list[int]:
        """Return the sequences for which a token is computed for nothing, and forgotten, beside so many tokens."""
        if self._states:
            return []
        between = [row for span in spans(given, self._may_rest) for row in span if row not in given]
        return between if tokens + len(between) <= len(self._native.tokens) else []

    def _may_rest(self, sequence: int) -> bool:
        return self._texts[sequence].length < self._context

    def _take_back(self, lengths: Sequence[int]) -> None:
        """Forget of each sequence all behind its length, as far as the engine was given more."""
        for sequence, length in enumerate(lengths):
            if self._texts[sequence].placed > length:
                self._forget(sequence, length)

    def _forget(self, sequence: int, length: int) -> None:
        native, text = self._native, self._texts[sequence]
        if text.marks is not None and length < text.placed:
            length, state = text.marks.back(length)
            if state is not None and not read_rest(native.native, native.context, state, sequence):
                raise EngineError(f"llama.cpp cannot go back to {length} tokens in {self._path}.")
        if not native.native.llama_memory_seq_rm(native.memory, sequence, length, -1):
            raise EngineError(f"llama.cpp cannot remove the tokens after {length} from the cache of {self._path}.")
        text.length = text.placed = length

    def _mark(self, sequences: Sequence[int]) -> None:
        native = self._native
        for sequence in sequences:
            text = self._texts[sequence]
            if text.marks is None or not text.length or text.length in text.marks or native.context is None:
                continue
            state = write_sequence(native.native, native.context, abi.STATE_OF_THE_REST, sequence)
            if state is None:
                raise EngineError(f"llama.cpp cannot write the state of {self._path}.")
            text.marks.keep(text.length, state)


def _packed(parts: Sequence[Part], chunk: int, sequences: int) -> Iterator[list[_Piece]]:
    """Yield what is evaluated together: at most a chunk and a token of each sequence, the shortest parts first."""
    room, outputs = chunk + sequences, min(chunk, OUTPUTS) + sequences
    pieces, tokens, rows = list[_Piece](), 0, 0
    for index, part in sorted(enumerate(parts), key=lambda each: len(each[1].ids)):
        begin, count = 0, len(part.ids)
        while begin < count:
            silent = max(0, part.first - begin)
            size = min(count - begin, chunk, room - tokens, silent + outputs - rows)
            # Cut only what is too long for any batch: else two would be longer by what little of it fits.
            whole = min(count - begin, chunk, silent + outputs)
            if size < whole and pieces:
                yield pieces
                pieces, tokens, rows = [], 0, 0
                continue
            pieces.append(_Piece(index, begin, begin + size))
            tokens, rows, begin = tokens + size, rows + max(0, size - silent), begin + size
            if begin < count:
                yield pieces
                pieces, tokens, rows = [], 0, 0
    yield pieces
