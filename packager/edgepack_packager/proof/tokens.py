"""The token gate: the payload's own tokenizer gives the ids that the bundle's gives, for every probe and golden.

Only a payload with a vocabulary in the engine's format has one. It is asked for the ids of each text, in a child
process, and of the text of every single token, so that no two are exchanged. What the engine is known to do
otherwise, by a rule over the vocabulary, is left out of the gate, and stands in the evidence with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack import runtime
from edgepack.bundle.manifest import Gate
from edgepack.errors import ProofError
from edgepack.prefix import common_length
from edgepack.runtime import Tokenizing
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.proof import tokenizing
from edgepack_packager.proof.gates import gate
from edgepack_packager.text.files import TOKENIZER
from edgepack_packager.text.golden import Vectors
from edgepack_packager.text.side import Text

PART = 128  # words that are asked at once


@dataclass(frozen=True, slots=True)
class Case:
    """A text, whether names of special tokens are parsed in it, and its ids by the bundle's tokenizer."""

    text: str
    special: bool
    ids: Sequence[int]


Other = tuple[Case, list[int]]
"""A case and the other ids that the engine gives to its text."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The gate, and for the evidence how many texts were compared, and by reason those that were left out."""

    gate: Gate
    figures: dict[str, object]


def prove(name: str, variant: Path, text: Text, vectors: Vectors, tokenizer: Tokenizer) -> Tokens | None:
    """Compare the vocabulary that a variant for the runtime ``name`` carries with the bundle's; None where it has none.

    Raises ``ProofError`` at the first text that differs, ``EngineError`` where the engine fails.
    """
    engine = runtime.find(name)
    if not isinstance(engine, Tokenizing):
        return None
    vocabulary, alone = list(words(tokenizer)), cases(vectors, tokenizer)
    parts = [vocabulary[start : start + PART] for start in range(0, len(vocabulary), PART)]
    together = [_together(part, tokenizer) for part in parts]

    def ask(wanted: Sequence[Case]) -> list[list[int]]:
        return tokenizing.ids(name, variant, [(case.text, case.special) for case in wanted])

    def explained(texts: Sequence[str]) -> list[str | None]:
        return engine.known_differences(variant, text.tokenizer, texts, special=False)

    found = ask([*alone, *together])
    others = [(case, ids) for case, ids in zip(alone, found[: len(alone)], strict=True) if ids != list(case.ids)]
    apart = _apart(parts, together, found[len(alone) :], tokenizer, ask, explained)
    others += [other for part in apart for other in part]
    return judge(variant, len(alone) + len(vocabulary), others, engine, text.tokenizer)


def cases(vectors: Vectors, tokenizer: Tokenizer) -> list[Case]:
    """Return every text of a bundle's vectors whose ids are made of the text alone: an engine knows nothing of who says
    what in a prompt."""
    probes = [Case(probe.text, probe.special, probe.ids) for probe in vectors.probes]
    goldens = vectors.chat.goldens if vectors.chat else []
    return probes + [
        Case(golden.text, True, golden.ids)
        for golden in goldens
        if golden.refusal is None and golden.ids == tokenizer.encode(golden.text, bos=False, special=True)
    ]


def words(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the text of every token that is one."""
    for token in range(tokenizer.n_tokens):
        try:
            text = tokenizer.token_bytes(token).decode()
        except UnicodeDecodeError:  # a part of a character
            continue
        if text:
            yield text


def differing(
    parts: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    ask: Callable[[Sequence[Case]], list[list[int]]],
    explained: Callable[[Sequence[str]], Sequence[str | None]],
) -> list[list[Other]]:
    """Return for each part, a list of words, which of them get other ids than the tokenizer gives.

    A part is asked as one text, a word a line, because an engine may take milliseconds for any text. One that differs
    is asked again in pieces, down to the word: first each word alone that a rule explains, and the others together,
    then by halves. Where only their neighbourhood differs, it is the whole part.
    """
    wanted = [_together(part, tokenizer) for part in parts]
    return _apart(parts, wanted, ask(wanted), tokenizer, ask, explained)


def _apart(
    parts: Sequence[Sequence[str]],
    wanted: Sequence[Case],
    found: Sequence[list[int]],
    tokenizer: Tokenizer,
    ask: Callable[[Sequence[Case]], list[list[int]]],
    explained: Callable[[Sequence[str]], Sequence[str | None]],
) -> list[list[Other]]:
    """As ``differing``, of parts that were asked as the texts ``wanted``, whose ids were ``found``."""
    differ = [ids != list(case.ids) for case, ids in zip(wanted, found, strict=True)]
    again = [part if differs and len(part) > 1 else [] for part, differs in zip(parts, differ, strict=True)]
    reasons = iter(explained([word for part in again for word in part]) if any(again) else ())
    pieces = [_pieces([(word, next(reasons)) for word in part]) for part in again]
    smaller = [piece for part in pieces for piece in part]
    below = iter(differing(smaller, tokenizer, ask, explained) if smaller else ())
    others: list[list[Other]] = []
    for case, ids, differs, part in zip(wanted, found, differ, pieces, strict=True):
        inside = [other for _ in part for other in next(below)]
        others.append(inside or ([(case, ids)] if differs else []))
    return others


def _pieces(part: Sequence[tuple[str, str | None]]) -> list[list[str]]:
    """Return the words that have a reason apart, and the others together; where none has one, two halves."""
    known, rest = [[word] for word, reason in part if reason], [word for word, reason in part if not reason]
    pieces = [*known, rest] if known else [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
    return [piece for piece in pieces if piece]


def _together(part: Sequence[str], tokenizer: Tokenizer) -> Case:
    text = "\n".join(part)
    return Case(text, False, tokenizer.encode(text, bos=False))


def judge(
    variant: Path, compared: int, others: Sequence[Other], engine: Tokenizing, tokenizer: Mapping[str, object]
) -> Tokens:
    """Return the gate over ``compared`` texts, of which others got other ids.

    Raises ``ProofError`` for the first of them that no rule of the engine explains.
    """
    left_out: dict[str, list[str]] = {}
    for special in (False, True):
        asked = [(case, ids) for case, ids in others if case.special is special]
        reasons = engine.known_differences(variant, tokenizer, [case.text for case, _ in asked], special=special)
        for (case, ids), reason in zip(asked, reasons, strict=True):
            if reason is None:
                raise ProofError(
                    f"{variant.name} failed the proof: tokens.equal is less than 1. {_difference(case, ids)}",
                    hint="Build the other targets, which go by tokenizer.json itself, and report this.",
                )
            left_out.setdefault(reason, []).append(case.text)
    figures: dict[str, object] = {"compared": compared - len(others), "left_out": left_out}
    return Tokens(gate("tokens.equal", 1, ">=", 1), figures)


def _difference(case: Case, ids: Sequence[int]) -> str:
    same = common_length(ids, case.ids)
    theirs, ours = ([*tokens[same : same + 4]] for tokens in (ids, case.ids))
    return f"Its vocabulary gives {theirs} where {TOKENIZER} gives {ours}, after {same} tokens of {case.text!r}."
