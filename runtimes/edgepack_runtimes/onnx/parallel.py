"""Several sequences on one of edgepack's own graphs: caches with a row for each, of which a step takes a range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepack.admission import admitted, check_copy, check_sequence
from edgepack.bundle.decoder import Decoder
from edgepack.errors import Cancelled
from edgepack.runtime import Options, Step
from edgepack_runtimes.marks import Marks
from edgepack_runtimes.onnx.cache import Numbers, StateRows, new_cache
from edgepack_runtimes.onnx.check import check
from edgepack_runtimes.onnx.signature import caches_of, check_signature, state_names
from edgepack_runtimes.onnx.stepping import Float32, Running
from edgepack_runtimes.onnx.wire import GRAPH_FILE
from edgepack_runtimes.parts import Part, parts_of, rows_for, wanted
from edgepack_runtimes.spans import spans


@dataclass(slots=True)
class _Text:
    """What a sequence holds, and what was marked of layers that keep a state."""

    length: int = 0
    marks: Marks[list[Numbers]] = field(default_factory=Marks)


class ParallelSession(Running):
    """A ``Session`` with ``Sequences``, see ``edgepack.runtime``.

    Single tokens are computed together, prompts one after the other: attention pads what is appended to several rows to
    the longest of them. In the rows of a range that rest, a token is computed for nothing: its key and value lie behind
    the row's last, and are written over. A graph whose layers share keys takes only one row: it has the keys of no
    position as a constant of one.
    """

    def __init__(self, variant: Path, decoder: Decoder, options: Options, device: str) -> None:
        super().__init__(variant, decoder, options, device, lambda: check(variant, decoder, options.kv_cache))
        check_signature(self._engine, variant / GRAPH_FILE, decoder, options.kv_cache)
        count = options.sequences
        self._texts = [_Text() for _ in range(count)]
        self._together = len(decoder.keeping) == len(decoder.attending)
        self._caches = [
            (past, present, new_cache(decoder, options, shape, device)) for past, present, shape in caches_of(decoder)
        ]
        states = {state_names(*key): shape for key, shape in decoder.states.items()}
        self._states = StateRows(states, count, device) if states else None
        self._bound = range(0)
        self._start = np.zeros(1, np.int64)
        self._tokens = np.zeros((count, 1), np.int64)

    @property
    def sequences(self) -> int:
        """How many there are."""
        return len(self._texts)

    @property
    def length(self) -> int:
        """Tokens of sequence 0."""
        return self._texts[0].length

    def length_of(self, sequence: int) -> int:
        """Return the tokens that a sequence holds."""
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
        self._check_use()
        parts = parts_of(
            steps,
            n_vocab=self._decoder.n_vocab,
            lengths=[text.length for text in self._texts],
            context=self._options.context,
            chunk=self._options.chunk,
        )
        return wanted(steps, self._evaluate(parts))

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens of sequence 0, and return how many are kept."""
        return self.rewind_sequence(0, length)

    def rewind_sequence(self, sequence: int, length: int) -> int:
        """Forget all but the first ``length`` tokens of a sequence, and return how many are kept."""
        self._check_use()
        check_sequence(sequence, len(self._texts))
        if not 0 <= length <= self._texts[sequence].length:
            held = self._texts[sequence].length
            raise ValueError(f"Sequence {sequence} holds {held} tokens; it cannot be rewound to {length}.")
        self._go_back(sequence, length)
        return self._texts[sequence].length

    def copy(self, source: int, target: int, length: int) -> int:
        """Let a sequence hold the first ``length`` tokens of another, and return how many it holds."""
        self._check_use()
        check_copy(source, target, length, [text.length for text in self._texts])
        its = self._texts[source]
        for _, _, cache in self._caches:
            cache.write(cache.read(length, source), target)
        if self._states:
            self._states.put(target, self._states.copies(source))
        self._texts[target] = _Text(its.length, its.marks.copied())
        self._go_back(target, length)
        return self._texts[target].length

    def _release(self) -> None:
        self._caches, self._states = [], None
        self._texts = [_Text() for _ in self._texts]

    def _admit(self, tokens: Sequence[int]) -> list[int]:
        self._check_use()
        return admitted(tokens, n_vocab=self._decoder.n_vocab, length=self.length, context=self._options.context)

    def _evaluate(self, parts: Sequence[Part]) -> list[Float32]:
        """Append ids; return for each part the logits from its ``first`` on: float32 [n, n_vocab]."""
        found = rows_for(parts, self._decoder.n_vocab)
        rows = {part.sequence: (part, logits) for part, logits in zip(parts, found, strict=True)}
        before = {each: self._texts[each].length for each in rows}
        prompts = [each for each, (part, _) in rows.items() if len(part.ids) > 1]  # or guesses
        together = {each: row for each, row in rows.items() if self._together and each not in prompts}
        self._mark(prompts)
        with self._interruptible():
            try:
                for span in spans(together, self._may_rest):
                    self._step_together(span, {each: together[each] for each in span if each in together})
                for each in [each for each in rows if each not in together]:
                    self._append(*rows[each])
            except BaseException:
                for each, length in before.items():
                    self._go_back(each, length)
                raise
        self._mark(prompts)
        return found

    def _may_rest(self, sequence: int) -> bool:
        """Whether a token can be computed for nothing: there is a place for it behind the last."""
        return self._texts[sequence].length < self._options.context

    def _append(self, part: Part, logits: Float32) -> None:
        """Append ids in chunks; a chunk before those whose logits are wanted computes none at all."""
        for begin in range(0, len(part.ids), len(self._ids)):
            ids = part.ids[begin : begin + len(self._ids)]
            silent = min(max(part.first - begin, 0), len(ids))
            at = max(begin - part.first, 0)
            self._ids[: len(ids)] = ids
            self._start[0] = silent
            length = self._texts[part.sequence].length + len(ids)
            rows = range(part.sequence, part.sequence + 1)
            self._step(rows, self._ids[: len(ids)], self._mask[:length], logits[at : at + len(ids) - silent])
            self._keep({part.sequence: length})

    def _step_together(self, rows: range, parts: dict[int, tuple[Part, Float32]]) -> None:
        """Append one token to each of some sequences of a range, and compute one for nothing in those that rest."""
        if len(rows) == 1:
            self._append(*parts[rows.start])
            return
        counts = np.array([self._texts[row].length + 1 for row in rows])
        mask = (np.arange(counts.max()) < counts[:, None]).astype(np.int64)
        self._tokens[:] = 0
        for row, (part, _) in parts.items():
            self._tokens[row - rows.start] = part.ids
        logits = np.empty((len(rows), self._decoder.n_vocab), np.float32)
        self._start[0] = 0
        self._step(rows, self._tokens[: len(rows)], mask, logits)
        for row, (_, target) in parts.items():
            target[0] = logits[row - rows.start]
        self._keep({row: self._texts[row].length + 1 for row in parts})

    def _step(self, rows: range, ids: NDArray[np.int64], mask: NDArray[np.int64], logits: Float32) -> None:
        """Compute ids [rows, n], or [n] of one, with a mask of as many rows, and fill logits [rows x n - start]."""
        if self._cancelled:
            raise Cancelled("The evaluation was cancelled.")
        count = len(rows)
        self._bind_input("input_ids", ids, (count, ids.size // count))
        self._bind_input("attention_mask", mask, (count, mask.size // count))
        self._bind_input("logits_start", self._start, (1,))
        # An empty output is bound too, to an address that is never written.
        target = logits if len(logits) else self._start
        self._bind_logits("logits", target, (count, len(logits) // count, self._decoder.n_vocab))
        if rows != self._bound:
            for past, present, cache in self._caches:
                cache.bind_rows(self._binding, past, present, rows)
            if self._states:
                self._states.bind(self._binding, rows)
            self._bound = rows
        self._run()

    def _keep(self, lengths: dict[int, int]) -> None:
        """Take what a step wrote of sequences, which hold so many tokens then."""
        if self._states:
            self._states.keep(list(lengths))
        for row, length in lengths.items():
            self._texts[row].length = length

    def _mark(self, sequences: Sequence[int]) -> None:
        for each in sequences if self._states else ():
            text = self._texts[each]
            if self._states and text.length and text.length not in text.marks:
                text.marks.keep(text.length, self._states.copies(each))

    def _go_back(self, sequence: int, length: int) -> None:
        text = self._texts[sequence]
        if self._states and length < text.length:
            length, state = text.marks.back(length)
            self._states.put(sequence, state)
        text.length = length
