"""The draft model of a build: another model of the same vocabulary, which is packed alike and guesses for the first."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

from edgepack.errors import SourceError
from edgepack_packager import evidence, seal
from edgepack_packager.prepare import Prepared, prepare
from edgepack_packager.progress import Progress
from edgepack_packager.recipe import Recipe
from edgepack_packager.text import entries

_HINT = "A draft is a smaller model with the same tokenizer, mostly of the same family and generation."


def recipe_of(recipe: Recipe) -> Recipe:
    """Return the recipe of the draft model: the same variants, no adapters, which are the other's, and no chat, because
    it gets ids and gives ids. What goals and a recipe say of the other means q4, and no text is the draft's."""
    plain = replace(recipe, name=None, no_chat=True, draft=None, date=None, thinks=False, adapters=(), source_key=None)
    quants = [_scheme(quant) if recipe.goal(quant) else quant for quant in recipe.quants] or ["q4"]
    plain = replace(plain, quality=None if recipe.quality == "calibrated" else recipe.quality, calibrate=None)
    return replace(plain, quants=tuple(dict.fromkeys(quants)), table=None, receipt=None)


def _scheme(goal: str) -> str:
    """Return what stands for a goal: "gguf:q4" for "gguf:4.5bits"."""
    of, mark, _ = goal.rpartition(":")
    return f"{of}{mark}q4"


def prepare_draft(ready: Prepared, recipe: Recipe, progress: Progress) -> Prepared | None:
    """Settle the draft of a build as ``prepare`` does; None where the recipe has none. Its ``out`` is to be chosen.

    Raises as ``prepare``, and ``SourceError`` with the first token or the first text whose ids are not the same.
    """
    if recipe.draft is None:
        return None
    beside = ready.out.with_name(f"{ready.out.name.removesuffix('.edgepack')}.draft.edgepack")
    small = prepare(recipe.draft, recipe_of(recipe), beside, progress)
    if small.model.embedding is not None:
        raise SourceError(f"{small.model.name} cannot draft: it embeds, and says no next token.", hint=_HINT)
    check_same_tokens(ready, small)
    return replace(small, failed=evidence.evidence_of_failures(beside))


def check_same_tokens(ready: Prepared, small: Prepared) -> None:
    """Refuse a draft whose ids mean other tokens, or whose tokenizer gives other ids for a text of the bundle's."""
    ours, theirs = (entries(seal.text_of(each.model).tokenizer) for each in (ready, small))
    for a, b in zip_longest(ours.items(), theirs.items()):
        if a != b:
            raise SourceError(
                f"{small.model.name} cannot draft for {ready.model.name}: {_said(a)} in the vocabulary of the one is "
                f"{_said(b)} in that of the other.",
                hint=_HINT,
            )
    chat = ready.vectors.chat
    goldens = [] if chat is None else [*chat.goldens, *(chat.tool_use.goldens if chat.tool_use else [])]
    texts = [(probe.text, probe.special) for probe in ready.vectors.probes]
    for text, special in (*texts, *((golden.text, True) for golden in goldens)):
        a, b = (each.tokenizer.encode(text, bos=False, special=special) for each in (ready, small))
        if a != b:
            raise SourceError(
                f"{small.model.name} cannot draft for {ready.model.name}: its tokenizer makes {b!r} of {text!r}, and "
                f"not {a!r}.",
                hint=_HINT,
            )


def _said(entry: tuple[int, str] | None) -> str:
    return "nothing" if entry is None else f"{entry[1]!r} with the id {entry[0]}"
