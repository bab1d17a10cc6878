"""The state of a system prompt beside a payload: made once, and in the cache when a device has loaded that payload.

It holds what a prefill from nothing would leave, step by step, so that texts are the same to the last bit with it and
without it. An engine reads it as it reads its own memory, and no engine promises to withstand what a stranger writes
there. So a load takes a state that this device made, that a policy admitted with its bundle, or that whoever calls
answers for; any other is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.bundle import warm as files
from edgepack.bundle.files import VARIANTS, Bundle
from edgepack.bundle.warm import FACTS, MAX_FACTS, MAX_STATE, STATE, Warm, Warmth
from edgepack.bundle.writing import write_atomically
from edgepack.device.hardware import detect
from edgepack.device.memory import CHUNK
from edgepack.device.planning import Candidate, Plan
from edgepack.device.state import state_folder
from edgepack.errors import BundleError, EngineCrashedError, EngineError, EngineTimeoutError, UsageError
from edgepack.prefix import common_length
from edgepack.trust.admitting import admit_bundle

if TYPE_CHECKING:
    from edgepack.decoding.desk import Desk
    from edgepack.model import Model

_SAID = ("Hello", "1", " two", "\n\nthree", "«é»", "日本", "<")
"""What users begin with: where a tokenizer joins letters over the border to the user's message, not all give the same
tokens, and those before are the system prompt's in any chat."""


@dataclass(frozen=True, slots=True)
class Made:
    """A state and what is said of it: the bytes of the two files, and how many tokens they keep of so many that all
    chats with the system prompt begin with."""

    facts: bytes
    state: bytes
    tokens: int
    common: int


def told(bundle: Bundle, plan: Plan, use: bool | None = None) -> Plan:
    """Return a plan that says of each candidate that can run what a load makes of the state beside it.

    ``use``: False, or True to take a state whoever made it; None takes those that this device made, or that were
    admitted by a policy that applies here.
    """
    found = [replace(each, warm=warmth(bundle, each, use=use)) if each.eligible else each for each in plan.candidates]
    return replace(plan, candidates=tuple(found))


def warmth(bundle: Bundle, candidate: Candidate, *, use: bool | None = None) -> Warmth | None:
    """Return what a load makes of the state beside a candidate's payload, None where there is none."""
    sizes = {file.path: file.size for file in bundle.variant(candidate.variant).files}
    if FACTS not in sizes or STATE not in sizes:
        return None
    try:
        warm = _read(bundle, candidate.variant)
    except (BundleError, ValueError) as error:
        return Warmth(0, sizes[STATE], f"its {FACTS} is damaged: {getattr(error, 'message', error)}".rstrip("."))
    obstacle = "this load was told to go without" if use is False else _difference(bundle, candidate, warm)
    if obstacle is None and use is None and not (_is_own(bundle.id) or _is_admitted(bundle)):
        obstacle = "it was made elsewhere, and no policy admits it: warm=True takes it"
    return Warmth(len(warm.tokens), sizes[STATE], obstacle)


def warming(bundle: Bundle, candidate: Candidate) -> Callable[[Desk], None] | None:
    """Return what puts the state into an empty cache, on the engine's thread; None where the plan says not to.

    A state that the session refuses leaves the cache empty. Raises ``BundleDamagedError``.
    """
    if candidate.warm is None or candidate.warm.obstacle is not None:
        return None
    warm = _read(bundle, candidate.variant)
    if _difference(bundle, candidate, warm) is not None:  # it is opened otherwise than as it was planned
        return None
    state, chunk = bundle.read(_place(candidate.variant, STATE)), candidate.options.chunk

    def fill(desk: Desk) -> None:
        # Of an engine in a process of its own another takes over, with nothing in its cache.
        with suppress(EngineCrashedError, EngineTimeoutError):
            _restore(desk, state, warm.tokens, chunk)

    return fill


def untuned(candidate: Candidate) -> Candidate:
    """Return a candidate as a device opens it that was not tuned for its bundle."""
    if candidate.tuning is None:
        return candidate
    options = replace(candidate.options, threads=detect().threads, chunk=CHUNK, repack=None)
    return replace(candidate, options=options, tuning=None)


def make(bundle: Bundle, candidate: Candidate, model: Model, system: str, date: str | None = None) -> Made:
    """Evaluate a system prompt with a model that was opened as ``candidate``, and return its state.

    It is put back and asked for the logits after it, which must be the same to the last bit. Raises ``UsageError``
    where no whole step of the prompt is common to all chats, or the engine cannot save its state, ``EngineError`` where
    it does not come back, and as ``Model.chat``.
    """
    texts = [_ids(model, system, said, date) for said in _SAID]
    common, chunk = min(common_length(texts[0], each) for each in texts[1:]), candidate.options.chunk
    tokens, after = texts[0][: common - common % chunk], texts[0][common - common % chunk :][:chunk]
    if not tokens:
        raise UsageError(
            f"The system prompt has {common} tokens, and a prefill takes them in steps of {chunk}: there is no whole "
            "step to keep.",
            hint="So short a prompt takes no longer without: leave it as it is.",
        )
    desk = model._desk
    state = desk.call(lambda: _proven(desk, tokens, after, candidate))
    if len(state) > MAX_STATE:
        raise UsageError(f"The state has {len(state):,} bytes, more than the {MAX_STATE:,} that a load reads.")
    warm = Warm(made=_facts(bundle, candidate), tokens=tokens)
    return Made(files.encode(warm), state, len(tokens), common)


