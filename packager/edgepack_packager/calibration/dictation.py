"""The text that a model writes to be calibrated with: its answers to a list of prompts, told by its own chat template.

A base model, which has no template, goes on with the beginnings of texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from typing import Any, Final

from edgepack.bundle.thinking import CLIENTS
from edgepack.decoding.options import GenerationOptions
from edgepack.decoding.results import Result
from edgepack.errors import PromptTooLongError, SourceError, UsageError
from edgepack.model import Model as Speaker
from edgepack.runtime import Support
from edgepack_packager.calibration.text import BUILT_IN, Corpus, dictated
from edgepack_packager.targets import Model, Request, find

CONTEXT: Final = 1024
"""Tokens of a conversation: more than the longest takes."""

_ANSWER: Final = 128
"""Tokens at most: with those of the prompts, a round is about a text, and it has something of every prompt."""

_TEMPERATURE: Final = 0.8
_TOP_P: Final = 0.95

_ROUNDS: Final = 8
"""Times that all is asked, each with seeds of its own, of a model whose answers are short."""

_SAID: Final = 0.125
"""Of the text, what must be the model's own words."""

_RUN: Final = 4
_NEW: Final = 0.25
"""Of the runs of ``_RUN`` tokens in an answer, what must not have stood in it before: less is a loop."""

_SLOW: Final = frozenset({("mlx", "cpu")})
"""Targets and devices that take a second for a token."""

_WAY: Final = f"Calibrate with a text of its kind, or take --calibrate {BUILT_IN}."


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is said to a model, message by message, and the beginning of a text of the same kind for a base model."""

    say: Sequence[str]
    begin: str


def prompts() -> list[Prompt]:
    """Return the built-in prompts: facts, tasks, letters, code, tables, stories, and several languages."""
    lines = files(__package__).joinpath("prompts.jsonl").read_text("utf-8").splitlines()
    return [Prompt(**json.loads(line)) for line in lines]


def speaker(requests: Sequence[Request], engines: Mapping[str, Support], model: Model) -> Request:
    """Return the variant that is to write the text: of 8 bits, for the first target whose engine is quick here.

    Raises ``UsageError`` where none is, and as ``Target.check``.
    """
    for name in dict.fromkeys(request.target.name for request in requests):
        target = find(name)
        support = engines.get(target.runtime)
        if support and support.devices and (name, support.devices[0]) not in _SLOW:
            scheme = target.scheme("q8", model)
            target.check(model, scheme)
            return Request(target, "q8", scheme)
    raise UsageError(
        "--calibrate auto was given, and no engine of these targets writes a text here within minutes.",
        hint=f"Add --target gguf or onnx, give a text, or take --calibrate {BUILT_IN}.",
    )


def dictate(speaker: Speaker, tokens: int, advance: Callable[[int], None]) -> Corpus:
    """Have a model write, and return a text of so many tokens, or some more, with those of the prompts.

    It is JSON lines of messages, or plain where the model has no template. Seeds are fixed. ``advance`` is told the
    tokens of each conversation. Raises ``SourceError`` for a model that writes next to nothing, or the same again and
    again, and as ``Model.chat``.
    """
    asked, chat = prompts(), speaker.manifest.chat
    texts: list[str] = []
    answers: list[tuple[int, ...]] = []
    told = 0
    for seed in range(len(asked) * _ROUNDS):
        prompt = asked[seed % len(asked)]
        written: list[Result] = []
        if chat is None:
            written += _continued(speaker, prompt.begin, seed)
            texts += [prompt.begin + each.text for each in written]
        else:
            messages: list[dict[str, Any]] = []
            written += _conversed(speaker, prompt.say, seed, messages)
            texts += [json.dumps({"messages": messages}, ensure_ascii=False)] if written else []
        if written:
            answers += [each.token_ids for each in written]
            more = written[-1].usage.prompt_tokens + written[-1].usage.completion_tokens
            advance(min(more, tokens - told))
            told += more
        if told >= tokens:
            break
    name = speaker.manifest.name
    if told < tokens or sum(map(len, answers)) < _SAID * told:
        raise SourceError(
            f"{name} wrote {sum(map(len, answers))} tokens to {seed + 1} prompts, which makes no text.", hint=_WAY
        )
    if (new := _new(answers)) < _NEW:
        raise SourceError(
            f"{name} repeats itself: of the runs of {_RUN} tokens in its answers, {new:.0%} are new.", hint=_WAY
        )
    return dictated(("\n" if chat else "\n\n").join([*texts, ""]), lines=chat is not None)


def _conversed(speaker: Speaker, say: Sequence[str], seed: int, messages: list[dict[str, Any]]) -> Iterator[Result]:
    """Yield the answers to what is said, one after the other, and add all of it to ``messages``, empty answers not."""
    chat = speaker.manifest.chat
    date = chat.date.day if chat and chat.date and chat.date.policy == "passed" else None
    thought = _ANSWER // 2 if chat and chat.thinking else None
    for text in say:
        question = {"role": "user", "content": text}
        try:
            answer = speaker.chat([*messages, question], **_options(seed), date=date, thinking_tokens=thought)
        except PromptTooLongError:  # for a context of few tokens
            return
        if not answer.text.strip():
            return
        reasoning = {CLIENTS: answer.reasoning} if answer.reasoning else {}
        messages += [question, {"role": "assistant", "content": answer.text, **reasoning}]
        yield answer


def _continued(speaker: Speaker, begin: str, seed: int) -> Iterator[Result]:
    try:
        answer = speaker.generate(begin, **_options(seed))
    except PromptTooLongError:
        return
    if answer.text.strip():
        yield answer


def _options(seed: int) -> GenerationOptions:
    return GenerationOptions(
        max_tokens=_ANSWER, temperature=_TEMPERATURE, top_p=_TOP_P, seed=seed, prompt_lookup=False, reuse="exact"
    )


def _new(answers: Sequence[Sequence[int]]) -> float:
    """Return the share of the runs of tokens in answers that are the first of their kind in theirs."""
    runs = [[tuple(ids[at : at + _RUN]) for at in range(len(ids) - _RUN + 1)] for ids in answers]
    return sum(len(set(each)) for each in runs) / max(1, len(list(chain(*runs))))
