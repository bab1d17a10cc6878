"""A runtime without an engine, for the tests of applications: deterministic, instant, and as strict as a real one.

It keeps every promise of the seam in ``edgepack.runtime``, and can be told what to say and when to fail::

    from edgepack import fake

    with fake.model(says="Hello!", thinks="A greeting.") as model:
        result = model.chat([{"role": "user", "content": "Hi"}])
        assert (result.reasoning, result.text) == ("A greeting.", "Hello!")

``fake.model`` gives a whole ``Model`` with a byte-level tokenizer and a chat template, without any file.
``FakeRuntime`` goes where a runtime goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event, get_ident
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgepack import fake_facts, snapshot
from edgepack.admission import WithoutHead, admitted, check_first
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Manifest
from edgepack.bundle.thinking import Switch, Thinking
from edgepack.decoding.repro import Setup
from edgepack.device.hardware import Hardware
from edgepack.errors import Cancelled, EngineError, UsageError
from edgepack.model import Model
from edgepack.runtime import Options, Support
from edgepack.text.chat import ChatTemplate
from edgepack.text.tokenizer import Tokenizer

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
        return (FakeHiddenSession if decoder.headless else FakeSession)(self, decoder, options)


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
        self._states = [0]  # a hash of the first n tokens, for each n
        self._tokens: list[int] = []
        self._said: int | None = None  # tokens of the script in the cache; None where it has not begun
        # Logits are a window into fixed noise: as cheap as one copy, and different for each state.
        self._noise = np.random.default_rng(0).standard_normal(2 * decoder.outputs).astype(np.float32)

    @property
    def device(self) -> str:
        """A processor."""
        return "cpu"

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self._states) - 1

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits after the last: float32 [n_vocab]."""
        last: NDArray[np.float32] = self._evaluate(tokens, len(tokens) - 1)[0]
        return last

    def forward_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits after each: float32 [n_tokens, n_vocab]."""
        return self._evaluate(tokens, 0)

    def rewind(self, length: int) -> int:
        """Forget all but the first tokens, or all, and return how many are kept."""
        self._check()
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self.length} tokens")
        self._cut(length)
        self._said = None
        return self.length

    def snapshot(self) -> bytes:
        """Return the state after each token, the tokens, and how much of the script has been said, sealed."""
        self._check()
        said = 0 if self._said is None else self._said + 1
        values = np.array([said, *self._states, *self._tokens], np.uint64)
        return snapshot.seal(self._facts, self.length, [values.tobytes()])

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot."""
        self._check()
        length, payload = snapshot.unseal(state, self._facts, self._options.context)
        said, *values = np.frombuffer(payload, np.uint64).reshape(2 * length + 2).tolist()
        self._states, self._tokens = values[: length + 1], values[length + 1 :]
        self._said = said - 1 if said else None

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
        tokens = admitted(tokens, n_vocab=self._n_vocab, length=self.length, context=self._options.context)
        self._forwards += 1
        if self._forwards == self._runtime.fail_at:
            raise EngineError(f"The fake engine failed at forward {self._forwards}, as planned.")
        said = self._follow(tokens)
        before = self.length
        self._cancelled.clear()
        self._running = True
        try:
            for start in range(0, len(tokens), self._options.chunk):
                self._step(tokens[start : start + self._options.chunk], before)
        finally:
            self._running = False
        states = self._states[before + 1 + first :]
        logits = np.stack([self._logits(state) for state in states])
        self._said = said
        if said is not None and said < len(self._runtime.script):
            logits[-1, self._runtime.script[said]] += _PEAK
        if self._forwards == self._runtime.nan_at:
            logits[:] = np.nan
        return logits

    def _step(self, tokens: Sequence[int], before: int) -> None:
        if self._runtime.before_step is not None:
            self._runtime.before_step(self)
        if self._cancelled.is_set():
            self._cut(before)
            raise Cancelled("The forward was cancelled.")
        state = self._states[-1]
        for token in tokens:
            # The constants of Knuth's 64-bit linear congruential generator (MMIX).
            state = ((state ^ (token + 1)) * 6364136223846793005 + 1442695040888963407) & _MASK
            self._states.append(state)
            self._tokens.append(token)

    def _cut(self, length: int) -> None:
        most = self._runtime.takes_back
        if most is not None and self.length - length > most:
            length = 0
        del self._states[length + 1 :], self._tokens[length:]

    def _follow(self, tokens: Sequence[int]) -> int | None:
        """Return how much of the script has been said once these tokens are in the cache."""
        script, said = self._runtime.script, self._said
        if not script:
            return None
        if said is not None and len(tokens) == 1 and said < len(script) and tokens[0] == script[said]:
            return said + 1
        if (closed := self._runtime.closed) and tuple([*self._tokens, *tokens][-len(closed) :]) == closed:
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


