"""``edgepack run``: ask a bundle once, or talk with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepack.cli import figures, spoken, textfile
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

if TYPE_CHECKING:
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
Verify = Annotated[
    str | None,
    typer.Option(
        help="Read every file's sha256 always, or where it may have changed (remembered).", show_default=False
    ),
]
Isolate = Annotated[bool, typer.Option("--isolate", help="Run the engine in a process of its own.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Render answers as Markdown in a terminal.")]
Stats = Annotated[bool, typer.Option("--stats", help="Tell tokens per second after an answer, on standard error.")]


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
    isolate: Isolate = False,
    strict: Strict = False,
    id: BundleId = None,
    verify: Verify = None,
    markdown: AsMarkdown = False,
    stats: Stats = False,
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
    }
    talk = prompt is None and sys.stdin is not None and sys.stdin.isatty()
    if talk and json:
        raise UsageError("--json needs a prompt.", hint="Give it as an argument or on standard input.")
    if json and (markdown or stats):
        name = "--markdown" if markdown else "--stats"
        raise UsageError(f"{name} was given beside --json.", hint="Leave one out: the JSON has text and figures.")
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
        options = {name: value for name, value in wanted.items() if value is not None}
        if talk:
            from edgepack.cli.talk import converse

            converse(model, options, raw=raw, stats=stats, markdown=markdown)
            return
        asking = _Asking(model, options, raw)
        if json:
            as_json(asking.silent(text))
        else:
            asking.once(text, markdown, stats)


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


class _Asking:
    """One way of asking: with the chat template or without, with the options of the command line."""

    def __init__(self, model: Model, options: dict[str, Any], raw: bool) -> None:
        from edgepack.errors import UsageError

        self._model, self._options = model, options
        self._chat = None if model.manifest.chat is None or raw else model.chat(**options)
        if self._chat is None and "control_tokens" in options:
            raise UsageError(
                "--control-tokens was given for a prompt without a chat template.",
                hint="Leave it out: a plain text names no control token.",
            )

    def silent(self, text: str) -> dict[str, Any]:
        """Answer without streaming; return the result and what produced it, as JSON values."""
        from edgepack.decoding.stream import whole

        return whole(self._stream(text)).to_dict()

    def once(self, text: str, markdown: bool, stats: bool) -> None:
        """Stream one answer to standard output, and end it with a line end. Raises ``KeyboardInterrupt`` if stopped."""
        result = spoken.show(self._stream(text), "\n", markdown)
        if stats:
            say(err(), styled("dim", figures.line(result)))
        if result.finish_reason == "cancelled":
            raise KeyboardInterrupt

    def _stream(self, text: str) -> Stream:
        return self._model.stream(text, **self._options) if self._chat is None else self._chat.stream(text)
