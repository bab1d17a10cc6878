"""``edgepack run``: ask a bundle once, or talk with it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepack.cli.screen import (
    AsJson,
    Backend,
    BundlePath,
    Context,
    KvCache,
    Threads,
    Variant,
    as_json,
    err,
)

if TYPE_CHECKING:
    from edgepack.model import Model, Stream
    from edgepack.results import Result

Prompt = Annotated[str | None, typer.Argument(help="What to ask. Without it: standard input, or an interactive chat.")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text. Repeatable.")]
Number = Annotated[int | None, typer.Option(show_default=False)]
Real = Annotated[float | None, typer.Option(show_default=False)]


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
    json: AsJson = False,
) -> None:
    """Stream an answer; options that are left out are the bundle's defaults. Without a prompt: a chat."""
    from edgepack.errors import UsageError
    from edgepack.loading import load

    wanted = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop,
        "seed": seed,
    }
    talk = prompt is None and sys.stdin.isatty()
    if talk and json:
        raise UsageError("--json needs a prompt.", hint="Give it as an argument or on standard input.")
    text = "" if talk else _prompt(prompt)
    model = load(bundle, backend, context, kv_cache, variant=variant, threads=threads)
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

    text = argument
    if text is None:
        try:
            text = sys.stdin.buffer.read().decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"Standard input is not UTF-8: {error.reason} at byte {error.start}.") from None
    if not text:
        raise UsageError("The prompt is empty.", hint="Give it as an argument or on standard input.")
    return text


class _Asking:
    """One way of asking: with the chat template or without, with the options of the command line."""

    def __init__(self, model: Model, options: dict[str, Any], raw: bool) -> None:
        self._model, self._options = model, options
        self._chat = model.manifest.chat is not None and not raw
        self._messages: list[dict[str, str]] = []

    def silent(self, text: str) -> dict[str, Any]:
        """Answer without streaming; return the result and what produced it, as JSON values."""
        with self._stream(text) as stream:
            for _ in stream:
                pass
        model = self._model
        made_by = {"bundle": model.bundle_id, "variant": model.variant.id, "context": model.context}
        return made_by | stream.result.to_dict()

    def once(self, text: str) -> None:
        """Stream one answer to standard output, and end it with a line end. Raises ``KeyboardInterrupt`` if stopped."""
        result = _show(self._stream(text))
        sys.stdout.write("\n")
        if result.finish_reason == "cancelled":
            raise KeyboardInterrupt

    def converse(self) -> None:
        """Ask for prompts until the end of the input. Ctrl-C ends an answer; at the prompt it ends the command."""
        import readline  # noqa: F401 - input() edits lines once it is imported

        from edgepack.errors import EdgepackError

        notes = err()
        notes.print(
            f"[dim]{self._model.variant.id}, context {self._model.context}. "
            "Ctrl-C stops an answer, /clear forgets the conversation, Ctrl-D ends.[/]"
        )
        while True:
            try:
                text = input("> ").strip()
            except EOFError:
                sys.stdout.write("\n")
                return
            if text == "/clear":
                self._messages.clear()
            elif text:
                try:
                    self._answer(text)
                except EdgepackError as error:
                    notes.print(f"error: {error}\n", style="red", markup=False, soft_wrap=True)

    def _answer(self, text: str) -> None:
        result = _show(self._stream(text))
        sys.stdout.write("\n\n")
        # Only what was answered is remembered: a turn that failed leaves the conversation as it was.
        if self._chat:
            self._messages += [_message("user", text), _message("assistant", result.text)]

    def _stream(self, text: str) -> Stream:
        if self._chat:
            return self._model.stream_chat([*self._messages, _message("user", text)], **self._options)
        return self._model.stream(text, **self._options)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _show(opening: Stream) -> Result:
    """Write a stream to standard output as it comes; Ctrl-C ends it as soon as the engine can."""
    with opening as stream, _interrupt_cancels(stream):
        for chunk in stream:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
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
