"""``edgepack run``: ask a bundle once, or talk with it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepack.cli import textfile
from edgepack.cli.collector import resting
from edgepack.cli.screen import (
    AsJson,
    Backend,
    BundleId,
    BundlePath,
    Context,
    Draft,
    KvCache,
    Strict,
    Threads,
    Variant,
    as_json,
    err,
    say,
    styled,
)
from edgepack.cli.spoken import Spoken

if TYPE_CHECKING:
    from edgepack.decoding.results import Result
    from edgepack.model import Model, Stream

Prompt = Annotated[str | None, typer.Argument(help="What to ask. Without it: standard input, or an interactive chat.")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text. Repeatable.")]
Number = Annotated[int | None, typer.Option(show_default=False)]
Real = Annotated[float | None, typer.Option(show_default=False)]
Schema = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|JSON", help="Bind the answer to this JSON schema, or the one in a file.", show_default=False
    ),
]
Bound = Annotated[str | None, typer.Option(help="Bind the answer to this regular expression.", show_default=False)]
GrammarFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Bind the answer to this Lark grammar.", show_default=False)
]
Logprobs = Annotated[bool, typer.Option("--logprobs", help="Add each token's logprob to the JSON.")]
PromptLookup = Annotated[
    bool | None,
    typer.Option(
        help="Check guessed tokens in one step. Default: what edgepack tune found to pay.", show_default=False
    ),
]
OnOverflow = Annotated[
    str | None,
    typer.Option(help="A prompt that is too long: error, truncate_middle or rolling.", show_default=False),
]
ControlTokens = Annotated[
    str | None,
    typer.Option(help="What names of special tokens in a prompt are: text or parse.", show_default=False),
]
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think",
        help="Think before the answer, or not, where the model has a choice. A thought is dim on a terminal, left out "
        "in a pipe, and reasoning in the JSON.",
        show_default=False,
    ),
]
ThinkingTokens = Annotated[
    int | None, typer.Option(help="Close the thought after so many tokens, and answer.", show_default=False)
]
Verify = Annotated[
    str | None,
    typer.Option(
        help="Read every file's sha256 always, or where it may have changed (remembered).", show_default=False
    ),
]
Isolate = Annotated[bool, typer.Option("--isolate", help="Run the engine in a process of its own.")]


def run(
    bundle: BundlePath,
    prompt: Prompt = None,
    raw: Raw = False,
    backend: Backend = None,
    variant: Variant = None,
    context: Context = None,
    kv_cache: KvCache = None,
    threads: Threads = None,
    max_tokens: Number = None,
    temperature: Real = None,
    top_p: Real = None,
    top_k: Number = None,
    min_p: Real = None,
    repetition_penalty: Real = None,
    stop: Stop = None,
    seed: Number = None,
    json_schema: Schema = None,
    regex: Bound = None,
    grammar: GrammarFile = None,
    logprobs: Logprobs = False,
    n_best: Number = None,
    prompt_lookup: PromptLookup = None,
    draft: Draft = None,
    on_overflow: OnOverflow = None,
    control_tokens: ControlTokens = None,
    think: Think = None,
    thinking_tokens: ThinkingTokens = None,
    isolate: Isolate = False,
    strict: Strict = False,
    id: BundleId = None,
    verify: Verify = None,
    json: AsJson = False,
) -> None:
    """Stream an answer; options that are left out are the bundle's defaults. Without a prompt: a chat."""
    from edgepack.errors import UsageError

    wanted = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": None if stop is None else [textfile.argument(each) for each in stop],
        "seed": seed,
        "json_schema": None if json_schema is None else textfile.schema(json_schema),
        "regex": None if regex is None else textfile.argument(regex),
        "grammar": None if grammar is None else textfile.read(grammar),
        "logprobs": logprobs or None,
        "n_best": n_best,
        "prompt_lookup": prompt_lookup,
        "on_overflow": on_overflow,
        "control_tokens": control_tokens,
        "thinking": think,
        "thinking_tokens": thinking_tokens,
    }
    talk = prompt is None and sys.stdin is not None and sys.stdin.isatty()
    if talk and json:
        raise UsageError("--json needs a prompt.", hint="Give it as an argument or on standard input.")
    text = "" if talk else _prompt(prompt)
    with resting():
        from edgepack.loading import load

        model = load(
            bundle,
            backend,
            context,
            kv_cache,
            variant=variant,
            threads=threads,
            isolate=isolate,
            strict=strict,
            draft=draft,
            id=id,
            verify=verify,
        )
    with model:
        asking = _Asking(model, {name: value for name, value in wanted.items() if value is not None}, raw)
        if talk:
            asking.converse()
        elif json:
            as_json(asking.silent(text))
        else:
            asking.once(text)


