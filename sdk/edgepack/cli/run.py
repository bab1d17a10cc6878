"""``edgepack run``: ask a bundle once, or talk with it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from edgepack.cli import figures, showing, textfile
from edgepack.cli.collector import resting
from edgepack.cli.help import examples
from edgepack.cli.options import (
    AsJson,
    Backend,
    BundleId,
    BundlePath,
    Context,
    Date,
    Draft,
    KvCache,
    MaxTokens,
    MinP,
    PolicyFile,
    Raw,
    RepetitionPenalty,
    Stop,
    Strict,
    Threads,
    TopK,
    TopP,
    Variant,
    Warm,
)
from edgepack.cli.run_options import (
    AsMarkdown,
    Bound,
    ControlTokens,
    GrammarFile,
    Isolate,
    Logprobs,
    NBest,
    OldSchema,
    OnOverflow,
    Prompt,
    PromptLookup,
    Schema,
    Seed,
    Stats,
    System,
    SystemFile,
    Temperature,
    Think,
    ThinkingTokens,
    Tools,
    Variables,
    Verify,
)
from edgepack.cli.screen import as_json, err, say, styled
from edgepack.errors import ToolCallError, UsageError

if TYPE_CHECKING:
    from edgepack.model import Model, Stream


@examples(
    'edgepack run demo.edgepack "What is edgepack?"',
    "edgepack run demo.edgepack                       # a chat",
    'edgepack run demo.edgepack --system "Be brief." --temperature 0 < question.txt',
    'edgepack run demo.edgepack "A year?" --schema \'{"type": "integer"}\' --json',
)
def run(
    bundle: BundlePath,
    prompt: Prompt = None,
    system: System = None,
    system_file: SystemFile = None,
    var: Variables = None,
    date: Date = None,
    tools: Tools = None,
    think: Think = None,
    thinking_tokens: ThinkingTokens = None,
    raw: Raw = False,
    control_tokens: ControlTokens = None,
    on_overflow: OnOverflow = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    schema: Schema = None,
    json_schema: OldSchema = None,
    regex: Bound = None,
    grammar: GrammarFile = None,
    logprobs: Logprobs = False,
    n_best: NBest = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    backend: Backend = None,
    variant: Variant = None,
    context: Context = None,
    kv_cache: KvCache = None,
    threads: Threads = None,
    draft: Draft = None,
    warm: Warm = None,
    prompt_lookup: PromptLookup = None,
    isolate: Isolate = False,
    strict: Strict = False,
    id: BundleId = None,
    policy: PolicyFile = None,
    verify: Verify = None,
    markdown: AsMarkdown = False,
    stats: Stats = False,
    json: AsJson = False,
) -> None:
    """Stream an answer; options that are left out are the bundle's defaults. Without a prompt: a chat."""
    wanted: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": None if stop is None else [textfile.argument(each) for each in stop],
        "seed": seed,
        "json_schema": textfile.schema(schema, json_schema),
        "regex": None if regex is None else textfile.argument(regex),
        "grammar": None if grammar is None else textfile.read(grammar),
        "logprobs": logprobs or None,
        "n_best": n_best,
        "prompt_lookup": prompt_lookup,
        "on_overflow": on_overflow,
    }
    chat: dict[str, Any] = {
        "system": textfile.system(system, system_file),
        "variables": textfile.variables(var),
        "date": date,
        "tools": textfile.tools(tools),
        "control_tokens": control_tokens,
        "thinking": think,
        "thinking_tokens": thinking_tokens,
    }
    if raw:
        _refuse(_given(chat), "Leave it out, or ask without --raw.")
    if (logprobs or n_best is not None) and not json:
        name = "--logprobs" if logprobs else "--n-best"
        raise UsageError(f"{name} was given without --json, where alone its figures stand.", hint="Add --json.")
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
            warm=warm,
            id=id,
            policy=policy,
            verify=verify,
        )
    with model:
        if talk:
            from edgepack.cli.talk import converse

            options = _given({**wanted, **chat, "system": None})
            converse(model, options, system=chat["system"], raw=raw, stats=stats, markdown=markdown)
            return
        asking = _Asking(model, _given(wanted), _given(chat), raw)
        if json:
            as_json(asking.silent(text))
        else:
            asking.once(text, markdown, stats)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _refuse(chat: dict[str, Any], hint: str) -> None:
    """Raise ``UsageError`` for an option of the chat template that none is there to read."""
    for name in chat:
        thinking = "--no-think" if chat[name] is False else "--think"
        option = {"variables": "--var", "thinking": thinking}.get(name, "--" + name.replace("_", "-"))
        raise UsageError(f"{option} was given for a prompt without a chat template.", hint=hint)


def _prompt(argument: str | None) -> str:
    text = textfile.standard_input().removesuffix("\n") if argument is None else textfile.argument(argument)
    if not text:
        raise UsageError("The prompt is empty.", hint="Give it as an argument or on standard input.")
    return text


class _Asking:
    """One way of asking: with the chat template or without, with the options of the command line."""

    def __init__(self, model: Model, options: dict[str, Any], chat: dict[str, Any], raw: bool) -> None:
        self._model, self._options = model, options
        self._chat = None if model.manifest.chat is None or raw else model.chat(**chat, **options)
        if self._chat is None:
            _refuse(chat, "Leave it out: this bundle continues texts.")
        self._calls = "tools" in chat

    def silent(self, text: str) -> dict[str, Any]:
        """Answer without streaming; return the result and what produced it, as JSON values.

        The report of a call that is none has the answer as the model wrote it.
        """
        from edgepack.decoding.stream import whole

        try:
            return whole(self._stream(text)).to_dict()
        except ToolCallError as error:
            as_json({"text": error.text})
            raise

    def once(self, text: str, markdown: bool, stats: bool) -> None:
        """Stream one answer to standard output, and end it with a line end. Raises ``KeyboardInterrupt`` if stopped."""
        result = showing.show(self._stream(text), "\n", markdown, calls=self._calls)
        if stats:
            say(err(), styled("dim", figures.line(result)))
        if result.finish_reason == "cancelled":
            raise KeyboardInterrupt
        if why := showing.unanswered(result, "--thinking-tokens or more --max-tokens", "--no-think"):
            say(err(), styled("dim", why))

    def _stream(self, text: str) -> Stream:
        return self._model.stream(text, **self._options) if self._chat is None else self._chat.stream(text)
