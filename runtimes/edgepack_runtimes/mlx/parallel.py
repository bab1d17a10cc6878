"""Several sequences in mlx: what is appended to them lies in one row, in which only the mixers tell them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import RLock

import mlx.core as mx
import numpy as np

from edgepack.admission import check_copy, check_sequence
from edgepack.bundle.decoder import Decoder
from edgepack.errors import Cancelled, EngineError
from edgepack.runtime import Options, Step
from edgepack_runtimes.mlx.model import Transformer
from edgepack_runtimes.mlx.session import MlxSession
from edgepack_runtimes.parts import Float32, Part, parts_of, rows_for, wanted


class ParallelSession:
    """A ``Session`` with ``Sequences``, see ``edgepack.runtime``: a session for each text, of one model.

    The calls of one text are those of the first of them.
    """

    def __init__(
        self, model: Transformer, texts: Sequence[MlxSession], decoder: Decoder, options: Options, device: mx.Device
    ) -> None:
        self._model: Transformer | None = model
        self._texts = list(texts)
        self._decoder = decoder
        self._options = options
        self._stream = device
        first = texts[0]
        self.forward, self.forward_all, self.rewind = first.forward, first.forward_all, first.rewind
        self._lock = RLock()  # re-entrant, because a signal handler may cancel while its own thread is inside
        self._running = False
        self._cancelled = False

    @property
    def device(self) -> str:
        """What the arrays are evaluated on: "metal" or "cpu"."""
        return self._texts[0].device

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

    def forward_batch(self, steps: Sequence[Step]) -> list[Float32]:
        """Append tokens to sequences; return float32 [n_vocab] for each step, with ``every`` [n_tokens, n_vocab]."""
        parts = parts_of(
            steps,
            n_vocab=self._decoder.n_vocab,
            lengths=[text.length for text in self._texts],
            context=self._options.context,
            chunk=self._options.chunk,
        )
        return wanted(steps, self._evaluate(parts))

    def rewind_sequence(self, sequence: int, length: int) -> int:
        """Forget all but the first ``length`` tokens of a sequence, and return how many are kept."""
        check_sequence(sequence, len(self._texts))
        return self._texts[sequence].rewind(length)

    def copy(self, source: int, target: int, length: int) -> int:
        """Let a sequence hold the first ``length`` tokens of another, and return how many it holds."""
        check_copy(source, target, length, [text.length for text in self._texts])
        text = self._texts[target]
        text.copy(self._texts[source])
        return text.rewind(length)

    def cancel(self) -> None:
        """Stop a forward that is running, at the end of its chunk. From any thread."""
        with self._lock:
            self._cancelled = self._running
        self._texts[0].cancel()

    def close(self) -> None:
        """Free the model and its caches."""
        for text in self._texts:
            text.close()
        self._model = None

    def _evaluate(self, parts: Sequence[Part]) -> list[Float32]:
        """Append ids; return for each part the logits from its ``first`` on: float32 [n, n_vocab]."""
        before = {part.sequence: self.length_of(part.sequence) for part in parts}
        found = rows_for(parts, self._decoder.n_vocab)
        prompts = [self._texts[part.sequence] for part in parts if len(part.ids) > 1]  # or guesses
        for text in prompts:
            text.mark()
        with self._lock:
            self._running, self._cancelled = True, False
        try:
            with mx.stream(self._stream):
                for places in self._packed(parts):
                    self._check_cancelled()
                    self._step([parts[place] for place in places], [found[place] for place in places])
                self._check_cancelled()
        except Cancelled:
            for sequence, length in before.items():
                self._texts[sequence].rewind(length)
            raise
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EngineError(f"mlx failed on {len(parts)} sequences: {error}") from error
        finally:
            with self._lock:
                self._running = False
        for text in prompts:
            text.mark()
        return found

    def _packed(self, parts: Sequence[Part]) -> Iterator[list[int]]:
        """Yield which parts are evaluated together: at most a chunk and a token of each, the shortest first."""
        together, tokens = list[int](), 0
        for place, part in sorted(enumerate(parts), key=lambda each: len(each[1].ids)):
            if together and tokens + len(part.ids) > self._options.chunk + len(self._texts):
                yield together
                together, tokens = [], 0
            together.append(place)
            tokens += len(part.ids)
        yield together

    def _step(self, parts: Sequence[Part], found: Sequence[Float32]) -> None:
        model = self._model
        assert model is not None  # its texts say so when it is closed
        texts = [self._texts[part.sequence] for part in parts]
        hidden = model.hidden([(part.ids, text.layers) for part, text in zip(parts, texts, strict=True)])
        mx.eval(hidden, [text.arrays() for text in texts])
        places, end = list[int](), 0
        for part in parts:
            places += range(end + part.first, end := end + len(part.ids))
        logits = np.array(model.logits(hidden[:, mx.array(places)])[0])
        if end > len(parts):  # scores of a longer context would not fit in what those of this one leave
            mx.clear_cache()
        start = 0
        for rows in found:
            rows[:] = logits[start : (start := start + len(rows))]

    def _check_cancelled(self) -> None:
        with self._lock:
            if self._cancelled:
                raise Cancelled("The session was asked to stop.")
