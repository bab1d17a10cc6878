"""How a text is asked for: the options of ``generate`` and ``chat``, and what each comes to beside a bundle's defaults.

Whatever cannot be honoured raises ``UsageError`` here, before anything is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from edgepack.bundle.manifest import Generation, Manifest
from edgepack.bundle.thinking import Thinking
from edgepack.decoding.sample import Sampling
from edgepack.errors import PromptTooLongError, SchemaError, UsageError
from edgepack.text.prompts import ControlTokens, OnOverflow, check_policy, check_writes
from edgepack.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgepack.structured.constrain import Grammar
    from edgepack.text.tools import Tools

Tool = Callable[..., object] | Mapping[str, object]

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
Reuse = Literal["all", "exact"]

_BINDING = ("json_schema", "regex", "grammar")
_N_BEST = 20


class GenerationOptions(TypedDict, total=False):
    """How a text is generated. What is left out, or None, is the bundle's default.

    ``json_schema`` (a schema, or a class that has one), ``regex`` and ``grammar`` (Lark) bind the text, one of them at
    a time; what ``max_tokens`` cuts is closed, so that it still holds. ``logprobs`` asks for each token's logarithm of
    probability, ``n_best`` for so many likeliest ones beside it. ``prompt_lookup`` lets the engine check several
    guessed tokens in one step; the default is what ``edgepack tune`` found to pay on this device, else off.
    ``draft`` has the bundle's draft model guess them; the default is yes where it is loaded, see ``edgepack.load``.
    ``reuse``: "all", the default, takes over all of the KV cache that the prompt shares; "exact" only what evaluating
    the prompt from nothing would put there in the same steps, so that the answer is the same to the last bit of its
    logits whatever was asked before.
    ``on_overflow``: "error", "truncate_middle" or "rolling", see ``edgepack.text.prompts``.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    json_schema: Mapping[str, object] | str | bool | type | None
    regex: str | None
    grammar: str | None
    logprobs: bool | None
    n_best: int | None
    prompt_lookup: bool | None
    draft: bool | None
    on_overflow: OnOverflow | None
    reuse: Reuse | None


class ChatOptions(GenerationOptions, total=False):
    """How a conversation is answered, beside the options of a text.

    ``tools`` are functions or their definitions in JSON schema. ``tool_choice`` is "auto", the default, "none" (they
    are shown, and nothing is read as a call), "required" or the name of one, also as ``{"name": ...}``: the answer is
    then bound to one call. ``parallel_tool_calls=False`` keeps only the first call of an answer. ``variables`` are the
    template's own, such as ``{"enable_thinking": False}``; ``date`` (YYYY-MM-DD) is the day that the template prints,
    None the bundle's.
    ``continue_final`` goes on with the last message, the beginning of the assistant's answer; the text is what is new.
    ``control_tokens``: by "text", the default, names of special tokens in what is said are ordinary text, by "parse"
    they become those tokens. ``thinking`` says to the template whether the model is to think before it answers, None
    leaves it to the template; a thought is closed in the model's own words after ``thinking_tokens``. What binds a
    text, and ``stop``, hold for the answer alone; ``max_tokens`` counts both.
    """

    tools: Sequence[Tool] | None
    tool_choice: str | Mapping[str, object] | None
    parallel_tool_calls: bool | None
    variables: Mapping[str, object] | None
    date: str | None
    continue_final: bool | None
    control_tokens: ControlTokens | None
    thinking: bool | None
    thinking_tokens: int | None


def read_sampling(options: GenerationOptions, defaults: Generation) -> Sampling:
    """Return the sampling that the options ask for, the bundle's where they leave it open."""
    values: dict[str, Any] = {name: getattr(defaults, name) for name in _SAMPLING} | {"seed": None}
    values |= {name: value for name, value in options.items() if name in values and value is not None}
    return Sampling(**values)


def read_room(options: GenerationOptions, defaults: Generation) -> tuple[OnOverflow, int]:
    """Return what is to happen when the context is full, and the most tokens to generate."""
    policy, value = check_policy(options.get("on_overflow")), options.get("max_tokens")
    if value is None:
        return policy, defaults.max_tokens
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"max_tokens is {value!r}.", hint="It must be a positive integer.")
    return policy, value


def read_control_tokens(options: ChatOptions) -> ControlTokens:
    """Return what names of special tokens in messages are."""
    value: object = options.get("control_tokens")
    if value is None or value == "text":
        return "text"
    if value == "parse":
        return "parse"
    raise UsageError(f"control_tokens is {value!r}.", hint="Choose one of: text, parse.")


def read_stops(options: GenerationOptions) -> tuple[str, ...]:
    """Return the strings at which the text ends."""
    stop = options.get("stop")
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


def read_grammar(
    options: Mapping[str, Any], tokenizer: Tokenizer, rows: int, stop_ids: frozenset[int]
) -> Grammar | None:
    """Return what binds the text, None where nothing does. ``rows`` are those of the logits."""
    asked = {name: options.get(name) for name in _BINDING}
    if all(value is None for value in asked.values()):
        return None
    from edgepack.structured.constrain import compile_grammar

    values: dict[str, Any] = {**asked, "opening": options.get("opening")}
    try:
        return compile_grammar(tokenizer, rows, stop_ids, **values)
    except SchemaError as error:
        if values["opening"] is None:
            raise
        reason = error.message.removeprefix("json_schema: ")
        raise SchemaError(f"tool_choice: a call cannot be bound: {reason}", hint=error.hint) from None


