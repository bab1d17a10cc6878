"""Compare: what two models answer to the same prompts, and how fast. One is loaded, asked and closed, then the other,
so that neither the memory nor the speed of one depends on the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from edgepack.errors import EdgepackError, UsageError
from edgepack.language_model import Served
from edgepack.model import Model
from edgepack.prefix import common_length

if TYPE_CHECKING:
    from edgepack.bundle.manifest import Manifest
    from edgepack.decoding.options import GenerationOptions
    from edgepack.decoding.repro import Setup
    from edgepack.decoding.results import Result
    from edgepack.language_model import LanguageModel

Prompt = str | list[Any]
"""A text, or the messages of a conversation."""

_WARM_UP = "Hello"


@dataclass(frozen=True, slots=True)
class Side:
    """One model and the medians of its answers; a figure that no answer reached is None, see ``Timings``. Of a model on
    a server ``served`` says where it is, and ``setup`` is None.

    ``chat`` says whether its chat template was used. Each model answers one short text before the prompts, which is
    not counted.
    """

    setup: Setup | None
    chat: bool
    load_s: float | None
    ttft_s: float | None
    prefill_tps: float | None
    decode_tps: float | None
    served: Served | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt.

    ``identical``: the same text. ``common_tokens``: how many tokens the answers share from their beginning, None where
    the bundles have different tokenizers, and beside a server, whose tokenizer is not known. ``first_difference``: the
    tokens of both that come next, None for an answer that has ended, and None instead of both where all tokens are the
    same or cannot be compared.
    """

    prompt: Prompt
    a: Result
    b: Result
    identical: bool
    common_tokens: int | None
    first_difference: tuple[str | None, str | None] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "prompt": self.prompt,
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "identical": self.identical,
            "common_tokens": self.common_tokens,
            "first_difference": self.first_difference,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models and their answers, in the order of the prompts."""

    a: Side
    b: Side
    pairs: tuple[Pair, ...]

    @property
    def identical(self) -> int:
        """How many answers are the same."""
        return sum(pair.identical for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        sides = {"a": asdict(self.a), "b": asdict(self.b)}
        return sides | {"identical": self.identical, "pairs": [pair.to_dict() for pair in self.pairs]}


def read_prompts(text: str) -> list[Prompt]:
    """Return the prompts of a file: one a line, or JSON Lines where its first prompt begins with "{".

    A line of JSON is an object with either "prompt", a string, or "messages", a list. Empty lines are no prompts.
    Raises ``UsageError`` that names the line, or for a file without any prompt.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError("The file has no prompt.", hint="Write one prompt on each line.")
    if not lines[0][1].startswith("{"):
        return [line for _, line in lines]
    return [_parsed(number, line) for number, line in lines]