def _prompt(argument: str | None) -> str:
    from edgepack.errors import UsageError

    text = "" if argument is None else textfile.argument(argument)
    if argument is None and sys.stdin is not None:
        try:
            text = sys.stdin.buffer.read().decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"Standard input is not UTF-8: {error.reason} at byte {error.start}.") from None
    if not text:
        raise UsageError("The prompt is empty.", hint="Give it as an argument or on standard input.")
    return text


_CHAT_ALONE = {"control_tokens": "--control-tokens", "thinking": "--think", "thinking_tokens": "--thinking-tokens"}


class _Asking:
    """One way of asking: with the chat template or without, with the options of the command line."""

    def __init__(self, model: Model, options: dict[str, Any], raw: bool) -> None:
        from edgepack.errors import UsageError

        self._model, self._options = model, options
        self._chat = None if model.manifest.chat is None or raw else model.chat(**options)
        if self._chat is None and (name := next((name for name in _CHAT_ALONE if name in options), None)):
            raise UsageError(
                f"{_CHAT_ALONE[name]} was given for a prompt without a chat template.",
                hint="Leave it out: a plain text names no control token, and asks for no thought.",
            )

    def silent(self, text: str) -> dict[str, Any]:
        """Answer without streaming; return the result and what produced it, as JSON values."""
        from edgepack.decoding.stream import whole

        return whole(self._stream(text)).to_dict()

    def once(self, text: str) -> None:
        """Stream one answer to standard output, and end it with a line end. Raises ``KeyboardInterrupt`` if stopped."""
        result = _show(self._stream(text), "\n")
        if result.finish_reason == "cancelled":
            raise KeyboardInterrupt
        if result.reasoning and not result.text:
            say(err(), styled("dim", "There is no answer, only a thought: try --thinking-tokens or more --max-tokens."))

    def converse(self) -> None:
        """Ask for prompts until the end of the input. Ctrl-C ends an answer; at the prompt it ends the command."""
        import readline  # noqa: F401 - input() edits lines once it is imported

        from rich.text import Text

        from edgepack.errors import EdgepackError

        notes = err()
        about = (
            f"{self._model.variant.id}, context {self._model.context}. "
            "Ctrl-C stops an answer, /undo forgets the last turn, /clear all of them, Ctrl-D ends."
        )
        notes.print(styled("dim", about))
        while True:
            try:
                text = textfile.argument(input("> ").strip())
            except EOFError:
                sys.stdout.write("\n")
                return
            try:
                self._obey(text)
            except EdgepackError as error:
                say(notes, Text(f"error: {error}\n", "red"))

    def _obey(self, text: str) -> None:
        if text in ("/undo", "/clear"):
            if self._chat is not None:
                self._chat.undo(1 if text == "/undo" else self._chat.turns)
        elif text:
            _show(self._stream(text), "\n\n")

    def _stream(self, text: str) -> Stream:
        return self._model.stream(text, **self._options) if self._chat is None else self._chat.stream(text)


def _show(opening: Stream, ending: str) -> Result:
    """Write a stream to standard output as it comes, and an ending; Ctrl-C ends it as soon as the engine can."""
    spoken = Spoken()
    with opening as stream, _interrupt_cancels(stream):
        try:
            for chunk in stream:
                spoken.think(chunk.reasoning)
                spoken.write(chunk.text)
        finally:
            spoken.end("")
    sys.stdout.write(ending)
    return stream.result


@contextmanager
def _interrupt_cancels(stream: Stream) -> Iterator[None]:
    """Turn the first Ctrl-C into a cancel, so that what was said so far is a result; a second one is not caught."""

    def cancel(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stream.cancel()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