def read_tools(options: ChatOptions, template_source: Callable[[], str]) -> Tools | None:
    """Return the tools and which of them are to be called, None where there are none. ``template_source`` is asked for
    where it is needed. Raises as ``edgepack.text.tools.Tools.of`` and ``Tools.check``."""
    tools, choice, several = options.get("tools"), options.get("tool_choice"), options.get("parallel_tool_calls")
    if tools is None:
        if name := "tool_choice" if choice is not None else "parallel_tool_calls" if several is not None else None:
            raise UsageError(f"{name} was given without tools.", hint="Leave it out, or pass tools.")
        return None
    from edgepack.text.tools import Tools

    made = Tools.of(tools, choice, _yes_or_no("parallel_tool_calls", several, True))
    made.check(template_source())
    return made


def read_n_best(options: GenerationOptions) -> int | None:
    """Return how many alternatives each token's logprob gets, None where none were asked for."""
    wanted, count = options.get("logprobs"), options.get("n_best")
    if wanted is not None and not isinstance(wanted, bool):
        raise UsageError(f"logprobs is {wanted!r}.", hint="It is True or False; n_best is the number of alternatives.")
    if count is None:
        return 0 if wanted else None
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _N_BEST:
        raise UsageError(f"n_best is {count!r}.", hint=f"It is a number of alternatives from 0 to {_N_BEST}.")
    if wanted is False and count:
        raise UsageError("n_best was given beside logprobs=False.", hint="Leave one of them out.")
    return count


def read_lookup(options: GenerationOptions, pays: bool) -> bool:
    """Return whether prompt lookup guesses: as asked for, else whether it pays on this device."""
    return _yes_or_no("prompt_lookup", options.get("prompt_lookup"), pays)


def read_draft(options: GenerationOptions, loaded: bool) -> bool:
    """Return whether the draft model guesses: as asked for, else whether it is loaded."""
    wanted = _yes_or_no("draft", options.get("draft"), loaded)
    if wanted and not loaded:
        raise UsageError("draft is True, and no draft model is loaded.", hint="Load the bundle with draft=True.")
    return wanted


def read_reuse(options: GenerationOptions) -> Reuse:
    """Return what of the KV cache a prompt takes over."""
    value: object = options.get("reuse")
    for known in get_args(Reuse):
        if value == known:
            reuse: Reuse = known
            return reuse
    if value is None:
        return "all"
    raise UsageError(f"reuse is {value!r}.", hint=f"Choose one of: {', '.join(get_args(Reuse))}.")


def check_ids(ids: Sequence[int], manifest: Manifest, context: int) -> None:
    """Raise ``UsageError`` for no token, an id outside the vocabulary or a model that writes nothing,
    ``PromptTooLongError`` for too many."""
    check_writes(manifest)
    n_vocab = manifest.decoder.n_vocab
    if not len(ids):
        raise UsageError("ids is empty.", hint="Pass at least one token id.")
    for index, token in enumerate(ids):
        if not 0 <= token < n_vocab:
            raise UsageError(f"ids[{index}] is {token}.", hint=f"The vocabulary has ids 0 to {n_vocab - 1}.")
    if len(ids) > context:
        raise PromptTooLongError(
            f"The sequence has {len(ids)} tokens, the context {context}.", hint="Load with a larger context."
        )


def read_continue(options: ChatOptions) -> bool:
    """Return whether the answer goes on with the last message."""
    return _yes_or_no("continue_final", options.get("continue_final"), False)


def read_thinking(options: ChatOptions, known: Thinking | None) -> tuple[bool | None, int | None]:
    """Return whether the model is to think, None where its template decides, and the most tokens of its thought.

    ``known`` is what the bundle says of thoughts, None for a model without any.
    """
    wanted, most = options.get("thinking"), options.get("thinking_tokens")
    if wanted is not None and not isinstance(wanted, bool):
        raise UsageError(f"thinking is {wanted!r}.", hint="It is True, False or None.")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
        raise UsageError(f"thinking_tokens is {most!r}.", hint="It must be a number of tokens, 0 or more.")
    if known is None:
        if (name := "thinking" if wanted is not None else "thinking_tokens" if most is not None else None) is not None:
            raise UsageError(f"{name} was given, and this bundle's model does not think.", hint="Leave it out.")
        return None, None
    if wanted is not None and known.switch is None:
        raise UsageError(
            "thinking was given, and this bundle's chat template has no switch for it.",
            hint="Leave it out, or pass thinking_tokens=0 for an answer without a thought.",
        )
    if wanted is False and most is not None:
        raise UsageError("thinking_tokens was given beside thinking=False.", hint="Leave one of them out.")
    return wanted, most


def _yes_or_no(name: str, wanted: object, otherwise: bool) -> bool:
    if wanted is not None and not isinstance(wanted, bool):
        raise UsageError(f"{name} is {wanted!r}.", hint="It is True, False or None.")
    return otherwise if wanted is None else wanted