class FakeHiddenSession(WithoutHead, FakeSession):
    """A session of a model without a head: its states are noise that depends on all tokens before."""

    def hidden(self, tokens: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Append tokens and return the states after each from ``first`` on: float32 [n_tokens - first, hidden size]."""
        check_first(first, max(len(tokens), 1))
        return self._evaluate(tokens, first)


_THINKING = Thinking(
    opening="<think>",
    closing="</think>",
    ending="\n</think>\n\n",
    skipped="<think>\n\n</think>\n\n",
    switch=Switch(variable="enable_thinking", on=True, off=False),
)
_TEMPLATE = """
{%- for message in messages %}<|start|>{{ message.role }}
{{ message.content }}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant
{% endif %}"""
_SKIPS = "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"


def model(
    *,
    says: str | Sequence[int] = (),
    thinks: str | None = None,
    context: int = 4096,
    fail_at: int | None = None,
    nan_at: int | None = None,
    before_step: Callable[[FakeSession], None] | None = None,
    template: str = _TEMPLATE,
) -> Model:
    """Return a ``Model`` over a ``FakeRuntime``, made of nothing.

    Token ids 0 to 255 are the bytes of UTF-8, 256 is ``<|end|>``, which ends a turn, 257 is ``<|start|>``; there is
    no BOS. ``says`` is the answer to every prompt: a text, or ids for an answer that is no text or does not end.
    ``thinks`` is what it thinks before it says so, between ``<think>`` and ``</think>``, unless it is asked with
    ``thinking=False``. ``template`` is the chat template; the other arguments are ``FakeRuntime``'s.
    """
    script = [*says.encode(), fake_facts.END] if isinstance(says, str) else list(says)
    thought = b"" if thinks is None else _THINKING.whole(thinks, "").encode()
    manifest = fake_facts.manifest(None if thinks is None else _THINKING)
    options = Options(context=context, threads=1, kv_cache="f32")
    runtime = FakeRuntime(
        [*thought, *script],
        fail_at=fail_at,
        nan_at=nan_at,
        before_step=before_step,
        aside=len(thought),
        closed=_THINKING.ending.lstrip().encode() if thought else b"",
    )
    if thinks is not None:
        template += _SKIPS
    return _opened(manifest, runtime, options, ChatTemplate(template, bos_token="", eos_token="<|end|>", date=None))


def embedding_model(
    *,
    size: int = 8,
    prompts: Mapping[str, str] = MappingProxyType({}),
    context: int = 4096,
    fail_at: int | None = None,
    before_step: Callable[[FakeSession], None] | None = None,
) -> Model:
    """Return a ``Model`` that embeds, with the tokens of ``model``: each text ends with ``<|end|>``.

    Its vectors have ``size`` elements and the length 1, and another text, or another prompt, has another one. The other
    arguments are ``FakeRuntime``'s.
    """
    manifest = fake_facts.embedding_manifest(size, prompts)
    options = Options(context=context, threads=1, kv_cache="f32")
    return _opened(manifest, FakeRuntime(fail_at=fail_at, before_step=before_step), options, None)


def _opened(manifest: Manifest, runtime: FakeRuntime, options: Options, template: ChatTemplate | None) -> Model:
    return Model(
        manifest=manifest,
        setup=setup(manifest, options),
        opening=lambda: runtime.open(Path(), manifest.decoder, options),
        options=options,
        tokenizer=Tokenizer(fake_facts.tables(), None, False),
        template=template,
    )


def setup(manifest: Manifest, options: Options) -> Setup:
    """Return what a model of a fake manifest is loaded as."""
    return Setup(
        bundle="",
        bundle_id="0" * 64,
        variant=manifest.variants[0].id,
        backend=FakeRuntime.name,
        engine="1",
        device="cpu",
        context=options.context,
        kv_cache=options.kv_cache,
        threads=options.threads,
        chunk=options.chunk,
        repack=None,
        machine="",
        packages={},
    )