def compare(
    open_a: Callable[[], LanguageModel],
    open_b: Callable[[], LanguageModel],
    prompts: Sequence[Prompt],
    *,
    raw: bool = False,
    date: str | None = None,
    options: GenerationOptions | None = None,
    progress: Callable[[], None] | None = None,
) -> Comparison:
    """Ask two models the same, one after the other; each is opened by its callable and closed.

    A text is asked through the chat template where the bundle has one, unless ``raw``. ``date`` (YYYY-MM-DD) is the day
    that is printed by a template which prints one. ``options`` are those of ``Model.generate``; the temperature is 0,
    the seed 0 and ``reuse`` "exact" unless they say otherwise. A server is asked for the temperature and ``options``
    alone; what it cannot honour of them is an error. ``progress`` is called after each answer. Raises as
    ``Model.generate`` and ``Model.chat``, with the number of the prompt.
    """
    asked, report = options or {}, progress or (lambda: None)
    a = _ask(open_a, prompts, raw, date, asked, report)
    b = _ask(open_b, prompts, raw, date, asked, report)
    piece = b.piece if a.tokenizer == b.tokenizer else None
    pairs = (_pair(*each, piece) for each in zip(prompts, a.results, b.results, strict=True))
    return Comparison(a.side, b.side, tuple(pairs))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one model said to all prompts, the digest of its tokenizer, and the pieces of its tokens."""

    side: Side
    results: list[Result]
    tokenizer: str | None
    piece: Callable[[int], str] | None


@dataclass(frozen=True, slots=True)
class _Way:
    """How a model is asked: through a chat template or not, with the day that it prints, and with which options."""

    chats: bool
    date: str | None
    options: GenerationOptions


def _ask(
    opening: Callable[[], LanguageModel],
    prompts: Sequence[Prompt],
    raw: bool,
    date: str | None,
    options: GenerationOptions,
    report: Callable[[], None],
) -> _Asked:
    results = []
    with opening() as model:
        model.generate(_WARM_UP, max_tokens=2)
        way = _way(model, raw, date, options)
        for number, prompt in enumerate(prompts, 1):
            try:
                results.append(_answer(model, prompt, raw, way))
            except EdgepackError as error:
                raise type(error)(f"Prompt {number}: {error.message}", hint=error.hint) from error
            report()
    timings = [result.timings for result in results]
    setup = model.setup
    side = Side(
        setup=None if isinstance(setup, Served) else setup,
        chat=way.chats,
        load_s=timings[0].load_s,
        ttft_s=_median([each.ttft_s for each in timings]),
        prefill_tps=_median([each.prefill_tps for each in timings]),
        decode_tps=_median([each.decode_tps for each in timings]),
        served=setup if isinstance(setup, Served) else None,
    )
    if not isinstance(model, Model):
        return _Asked(side, results, None, None)
    digests = {file.path: file.sha256 for file in model.manifest.files}
    return _Asked(side, results, digests.get("tokenizer.json"), model.tokenizer.piece)


def prints_day(manifest: Manifest) -> bool:
    """Return whether a bundle's chat template prints a day."""
    return manifest.chat is not None and manifest.chat.date is not None


def _way(model: LanguageModel, raw: bool, date: str | None, options: GenerationOptions) -> _Way:
    if isinstance(model, Model):
        day = date if prints_day(model.manifest) else None
        exact: GenerationOptions = {"temperature": 0.0, "seed": 0, "reuse": "exact", **options}
        return _Way(model.manifest.chat is not None and not raw, day, exact)
    asked: GenerationOptions = {"temperature": 0.0, **options}
    if not asked["temperature"]:  # then a seed decides nothing, and some servers take none
        asked.pop("seed", None)
    return _Way(not raw, date, asked)


def _answer(model: LanguageModel, prompt: Prompt, raw: bool, way: _Way) -> Result:
    if isinstance(prompt, str):
        if not way.chats:
            return model.generate(prompt, **way.options)
        return model.chat([{"role": "user", "content": prompt}], date=way.date, **way.options)
    if raw:
        raise UsageError("A conversation needs the chat template.", hint="Leave out raw, or give the text alone.")
    return model.chat(prompt, date=way.date, **way.options)


def _pair(prompt: Prompt, a: Result, b: Result, piece: Callable[[int], str] | None) -> Pair:
    common, difference = None, None
    if piece is not None:
        common = common_length(a.token_ids, b.token_ids)
        if a.token_ids != b.token_ids:
            rest_a, rest_b = ([piece(token) for token in each.token_ids[common : common + 1]] for each in (a, b))
            difference = (rest_a[0] if rest_a else None, rest_b[0] if rest_b else None)
    return Pair(prompt, a, b, a.text == b.text, common, difference)


def _median(values: Sequence[float | None]) -> float | None:
    return median(reached) if (reached := [value for value in values if value is not None]) else None


def _parsed(number: int, line: str) -> Prompt:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise UsageError(
            f"Line {number} of the prompts is not JSON, as the first is: {error}.",
            hint='Write a prompt that begins with "{" as {"prompt": "..."}.',
        ) from None
    kinds = {"prompt": str, "messages": list}
    if isinstance(said, dict) and len(said) == 1:
        (name, value) = next(iter(said.items()))
        if name in kinds and isinstance(value, kinds[name]):
            prompt: Prompt = value
            return prompt
    raise UsageError(
        f"Line {number} of the prompts is no prompt.", hint='Write {"prompt": "..."} or {"messages": [...]}.'
    )
