"""One engine over the demo bundle, with a watch on what the SDK asks of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

import edgepack
from edgepack import runtime
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.files import Bundle
from edgepack.bundle.thinking import Thinking
from edgepack.device.hardware import Hardware
from edgepack.loading import open_candidate
from edgepack.model import Model
from edgepack.runtime import Options, Session, Snapshots, Support
from edgepack.text.chat import ChatTemplate

T = TypeVar("T")
Logits = NDArray[np.float32]

CHUNK = 8  # small, so that short prompts are evaluated in several steps
LONG = "Once upon a time there was a child, a small computer and a model that could run on it. "


class Watched:
    """A session that notes what is asked of it, and can be told what to say.

    ``calls`` are the tokens of each forward, ``held`` those in the cache. ``before`` is called on the engine's thread
    before each forward with its number since ``reset``. ``script`` gives the token that is the likeliest by far after
    so many tokens; ``muted`` tokens are never likely. ``keeps`` says how many tokens a rewind to a length keeps.
    """

    def __init__(self, session: Session) -> None:
        self.engine = session
        self.held: list[int] = []
        self.reset()

    def reset(self) -> None:
        self.calls: list[list[int]] = []
        self.before: Callable[[int], None] = lambda number: None
        self.keeps: Callable[[int], int] = lambda length: length
        self.script: dict[int, int] = {}
        self.muted: list[int] = []
        self.cancelled = Event()

    def says(self, after: int, ids: Sequence[int]) -> None:
        """Say these tokens after a prompt of so many."""
        self.script = {after + index: token for index, token in enumerate(ids)}

    @property
    def device(self) -> str:
        return self.engine.device

    @property
    def length(self) -> int:
        return self.engine.length

    def forward(self, tokens: Sequence[int]) -> Logits:
        self._note(tokens)
        logits = self.engine.forward(tokens)
        self.held.extend(tokens)
        self._said(logits[None])
        return logits

    def forward_all(self, tokens: Sequence[int]) -> Logits:
        self._note(tokens)
        logits = self.engine.forward_all(tokens)
        self.held.extend(tokens)
        self._said(logits)
        return logits

    def rewind(self, length: int) -> int:
        kept = self.engine.rewind(self.keeps(length))
        del self.held[kept:]
        return kept

    def cancel(self) -> None:
        self.cancelled.set()
        self.engine.cancel()

    def close(self) -> None:
        self.engine.close()

    def snapshot(self) -> bytes:
        assert isinstance(self.engine, Snapshots)
        return self.engine.snapshot()

    def restore(self, state: bytes) -> None:
        assert isinstance(self.engine, Snapshots)
        self.engine.restore(state)
        self.held = [-1] * self.engine.length

    def _note(self, tokens: Sequence[int]) -> None:
        self.before(len(self.calls))
        self.calls.append(list(tokens))

    def _said(self, rows: Logits) -> None:
        first = len(self.held) - len(rows) + 1
        for index, row in enumerate(rows):
            row[self.muted] = -1e4
            if first + index in self.script:
                row[self.script[first + index]] = 1e4


class WatchedRuntime:
    """A runtime whose sessions are watched; ``opening`` is called on the engine's thread before it opens one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._runtime = runtime.find(name)
        self.opening: Callable[[], None] = lambda: None
        self.session: Watched

    def probe(self, hardware: Hardware) -> Support:
        return self._runtime.probe(hardware)

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Session:
        self.opening()
        self.session = Watched(self._runtime.open(variant, decoder, options))
        return self.session


class Case:
    """One engine over the demo bundle. ``model`` is opened once; ``watch`` is on its session.

    ``said`` is what the first engine of all gave, ``guard_s`` how long a promise waits for what must come at once.
    """

    def __init__(self, bundle: Bundle, engine: str, said: dict[object, object], folder: Path, guard_s: float) -> None:
        self.bundle = bundle
        self.engine = engine
        self.folder = folder
        self.guard_s = guard_s
        self._said = said
        self._opened: list[Model] = []

    @cached_property
    def model(self) -> Model:
        model, _ = self.open()
        self._opened.remove(model)
        return model

    @property
    def watch(self) -> Watched:
        return watch_on(self.model)

    @property
    def variant(self) -> str:
        return f"{self.engine}-f32"

    def open(self, context: int = 512) -> tuple[Model, Watched]:
        """Open another model."""
        runtimes = {self.engine: WatchedRuntime(self.engine)}
        found = edgepack.plan(
            self.bundle, context=context, backend=self.engine, variant=self.variant, kv_cache="f32", runtimes=runtimes
        ).choice
        chosen = replace(found, options=replace(found.options, chunk=CHUNK, threads=1))
        model = open_candidate(self.bundle, chosen, runtimes=runtimes)
        self._opened.append(model)
        return model, watch_on(model)

    def talker(self, template: str, thinking: Thinking | None = None) -> tuple[Model, Watched]:
        """Open another model, with another chat template; the demo's knows no tools and no thoughts. Close it."""
        model, opening = self.model, WatchedRuntime(self.engine)
        path = self.bundle.variant_path(self.variant)
        assert model.manifest.chat is not None
        chat = msgspec.structs.replace(model.manifest.chat, thinking=thinking)
        made = Model(
            manifest=msgspec.structs.replace(model.manifest, chat=chat),
            setup=model.setup,
            opening=lambda: opening.open(path, model.manifest.decoder, model._desk.options),
            options=model._desk.options,
            tokenizer=model.tokenizer,
            template=ChatTemplate(template, bos_token="", eos_token="<|im_end|>", date=None),
        )
        return made, watch_on(made)

    def same(self, what: object, value: object) -> None:
        """Assert that every engine gives this value; ``what`` names it."""
        assert self._said.setdefault(what, value) == value, f"{what} on {self.engine}"

    def fresh(self) -> None:
        """Forget what was noted and told, and close every other model."""
        if "model" in self.__dict__:
            self.watch.reset()
        while self._opened:
            self._opened.pop().close()

    def ends(self, work: Callable[[], T]) -> T:
        """Do what might never end in a thread of its own, and return or raise what it does."""
        outcome: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(work())
            except BaseException as error:
                errors.append(error)

        thread = Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.guard_s)
        assert not thread.is_alive(), "it hangs"
        for error in errors:
            raise error
        return outcome[0]

    def runs(self, work: Coroutine[Any, Any, T]) -> T:
        """Run what might never end in an event loop."""

        async def guarded() -> T:
            try:
                async with asyncio.timeout(self.guard_s):
                    return await work
            except TimeoutError:
                raise AssertionError("it hangs") from None

        return asyncio.run(guarded())

    def close(self) -> None:
        self.fresh()
        if "model" in self.__dict__:
            self.model.close()


def watch_on(model: Model) -> Watched:
    session = model._desk.session
    assert isinstance(session, Watched)
    return session


def holds_what_it_should(model: Model) -> bool:
    """Return whether the engine's cache is what the SDK takes it for."""
    watch, desk = watch_on(model), model._desk
    return watch.held == desk.cache.tokens and desk.owner.call(lambda: watch.length) == len(watch.held)


def chunks_of(model: Model, prompt: str, **options: Any) -> tuple[list[edgepack.Chunk], edgepack.Result]:
    """Return the pieces of a stream and its result."""
    with model.stream(prompt, **options) as stream:
        pieces = list(stream)
    return pieces, stream.result


def facts(result: edgepack.Result) -> Mapping[str, object]:
    """Return what must be the same on every engine: all but times, versions and names."""
    plain = result.to_dict()
    return {name: plain[name] for name in ("text", "token_ids", "finish_reason", "stop", "sampling", "usage")}