def own(bundle_id: str) -> None:
    """Remember that the states of a bundle were made on this device. One that cannot remember takes them with
    ``warm=True`` alone."""
    with suppress(OSError, RuntimeError):
        mark = state_folder() / "warmed" / bundle_id
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(mark, b"")


def _is_own(bundle_id: str) -> bool:
    with suppress(OSError, RuntimeError):
        return (state_folder() / "warmed" / bundle_id).is_file()
    return False


def _is_admitted(bundle: Bundle) -> bool:
    try:
        return bool(admit_bundle(bundle))
    except BundleError:
        return False


def _ids(model: Model, system: str, said: str, date: str | None) -> list[int]:
    prompts = model._prompts
    messages = prompts.read(
        [{"role": "system", "content": system}, {"role": "user", "content": said}], prompts.template, False
    )
    return prompts.of_messages(messages, prompts.template, None, None, date, "error", 1).ids


def _proven(desk: Desk, tokens: list[int], after: list[int], candidate: Candidate) -> bytes:
    """Return the state of the tokens from an empty cache, of which the same follows once it is put back."""
    import numpy as np

    desk.seat.rewind(0)
    chunk = candidate.options.chunk
    for begin in range(0, len(tokens), chunk):
        desk.seat.forward(tokens[begin : begin + chunk])
    state = desk.seat.snapshot(len(tokens))
    if not state:
        raise UsageError(
            f"The engine of {candidate.variant} cannot save its state, so that nothing of it can be kept warm.",
            hint="Name another variant.",
        )
    expected = desk.seat.forward(after)
    _restore(desk, state, tokens, chunk)
    if desk.cache.tokens != tokens or not np.array_equal(desk.seat.forward(after), expected):
        raise EngineError(f"The engine of {candidate.variant} does not go on from its own state as it did before.")
    return state


def _restore(desk: Desk, state: bytes, tokens: list[int], chunk: int) -> None:
    desk.seat.restore(state, tokens, [(chunk, chunk)] * (len(tokens) // chunk))
    if desk.session.length != len(desk.cache.tokens):  # the state is that of another text
        desk.seat.rewind(0)


def _read(bundle: Bundle, variant: str) -> Warm:
    name = _place(variant, FACTS)
    if bundle.files()[name].size > MAX_FACTS:
        raise ValueError(f"it has more than {MAX_FACTS:,} bytes")
    return files.decode(bundle.read(name))


def _difference(bundle: Bundle, candidate: Candidate, warm: Warm) -> str | None:
    """Return what keeps a state from being what this candidate's prefill would leave, None where nothing does."""
    for name, here in _facts(bundle, candidate).items():
        if (made := warm.made.get(name, "unknown")) != here:
            if name == "payload":
                return "it was made with another payload"
            return f"it was made with the {name} {made}, and here it is {here}"
    if candidate.options.sequences > 1:
        return f"it is that of one text, and this load holds {candidate.options.sequences} at a time"
    if len(warm.tokens) % candidate.options.chunk:
        return f"its {len(warm.tokens)} tokens are no whole steps of {candidate.options.chunk}"
    if max(warm.tokens) >= bundle.manifest.decoder.n_vocab:
        return "it has a token that the model lacks"
    if len(warm.tokens) >= candidate.options.context:
        return f"its {len(warm.tokens)} tokens fill the context of {candidate.options.context}"
    return None


def _facts(bundle: Bundle, candidate: Candidate) -> dict[str, str]:
    """Return what decides the bits of a state. How many threads computed it and how large the context was is not among
    them: ``benchmarks/warm.py`` finds the same bits."""
    hardware, options = detect(), candidate.options
    layout = {None: "as the engine likes", True: "rearranged", False: "as stored"}
    return {
        "payload": files.payload_of(bundle.variant(candidate.variant)),
        "engine": candidate.package or candidate.runtime,
        "version of the engine": candidate.engine or "unknown",
        "device": candidate.device or "none",
        "processor": " ".join(
            part for part in (hardware.system, hardware.machine, hardware.processor, *hardware.gpus) if part
        ),
        "KV cache": options.kv_cache,
        "step": f"{options.chunk} tokens",
        "layout of the weights": layout[options.repack],
    }


def _place(variant: str, name: str) -> str:
    return f"{VARIANTS}/{variant}/{name}"
