"""A loaded model: text in, text out, the same on every engine.

Everything between a user's text and the seam's token ids comes together here: tokenizer, chat template, sampling,
stops, characters, counts and times. The engine behind the session knows none of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.manifest import Manifest, Variant
from edgepack.conversation import Conversation
from edgepack.decoding.choosing import Thinks
from edgepack.decoding.desk import Desk
from edgepack.decoding.draft import Draft
from edgepack.decoding.generation import Generation, Request
from edgepack.decoding.options import (
    ChatOptions,
    GenerationOptions,
    check_ids,
    read_continue,
    read_control_tokens,
    read_draft,
    read_grammar,
    read_lookup,
    read_n_best,
    read_reuse,
    read_room,
    read_sampling,
    read_stops,
    read_thinking,
    read_tools,
)
from edgepack.decoding.repro import Repro, Setup
from edgepack.decoding.results import Result
from edgepack.decoding.sample import Sampling
from edgepack.decoding.score import Score, score
from edgepack.decoding.slices import Slices
from edgepack.decoding.stream import AsyncStream as AsyncStream
from edgepack.decoding.stream import Stream as Stream
from edgepack.decoding.stream import awhole, whole
from edgepack.embedding import Embeds
from edgepack.errors import UsageError, brief, check_options
from edgepack.runtime import Options, Session
from edgepack.text.chat import ChatTemplate
from edgepack.text.prompts import Messages, Prompt, Prompts
from edgepack.text.thoughts import Thought
from edgepack.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgepack.structured.constrain import Grammar
    from edgepack.text.tools import Tools


class Model(Embeds):
    """One variant of a bundle, open on one engine. Made by ``edgepack.load``; close it, or use it in a ``with``.

    It may be used from any thread and any event loop: the engine lives on a thread of its own, and requests are served
    one at a time, or as many as ``sequences`` it was loaded with, in the order in which they come.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        setup: Setup,
        opening: Callable[[], Session],
        options: Options,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        lookup_pays: bool = False,
        drafting: Callable[[], Draft] | None = None,
        began: float | None = None,
        dense: Sequence[NDArray[np.float32]] = (),
        warming: Callable[[Desk], None] | None = None,
    ) -> None:
        """Open the engine: ``opening`` runs on its thread, and ``drafting``, which opens a draft model; ``warming``
        may fill its cache. ``began`` is ``perf_counter`` when the load began, ``dense`` are the bundle's
        ``pooling.matrices``."""
        self._dense = dense
        self._manifest = manifest
        self._setup = setup
        self._tokenizer = tokenizer
        self._prompts = Prompts(manifest, tokenizer, template, options.context)
        self._lookup_pays = lookup_pays
        self._stop_ids = frozenset(stop.id for stop in manifest.stops)
        self._desk = Desk(opening, options, drafting)
        if warming is not None:
            self._desk.call(lambda: warming(self._desk))
        self._load_s = None if began is None else perf_counter() - began

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._manifest

    @property
    def bundle_id(self) -> str:
        """The sha256 of the bundle's manifest."""
        return self._setup.bundle_id

    @property
    def variant(self) -> Variant:
        """The payload that is loaded."""
        return next(each for each in self._manifest.variants if each.id == self._setup.variant)

    @property
    def backend(self) -> str:
        """The name of the runtime that runs it."""
        return self._setup.backend

    @property
    def device(self) -> str:
        """What it really runs on, as the engine says: "cpu", "metal" or "cuda"."""
        return self._desk.session.device

    @property
    def context(self) -> int:
        """Tokens that a prompt and its continuation may have together."""
        return self._setup.context

    @property
    def setup(self) -> Setup:
        """What it was loaded as, down to threads and versions."""
        return self._setup

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        return self._tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The bundle's chat template. Raises ``UsageError`` for a bundle without one."""
        return self._prompts.template

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, with BOS where the bundle asks for it. Special tokens are not parsed."""
        return self._tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids. Special tokens give none; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(ids)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after each token of a sequence, from an empty cache: float32 [n, n_vocab].

        Raises ``UsageError`` for no token or an id outside the vocabulary, ``PromptTooLongError`` for more tokens
        than the context holds.
        """
        return np.concatenate(list(self.evaluate(ids, len(ids))))

    def evaluate(self, ids: Sequence[int], slice_tokens: int = 32) -> Iterator[NDArray[np.float32]]:
        """Return an iterator of the logits after each token of a sequence, from an empty cache, in slices of so many
        tokens.

        Each is float32 [at most slice_tokens, n_vocab]. Others wait until the last was taken or the iterator is gone;
        where none is taken for a second they are served, and what they took out of the cache is evaluated again.
        Raises as ``logits``.
        """
        check_ids(ids, self._manifest, self.context)
        return Slices(self._desk, ids, slice_tokens)

    def score(self, text: str) -> Score:
        """Return how likely the model finds a text: see ``edgepack.decoding.score``. Raises ``UsageError`` for none."""
        return score(self, text)

    # A text

    def generate(self, text: str, **options: Unpack[GenerationOptions]) -> Result:
        """Continue a text and return the new part.

        Options, by keyword: see ``GenerationOptions``, and ``edgepack.decoding.sample.Sampling`` for the ranges.
        ``stop`` is a string or a list of strings at which the text ends, without them. It also ends at the bundle's
        stop tokens, after ``max_tokens``, and at the end of the context ("length").
        Raises ``UnknownOptionError`` for another keyword, ``UsageError`` for a value that cannot be honoured,
        ``PromptTooLongError`` before anything is evaluated, ``EngineError`` where the engine fails.
        """
        return whole(self.stream(text, **options))

    def stream(self, text: str, **options: Unpack[GenerationOptions]) -> Stream:
        """Continue a text piece by piece: ``with model.stream("...") as stream: for chunk in stream: ...``.

        Arguments and errors as in ``generate``; wrong arguments are refused here, before the ``with`` begins.
        """
        began = perf_counter()
        check_options("Generation", options, GenerationOptions.__annotations__)
        policy, max_tokens = read_room(options, self._manifest.generation)
        prompt = self._prompts.of_text(text, policy, max_tokens)
        return Stream(self._desk, self._generation(prompt, options, began))

    async def agenerate(self, text: str, **options: Unpack[GenerationOptions]) -> Result:
        """``generate`` for an event loop, which goes on meanwhile. A cancelled task stops the engine."""
        return await awhole(self.astream(text, **options))

    def astream(self, text: str, **options: Unpack[GenerationOptions]) -> AsyncStream:
        """``stream`` for an event loop: ``async with model.astream("...") as stream: async for chunk in stream: ...``.

        Wrong arguments are refused when the block is entered.
        """
        return self._later(lambda: self.stream(text, **options))

    # A conversation

    @overload
    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Result: ...
    @overload
    def chat(self, *, system: str | None = None, **options: Unpack[ChatOptions]) -> Conversation: ...
    def chat(
        self, messages: Messages | None = None, *, system: str | None = None, **options: Unpack[ChatOptions]
    ) -> Result | Conversation:
        """Answer messages, each with ``role`` and ``content``, through the bundle's chat template.

        Without messages, begin a ``Conversation`` that remembers what was said and evaluates only what is new;
        ``system`` is its first message, and the options hold for all its answers. Options: see ``ChatOptions``; errors
        as in ``generate``; a bundle without a template, a role, tools or a variable that it does not know, and a date
        that it leaves to the application raise ``UsageError``.
        """
        if messages is None:
            return Conversation(self, system, options)
        if system is not None:
            raise UsageError("system was given beside messages.", hint="Make it the first of the messages.")
        return whole(self.stream_chat(messages, **options))

    def stream_chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Stream:
        """Answer messages piece by piece. Arguments and errors as in ``chat``."""
        return self._answer(messages, options)

    async def achat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Result:
        """``chat`` with messages, for an event loop."""
        return await awhole(self.astream_chat(messages, **options))

    def astream_chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> AsyncStream:
        """``stream_chat`` for an event loop."""
        return self._later(lambda: self.stream_chat(messages, **options))

    def count_tokens(self, messages: Messages, **options: Unpack[ChatOptions]) -> int:
        """Return how many tokens the prompt of messages has. Arguments and errors as in ``chat``."""
        return len(self.stream_chat(messages, **options)._generation.prompt)

    def resume(self, path: str | Path) -> Conversation:
        """Return a conversation that was saved with ``Conversation.save``. The engine's state is put back where it fits
        this engine; elsewhere the next turn evaluates the conversation anew.

        Raises ``FileNotFoundError``, and ``BundleError`` for a file that is no conversation of this bundle's.
        """
        return Conversation._resume(self, Path(path))

    def _answer(
        self,
        messages: Messages,
        options: ChatOptions,
        *,
        continues: Callable[[str], list[int] | None] | None = None,
        starting: Callable[[Stream], None] = lambda stream: None,
        finished: Callable[[Prompt, Result], None] = lambda prompt, result: None,
    ) -> Stream:
        """Return the stream that answers messages: the part that ``stream_chat`` and conversations share.

        ``continues`` may know the ids of a rendered prompt; ``starting`` may refuse the stream when its turn has come;
        ``finished`` gets the prompt and the result.
        """
        began = perf_counter()
        check_options("Generation", options, (*GenerationOptions.__annotations__, *ChatOptions.__annotations__))
        policy, max_tokens = read_room(options, self._manifest.generation)
        tools = read_tools(options, lambda: self.template.for_tools.source)
        definitions, variables = None, options.get("variables")
        template, goes_on = self.template if tools is None else self.template.for_tools, read_continue(options)
        messages = self._prompts.read(messages, template, goes_on)
        if tools is not None:
            messages, definitions, own = tools.given(messages, template)
            variables = {**(variables or {}), **own}
        thinking, most = read_thinking(options, self._prompts.thinking)
        asked = options.get("date"), policy, max_tokens, continues, goes_on, read_control_tokens(options), thinking
        prompt = self._prompts.of_messages(messages, template, definitions, variables, *asked)
        thinks = self._thinks(prompt.thought, most)
        generation = self._generation(prompt, options, began, tools=tools, thinks=thinks)
        return Stream(self._desk, generation, starting, lambda result: finished(prompt, result))

    def _repeat(self, repro: Repro, sampling: Sampling) -> Result:
        """Generate again what a result's ``repro`` and ``sampling`` tell, in the same steps.

        Raises ``UsageError`` where this bundle or this context cannot take it.
        """
        check_ids(repro.prompt_ids, self._manifest, self.context)
        request = Request(
            prompt=repro.prompt_ids,
            sampling=sampling,
            limit=repro.max_tokens,
            stop_ids=self._stop_ids,
            stops=repro.stop,
            at_start=repro.at_start,
            began=perf_counter(),
            setup=self._setup,
            grammar=None if repro.constraint is None else self._grammar(repro.constraint),
            looks_up=repro.prompt_lookup,
            drafts=read_draft({"draft": repro.draft}, self._desk.draft is not None),
            rolls_from=repro.rolls_from,
            trail=repro.cached,
            thinks=self._thinks(repro.thought, repro.thinking_tokens),
        )
        return whole(Stream(self._desk, Generation(self._tokenizer, request)))

    def close(self) -> None:
        """Free the engine's memory, and end what runs. Safe to call twice, from any thread."""
        self._desk.close()

    async def aclose(self) -> None:
        """``close`` for an event loop."""
        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        of, end = self._setup, ", out of use" if self._desk.out_of_use else ""
        what = f"{self._manifest.name} {of.variant}: {of.backend} on {of.device}"
        return f"<Model {brief(what)}, context {of.context}, threads {of.threads}{end}>"

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Model:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # From options to a request

    def _later(self, making: Callable[[], Stream]) -> AsyncStream:
        """Return a stream for an event loop: tokenising and rendering too are done on another thread, the owner's but
        where that computes for others meanwhile."""

        async def make() -> Stream:
            self._desk.check()
            return await (asyncio.to_thread(making) if self._desk.parallel else self._desk.owner.acall(making))

        return AsyncStream(make)

    def _generation(
        self,
        prompt: Prompt,
        options: GenerationOptions,
        began: float,
        *,
        tools: Tools | None = None,
        thinks: Thinks | None = None,
    ) -> Generation:
        policy, limit = read_room(options, self._manifest.generation)
        if policy != "rolling":
            # The last token that is generated is never evaluated, so it needs no room in the cache.
            limit = min(limit, self.context - len(prompt.ids) + 1)
        form = "" if tools is None else self.template.for_tools.source
        stops = read_stops(options)
        grammar = self._grammar(options if tools is None else tools.binding(options, form))
        if grammar is not None and stops:
            raise UsageError("stop was given beside a schema.", hint="A bound answer ends where its schema says.")
        looks_up = read_lookup(options, self._lookup_pays)
        request = Request(
            prompt=prompt.ids,
            sampling=read_sampling(options, self._manifest.generation),
            limit=limit,
            stop_ids=self._stop_ids,
            stops=stops,
            at_start=prompt.at_start,
            began=began,
            setup=self._setup,
            load_s=self._load_s,
            grammar=grammar,
            n_best=read_n_best(options),
            looks_up=looks_up,
            drafts=read_draft(options, self._desk.draft is not None),
            exactly=read_reuse(options) == "exact",
            rolls_from=prompt.kept if policy == "rolling" else None,
            truncated=prompt.truncated,
            thinks=thinks,
            parse=None if tools is None else tools.reading(self._tokenizer, form, prompt),
        )
        return Generation(self._tokenizer, request)

    def _thinks(self, thought: Thought | None, most: int | None) -> Thinks | None:
        marks = self._prompts.thinking
        return None if marks is None or thought is None else Thinks(marks, thought, most)

    def _grammar(self, options: Mapping[str, Any]) -> Grammar | None:
        return read_grammar(options, self._tokenizer, self._manifest.decoder.n_vocab, self._stop_ids)
