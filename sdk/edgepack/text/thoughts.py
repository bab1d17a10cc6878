"""Where a model thinks aloud: the marks around its thoughts, one row a kind. Its answer stands after them."""

from __future__ import annotations

import re
from typing import Literal

from edgepack.bundle.thinking import Thinking

Marks = tuple[str, str]
Thought = Literal["begun", "possible", "skipped"]
"""A prompt has begun a thought, leaves it to the model, or has it answer without one."""

_SPACE = re.compile(r"\s*")

# What a model is trained on whatever its template says: distilled models keep the template of their base.
_THINK: Marks = ("<think>", "</think>")

# Those that a template has to state, both of them: elsewhere they are a text like any other.
_STATED: tuple[Marks, ...] = (
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|think|>", "<|end|>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)


def marks_of(template_source: str) -> tuple[Marks, ...]:
    """Return the marks of thoughts in the answers of a model with this chat template."""
    # Some of Gemma's templates only take thoughts out of earlier answers, and do not name the channel that they are in.
    return _THINK, *(pair for pair in _STATED if all(mark.removesuffix("thought") in template_source for mark in pair))


def opened(prompt: str, marks: tuple[Marks, ...]) -> str:
    """Return the mark of a thought that a prompt ends with, so that its answer begins inside; "" for none."""
    end = prompt.rstrip()
    return next((opening for opening, _ in marks if end.endswith(opening)), "")


def thought_after(prompt: str, answer: str, known: Thinking) -> Thought | None:
    """Return what follows a prompt that ends with the beginning of an ``answer``, None where the thought is over."""
    marks = ((known.opening, known.closing),)
    if answer.strip():
        return "begun" if unfinished(answer, marks) else None
    if opened(prompt, marks):
        return "begun"
    return "skipped" if prompt.rstrip().endswith(known.closing) else "possible"


def unfinished(text: str, marks: tuple[Marks, ...]) -> str:
    """Return the mark of the thought in which a text ends, "" for a text that ends outside."""
    return _passed(text, marks)[1]


def after(text: str, marks: tuple[Marks, ...]) -> int:
    """Return where an answer goes on after the thoughts that it begins with; its end where one does not end."""
    return _passed(text, marks)[0]


def _passed(text: str, marks: tuple[Marks, ...]) -> tuple[int, str]:
    at = 0
    while True:
        begin = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        pair = next((pair for pair in marks if text.startswith(pair[0], begin)), None)
        if pair is None:
            return at, ""
        end = text.find(pair[1], begin + len(pair[0]))
        if end < 0:
            return len(text), pair[0]
        at = end + len(pair[1])
