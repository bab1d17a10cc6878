"""A loaded model: text in, text out, the same on every engine.

Everything between a user's text and the seam's token ids comes together here: tokenizer, chat template, sampling,
stops, characters, counts and times. The engine behind the session knows none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from types import TracebackType
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from edgepack.chat import ChatTemplate
from edgepack.errors import PromptTooLongError, UsageError, check_options
from edgepack.manifest import Manifest, Variant
from edgepack.results import Result
from edgepack.runtime import Options, Session
from edgepack.sample import Sampling
from edgepack.stream import Desk, Request
from edgepack.stream import Stream as Stream  # the type of what ``stream`` returns
from edgepack.tokenizer import Tokenizer

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class GenerationOptions(TypedDict, total=False):
    """How a text is generated. What is left out, or None, is the bundle's default."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str] | None
    seed: int | None


class Model:
    """One variant of a bundle, open on one engine. Made by ``edgepack.load``; close it, or use it in a ``with``.

    It belongs to the thread that loaded it; only a stream's ``cancel`` may come from another. One stream at a time.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        bundle_id: str,
        variant: Variant,
        session: Session,
        options: Options,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        load_s: float | None = None,
    ) -> None:
        self._manifest = manifest
        self._bundle_id = bundle_id
        self._variant = variant
        self._desk = Desk(session, options.chunk)
        self._context = options.context
        self._tokenizer = tokenizer
        self._template = template
        self._load_s = load_s
        self._stop_ids = frozenset(stop.id for stop in manifest.stops)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._manifest

    @property
    def bundle_id(self) -> str:
        """The sha256 of the bundle's manifest."""
        return self._bundle_id

    @property
    def variant(self) -> Variant:
        """The payload that is loaded."""
        return self._variant

    @property
    def backend(self) -> str:
        """The name of the runtime that runs it."""
        return self._variant.runtime

    @property
    def context(self) -> int:
        """Tokens that a prompt and its continuation may have together."""
        return self._context

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
        self._desk.check_free()
        if not len(ids):
            raise UsageError("ids is empty.", hint="Pass at least one token id.")
        for index, token in enumerate(ids):
            if not 0 <= token < self._manifest.decoder.n_vocab:
                raise UsageError(
                    f"ids[{index}] is {token}.",
                    hint=f"The vocabulary has ids 0 to {self._manifest.decoder.n_vocab - 1}.",
                )
        self._check_fits(ids)
        self._desk.session.rewind(0)
        return self._desk.run(self._desk.session.forward_all, ids)

    def generate(self, text: str, **options: Unpack[GenerationOptions]) -> Result:
        """Continue a text and return the new part.

        Options, by keyword: ``max_tokens``, ``temperature``, ``top_p``, ``top_k``, ``min_p``, ``repetition_penalty``,
        ``stop``, ``seed``. None means the bundle's default; see ``edgepack.sample.Sampling`` for the ranges. ``stop``
        is a string or a list of strings at which the text ends, without them. It also ends at the bundle's stop
        tokens, after ``max_tokens``, and at the end of the context ("length").
        Raises ``UnknownOptionError`` for another keyword, ``UsageError`` for a value that cannot be honoured,
        ``PromptTooLongError`` before anything is evaluated, ``EngineError`` where the engine fails.
        """
        return _whole(self.stream(text, **options))

    def stream(self, text: str, **options: Unpack[GenerationOptions]) -> Stream:
        """Continue a text piece by piece: ``with model.stream("...") as stream: for chunk in stream: ...``.

        Arguments and errors as in ``generate``; wrong arguments are refused here, before the ``with`` begins.
        """
        began = perf_counter()
        check_options("Generation", options, GenerationOptions.__annotations__)
        ids = self._tokenizer.encode(text)
        if not ids:
            raise UsageError("The prompt is empty, and this model has no BOS token to begin with.", hint="Pass a text.")
        # After a special token a text begins anew, with the space that the tokenizer puts there.
        at_start = not self._tokenizer.token_bytes(ids[-1])
        return self._stream(ids, options, at_start, began)

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
        date: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Result:
        """Answer a conversation: messages with ``role`` and ``content``, through the bundle's chat template.

        ``tools`` are function definitions in JSON schema; ``variables`` are the template's own, such as
        ``{"enable_thinking": False}``; ``date`` (YYYY-MM-DD) is the day that the template prints, None the bundle's.
        Other arguments and errors as in ``generate``; a bundle without a template, a role, tools or a variable that it
        does not know, and a date that it leaves to the application raise ``UsageError``.
        """
        return _whole(self.stream_chat(messages, tools=tools, variables=variables, date=date, **options))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
        date: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream:
        """Answer a conversation piece by piece. Arguments and errors as in ``chat``."""
        began = perf_counter()
        check_options("Generation", options, GenerationOptions.__annotations__)
        ids = self._prompt(messages, tools, variables, date)
        # An answer is a text of its own, whatever the template printed before it.
        return self._stream(ids, options, True, began)

    def close(self) -> None:
        """Free the engine's memory. Safe to call twice."""
        self._desk.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prompt(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None,
        variables: Mapping[str, object] | None,
        date: str | None,
    ) -> list[int]:
        chat = self._manifest.chat
        if self._template is None or chat is None:
            raise UsageError("This bundle has no chat template.", hint="Use generate or stream with a plain text.")
        if date is None and chat.date is not None and chat.date.policy == "passed":
            raise UsageError("The chat template prints the day.", hint="Pass it: date='YYYY-MM-DD'.")
        text = self._template.render(messages, tools=tools, variables=variables, date=date)
        for index, message in enumerate(messages):
            if chat.roles and message["role"] not in chat.roles:  # most templates leave it out without a word
                raise UsageError(
                    f"messages[{index}].role is {message['role']!r}.",
                    hint=f"The bundle's chat template knows: {', '.join(chat.roles)}.",
                )
        # A template writes its own BOS, or wants none.
        return self._tokenizer.encode(text, bos=False, special=True)

    def _stream(self, prompt: list[int], options: GenerationOptions, at_start: bool, began: float) -> Stream:
        sampling, stops = self._sampling(options), _stops(options.get("stop"))
        max_tokens = self._max_tokens(options.get("max_tokens"))
        self._check_rows(prompt)
        self._check_fits(prompt)
        # The last token that is generated is never evaluated, so it needs no room in the cache.
        limit = min(max_tokens, self.context - len(prompt) + 1)
        request = Request(prompt, sampling, limit, self._stop_ids, stops, at_start, began)
        return Stream(self._desk, self._tokenizer, request, self._load_s)

    def _sampling(self, options: GenerationOptions) -> Sampling:
        defaults = self._manifest.generation
        values: dict[str, Any] = {name: getattr(defaults, name) for name in _SAMPLING} | {"seed": None}
        values |= {name: value for name, value in options.items() if name in values and value is not None}
        return Sampling(**values)

    def _max_tokens(self, value: int | None) -> int:
        if value is None:
            return self._manifest.generation.max_tokens
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"max_tokens is {value!r}.", hint="It must be a positive integer.")
        return value

    def _check_rows(self, ids: Sequence[int]) -> None:
        last = max(ids, default=0)
        if last >= self._manifest.decoder.n_vocab:  # a tokenizer may know tokens that its model never learnt
            raise UsageError(f"The prompt has the token {self._tokenizer.token(last)!r}, which this model lacks.")

    def _check_fits(self, ids: Sequence[int]) -> None:
        if len(ids) > self.context:
            most = self._manifest.context.profile
            if len(ids) <= most:
                hint = f"Shorten it, or load with context={len(ids)} or more."
            else:
                hint = f"Shorten it: this bundle is made for {most} tokens."
            raise PromptTooLongError(f"The prompt has {len(ids)} tokens, the context {self.context}.", hint=hint)


def _whole(stream: Stream) -> Result:
    with stream:
        for _ in stream:
            pass
    return stream.result


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    if isinstance(stop, str):
        if not stop:
            raise UsageError("stop is an empty string.", hint="Leave it out to have no stop string.")
        return (stop,)
    if not isinstance(stop, Sequence):
        raise UsageError(f"stop is of type {type(stop).__name__}.", hint="It must be a string or a list of strings.")
    for index, text in enumerate(stop):
        if not isinstance(text, str) or not text:
            raise UsageError(f"stop[{index}] is {text!r}.", hint="It must be a string that is not empty.")
    return tuple(stop)
