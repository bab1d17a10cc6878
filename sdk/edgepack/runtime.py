"""The seam between the SDK and an engine. It knows token ids and logits, nothing of text, chat or sampling.

A runtime is found through the entry point group ``edgepack.runtimes``: a name and a class without arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.decoder import KvCache as KvCache
from edgepack.device.engine import Engine as Engine
from edgepack.device.engine import Options as Options
from edgepack.device.engine import Speed as Speed
from edgepack.device.engine import Support as Support
from edgepack.device.hardware import Hardware
from edgepack.errors import EngineMissingError


class Session(Protocol):
    """A loaded model with its KV cache. It belongs to one thread; only ``cancel`` may come from another.

    Arrays that are returned are the caller's own. After an error other than ``Cancelled`` the session must be closed.
    """

    @property
    def device(self) -> str:
        """What the weights are computed on: "cpu", "metal" or "cuda", read from the engine after the load."""
        ...

    @property
    def length(self) -> int:
        """Tokens in the KV cache."""
        ...

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens (at least one) and return the logits after the last: float32 [n_vocab].

        Raises ``Cancelled`` after ``cancel``, with what ``rewind`` to its length before the call keeps in the cache;
        ``PromptTooLongError`` when the tokens do not fit the context, ``ValueError`` for an id outside the vocabulary
        or no token at all, in both cases before anything is evaluated.
        """
        ...

    def forward_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits after each: float32 [n_tokens, n_vocab]. Raises as ``forward``."""
        ...

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens and return how many are kept: ``length``, or fewer.

        An engine whose layers hold little more than their windows see may have forgotten what lies before ``length``,
        and layers that keep a state go back only to where a forward of several tokens began or ended, of which the
        session keeps some. It keeps what it can go on from to the last bit as after the same steps without the others,
        if need be nothing; the caller evaluates the rest again. Guesses can be taken back: of a last forward of at most
        ``Options.chunk`` tokens all but the first, or by layers with a state the whole.
        Raises ``ValueError`` unless 0 <= length <= self.length.
        """
        ...

    def cancel(self) -> None:
        """Stop a ``forward`` that is running; without one running, do nothing. From any thread, any number of times."""
        ...

    def close(self) -> None:
        """Free the engine's memory. Safe to call twice; any other call afterwards raises ``EngineError``."""
        ...


@runtime_checkable
class Snapshots(Protocol):
    """A session whose KV cache can be taken out and put back."""

    def snapshot(self) -> bytes:
        """Return the cache in a form of the engine's own, for a session of the same variant, engine and options."""
        ...

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot; ``length`` is then the snapshot's.

        Raises ``ValueError`` for bytes that are no snapshot of such a session, with the cache as it was or empty.
        """
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens to append to a sequence: at least one, at most ``Options.chunk``. With ``every``, the logits after each of
    them are wanted, else those after the last."""

    sequence: int
    tokens: Sequence[int]
    every: bool = False


@runtime_checkable
class Sequences(Protocol):
    """A session that holds several sequences, of ``Options.context`` tokens each, and appends to them together.

    They are numbered from 0, whose calls are also those of ``Session``. After ``Cancelled`` a sequence holds what
    ``rewind_sequence`` to its length before keeps.
    """

    @property
    def sequences(self) -> int:
        """How many there are."""
        ...

    def length_of(self, sequence: int) -> int:
        """Return the tokens that a sequence holds."""
        ...

    def forward_batch(self, steps: Sequence[Step]) -> list[NDArray[np.float32]]:
        """Append tokens to sequences, to each at most once, and return what each step wants.

        That is float32 [n_vocab], or [n_tokens, n_vocab] with ``every``. Raises as ``Session.forward``, and
        ``ValueError`` for no step, a sequence that there is not, or two steps of one.
        """
        ...

    def rewind_sequence(self, sequence: int, length: int) -> int:
        """Forget all but the first ``length`` tokens of a sequence: as ``Session.rewind``."""
        ...

    def copy(self, source: int, target: int, length: int) -> int:
        """Let a sequence hold the first ``length`` tokens of another, instead of its own, and return how many it holds.

        It is ``length`` or fewer, as in ``Session.rewind``; the other stays as it is. Raises ``ValueError`` unless
        0 <= length <= the other's length, and they are two.
        """
        ...


@runtime_checkable
class Hidden(Protocol):
    """A session of a model without a head: it has no logits, so that its two ``forward`` raise ``UsageError``."""

    def hidden(self, tokens: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Append tokens and return the normed states after each from index ``first`` on.

        They are float32 [n_tokens - first, hidden size]. Of a decoder that is evaluated ``at_once`` they are those of a
        text from an empty cache, which stays empty. Raises as ``Session.forward``, and ``ValueError`` unless
        0 <= first < n_tokens.
        """
        ...


@runtime_checkable
class Runtime(Protocol):
    """An engine."""

    name: str

    def probe(self, hardware: Hardware) -> Support:
        """Say whether this runtime can run here. Never raises and never loads a model."""
        ...

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Session:
        """Load the variant's folder. Raises ``EngineMissingError`` or ``EngineError`` with the engine's own reason."""
        ...


@runtime_checkable
class Engines(Protocol):
    """A runtime of several engines: it takes the one that the user prefers, else the best that runs."""

    def engines(self) -> tuple[Engine, ...]:
        """Return all that it knows, best first. Each that is installed is tried, in a child process. Never raises."""
        ...


@runtime_checkable
class Timed(Protocol):
    """A runtime that can say how fast it computes on this machine's CPU."""

    def speed(self, hardware: Hardware, schemes: Collection[str], limit_s: float) -> Speed | None:
        """Measure products of the engine's own with ``hardware.threads`` threads: those of variants in ``schemes``.

        They are names of schemes and of element types, as manifests have them. After ``limit_s`` it begins with none
        that is left. It says itself whether the speed is ``settled``. None where none can be measured. It may raise any
        ``EdgepackError`` and end its process.
        """
        ...


@runtime_checkable
class Tokenizing(Protocol):
    """A runtime whose payloads carry a vocabulary in a format of their own, where others go by tokenizer.json.

    The SDK tokenises by itself; a build proves with this that both give the same ids.
    """

    def tokenize(self, variant: Path, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Return the ids of each text by the variant's own vocabulary, without BOS. Raises as ``Runtime.open``.

        With ``special``, the names of special tokens in a text become those tokens.
        """
        ...

    def known_differences(
        self, variant: Path, tokenizer: Mapping[str, object], texts: Sequence[str], *, special: bool
    ) -> list[str | None]:
        """Return for each text why the engine cannot do what a parsed tokenizer.json does with it, None where it can.

        The reasons follow from rules over the vocabulary, whatever the ids are.
        """
        ...


def names() -> list[str]:
    """Return the names of all registered runtimes, sorted."""
    return sorted(entry.name for entry in entry_points(group="edgepack.runtimes"))


def find(name: str) -> Runtime:
    """Return the registered runtime of that name. Raises ``EngineMissingError`` where there is none."""
    for entry in entry_points(group="edgepack.runtimes", name=name):
        runtime: Runtime = entry.load()()
        return runtime
    known = ", ".join(names())
    raise EngineMissingError(f"No runtime is called {name!r}.", hint=f"Registered are: {known}.")
