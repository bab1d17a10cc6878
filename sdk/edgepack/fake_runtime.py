"""The runtime behind ``edgepack.fake``: sessions that keep every promise of the seam, without an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, get_ident

import numpy as np
from numpy.typing import NDArray

from edgepack import fake_facts, snapshot
from edgepack.admission import (
    WithoutHead,
    admitted,
    admitted_steps,
    check_copy,
    check_first,
    check_sequence,
    check_sequences,
)
from edgepack.bundle.decoder import Decoder
from edgepack.device.hardware import Hardware
from edgepack.errors import Cancelled, EngineError, UsageError
from edgepack.runtime import Options, Step, Support

_PEAK = 40.0  # above the noise by so much that even a hot sampler follows the script
_MASK = 2**64 - 1


class FakeRuntime:
    """A runtime that invents logits, float32, from the tokens in its cache alone.

    ``script``: token ids that it says, one after the other, after each prompt; each has the largest logit by far.
    A forward of several tokens, a rewind, or a token that is not the script's, begins the script again. Without a
    script, or past its end, the logits are noise with a peak at a token that depends on all tokens before.
    ``aside``: so many tokens of the script, a thought, are left out where the cache ends with the tokens ``closed``.
    ``fail_at``, ``nan_at``: the number of the forward, from 1, in each session, that raises ``EngineError`` or
    returns NaN. ``before_step`` is called with the session before each step of at most ``Options.chunk`` tokens.
    ``takes_back``: the most tokens that a rewind can forget; one that is to forget more forgets all. None: any number.
    """

    name = fake_facts.NAME

    def __init__(
        self,
        script: Sequence[int] | None = None,
        *,
        fail_at: int | None = None,
        nan_at: int | None = None,
        before_step: Callable[[FakeSession], None] | None = None,
        aside: int = 0,
        closed: Sequence[int] = (),
        takes_back: int | None = None,
    ) -> None:
        self.script = tuple(script or ())
        self.aside = aside
        self.closed = tuple(closed)
        self.fail_at = fail_at
        self.nan_at = nan_at
        self.before_step = before_step
        self.takes_back = takes_back

    def probe(self, hardware: Hardware) -> Support:
        """Say that it runs anywhere."""
        return Support(devices=("cpu",), version="1", kv_caches=("f16", "f32"))

    def open(self, variant: Path, decoder: Decoder, options: Options) -> FakeSession:
        """Return a session of the decoder's vocabulary, or of its states. The variant's folder is not read."""
        if options.repack is not None:
            raise UsageError(f"The runtime fake cannot be told repack={options.repack}.", hint="It has no weights.")
        if options.spin is not None:
            raise UsageError(f"The runtime fake cannot be told spin={options.spin}.", hint="It has no threads.")
        check_sequences(options.sequences, headless=bool(decoder.headless))
        if decoder.headless:
            return FakeHiddenSession(self, decoder, options)
        return (FakeSession if options.sequences == 1 else FakeSequences)(self, decoder, options)


class _Text:
    """What a sequence holds. ``states`` has a hash of the first n tokens, for each n; ``said`` are the tokens of the
    script that are in it, None where the script has not begun."""

    def __init__(self, states: Sequence[int] = (0,), tokens: Sequence[int] = (), said: int | None = None) -> None:
        self.states, self.tokens, self.said = [*states], [*tokens], said

    @property
    def length(self) -> int:
        return len(self.tokens)

    def append(self, tokens: Sequence[int]) -> None:
        state = self.states[-1]
        for token in tokens:
            # The constants of Knuth's 64-bit linear congruential generator (MMIX).
            state = ((state ^ (token + 1)) * 6364136223846793005 + 1442695040888963407) & _MASK
            self.states.append(state)
            self.tokens.append(token)

    def kept(self, length: int, most: int | None) -> int:
        """Return how many of the first tokens are left where at most so many can be taken back."""
        return 0 if most is not None and self.length - length > most else length

    def cut(self, length: int) -> None:
        del self.states[length + 1 :], self.tokens[length:]


class FakeSession:
    """A session of ``FakeRuntime``; see ``edgepack.runtime.Session`` for what each method promises."""

    def __init__(self, runtime: FakeRuntime, decoder: Decoder, options: Options) -> None:
        self._runtime = runtime
        self._n_vocab, self._columns = decoder.n_vocab, decoder.outputs
        self._options = options
        self._facts = snapshot.facts("fake", decoder, options.kv_cache) | {"script": f"{hash(runtime.script):x}"}
        self._owner = get_ident()
        self._closed = False
        self._cancelled = Event()
        self._running = False
        self._forwards = 0
        self._texts = [_Text() for _ in range(options.sequences)]
        # Logits are a window into fixed noise: as cheap as one copy, and different for each state.
        self._noise = np.random.default_rng(0).standard_normal(2 * decoder.outputs).astype(np.float32)

    @property
    def device(self) -> str:
        """A processor."""
        return "cpu"

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._texts[0].length

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits after the last: float32 [n_vocab]."""
        last: NDArray[np.float32] = self._evaluate(tokens, len(tokens) - 1)[0]
        return last

    def forward_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits after each: float32 [n_tokens, n_vocab]."""
        return self._evaluate(tokens, 0)

    def rewind(self, length: int) -> int:
        """Forget all but the first tokens, or all, and return how many are kept."""
        return self._rewind(self._texts[0], length)

    def snapshot(self) -> bytes:
        """Return the state after each token, the tokens, and how much of the script has been said, sealed."""
        self._check()
        text = self._texts[0]
        said = 0 if text.said is None else text.said + 1
        values = np.array([said, *text.states, *text.tokens], np.uint64)
        return snapshot.seal(self._facts, text.length, [values.tobytes()])

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot."""
        self._check()
        length, payload = snapshot.unseal(state, self._facts, self._options.context)
        said, *values = np.frombuffer(payload, np.uint64).reshape(2 * length + 2).tolist()
        self._texts[0] = _Text(values[: length + 1], values[length + 1 :], said - 1 if said else None)

    def cancel(self) -> None:
        """Stop a forward that is running."""
        if self._running:
            self._cancelled.set()

    def close(self) -> None:
        """End the session."""
        self._check_thread()
        self._closed = True

    def _evaluate(self, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        """Append tokens and return the logits after those from index ``first`` on."""
        self._check()
        text = self._texts[0]
        tokens = admitted(tokens, n_vocab=self._n_vocab, length=text.length, context=self._options.context)
        return self._forward([(text, tokens, first)])[0]

    def _forward(self, parts: Sequence[tuple[_Text, Sequence[int], int]]) -> list[NDArray[np.float32]]:
        """Append tokens to texts, and return for each the logits after its tokens from the given index on."""
        self._forwards += 1
        if self._forwards == self._runtime.fail_at:
            raise EngineError(f"The fake engine failed at forward {self._forwards}, as planned.")
        said = [self._follow(text, tokens) for text, tokens, _ in parts]
        before = [text.length for text, _, _ in parts]
        chunk = self._options.chunk
        self._cancelled.clear()
        self._running = True
        try:
            for start in range(0, max(len(tokens) for _, tokens, _ in parts), chunk):
                self._step()
                for text, tokens, _ in parts:
                    text.append(tokens[start : start + chunk])
        except Cancelled:
            for (text, _, _), length in zip(parts, before, strict=True):
                text.cut(text.kept(length, self._runtime.takes_back))
            raise
        finally:
            self._running = False
        found = []
        for (text, tokens, first), text.said in zip(parts, said, strict=True):
            found.append(np.stack([self._logits(state) for state in text.states[first - len(tokens) :]]))
            if text.said is not None and text.said < len(self._runtime.script):
                found[-1][-1, self._runtime.script[text.said]] += _PEAK
            if self._forwards == self._runtime.nan_at:
                found[-1][:] = np.nan
        return found

    def _step(self) -> None:
        if self._runtime.before_step is not None:
            self._runtime.before_step(self)
        if self._cancelled.is_set():
            raise Cancelled("The forward was cancelled.")

    def _rewind(self, text: _Text, length: int) -> int:
        self._check()
        if not 0 <= length <= text.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {text.length} tokens")
        text.cut(text.kept(length, self._runtime.takes_back))
        text.said = None
        return text.length

    def _follow(self, text: _Text, tokens: Sequence[int]) -> int | None:
        """Return how much of the script has been said once these tokens are in the text."""
        script, said = self._runtime.script, text.said
        if not script:
            return None
        if said is not None and len(tokens) == 1 and said < len(script) and tokens[0] == script[said]:
            return said + 1
        if (closed := self._runtime.closed) and tuple([*text.tokens, *tokens][-len(closed) :]) == closed:
            return self._runtime.aside
        return len(script) if said == len(script) and len(tokens) == 1 else 0

    def _logits(self, state: int) -> NDArray[np.float32]:
        offset = (state >> 33) % self._columns
        logits = self._noise[offset : offset + self._columns].copy()
        logits[(state >> 17) % self._columns] += 10.0
        return logits

    def _check(self) -> None:
        self._check_thread()
        if self._closed:
            raise EngineError("The session is closed.", hint="Load the model again.")

    def _check_thread(self) -> None:
        if get_ident() != self._owner:
            raise EngineError("A session was used from a thread that did not open it.", hint="Call it from its thread.")


class FakeSequences(FakeSession):
    """A session of several sequences; see ``edgepack.runtime.Sequences``. A batch counts as one forward."""

    @property
    def sequences(self) -> int:
        """How many there are."""
        return self._options.sequences

    def length_of(self, sequence: int) -> int:
        """Return the tokens that a sequence holds."""
        return self._text(sequence).length

    def forward_batch(self, steps: Sequence[Step]) -> list[NDArray[np.float32]]:
        """Append tokens to sequences and return what each step wants: float32 [n_vocab], or [n_tokens, n_vocab]."""
        self._check()
        admitted = admitted_steps(
            ((step.sequence, step.tokens) for step in steps),
            n_vocab=self._n_vocab,
            lengths=[text.length for text in self._texts],
            context=self._options.context,
            chunk=self._options.chunk,
        )
        found = self._forward(
            [
                (self._texts[step.sequence], tokens, 0 if step.every else len(tokens) - 1)
                for step, tokens in zip(steps, admitted, strict=True)
            ]
        )
        return [rows if step.every else rows[0] for step, rows in zip(steps, found, strict=True)]

    def rewind_sequence(self, sequence: int, length: int) -> int:
        """Forget all but the first tokens of a sequence, or all, and return how many are kept."""
        return self._rewind(self._text(sequence), length)

    def copy(self, source: int, target: int, length: int) -> int:
        """Let a sequence hold the first tokens of another, or none, and return how many it holds."""
        self._check()
        check_copy(source, target, length, [text.length for text in self._texts])
        text = self._texts[source]
        kept = text.kept(length, self._runtime.takes_back)
        self._texts[target] = _Text(text.states[: kept + 1], text.tokens[:kept])
        return kept

    def _text(self, sequence: int) -> _Text:
        check_sequence(sequence, len(self._texts))
        return self._texts[sequence]


class FakeHiddenSession(WithoutHead, FakeSession):
    """A session of a model without a head: its states are noise that depends on all tokens before."""

    def hidden(self, tokens: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Append tokens and return the states after each from ``first`` on: float32 [n_tokens - first, hidden size]."""
        check_first(first, max(len(tokens), 1))
        return self._evaluate(tokens, first)
