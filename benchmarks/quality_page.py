"""The tables that ``quality.py`` writes into docs/quality.md, between two marks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import hypot
from pathlib import Path

import msgspec

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"

IN_BYTES = "in the bytes of "
"""How the scheme begins whose bits were chosen in another's bytes."""

RIVALS: Mapping[str, str] = {"llama.cpp": "gguf", "genai": "onnx", "mlx-lm": "mlx"}
"""The targets whose format other converters write."""

EQUAL = 0.01
"""How far apart bytes are that count as equal, as a part of the peer's."""


class Result(msgspec.Struct, frozen=True, tag=True):
    """What a scheme of a target costs a model, over ``tokens`` tokens.

    ``bytes`` of the weights' files, ``bits`` a weight; ``kl`` from the source in nats with its standard error
    ``kl_error``, ``top1`` the fraction of tokens after which the likeliest is the source's. ``engine_kl`` and
    ``checked_kl``: of the first tokens, by the engine and by the reference with the payload's weights, where the
    figures are the reference's.
    """

    model: str
    target: str
    scheme: str
    tokens: int
    bytes: int
    bits: float
    kl: float
    kl_error: float
    top1: float
    perplexity: float
    reference_perplexity: float
    engine_kl: float | None = None
    checked_kl: float | None = None


class Missing(msgspec.Struct, frozen=True, tag=True):
    """A scheme of a target, or of another converter, that made no payload of a model, and why."""

    model: str
    target: str
    scheme: str
    why: str


Outcome = Result | Missing


def beside(peer: Result, found: Sequence[Outcome]) -> list[Result]:
    """Return edgepack's payloads in a peer's format of as many bytes, or fewer."""
    ours = [one for one in found if isinstance(one, Result) and one.target == RIVALS[peer.target]]
    return [one for one in ours if one.bytes <= (1 + EQUAL) * peer.bytes]


def tables(results: Sequence[Outcome]) -> str:
    """Return a table for each model, and one of equal bytes, in Markdown."""
    return "\n".join(_table([each for each in results if each.model == name]) for name in _names(results))


def write(page: Path, results: Sequence[Outcome]) -> None:
    """Replace the tables of a page. Raises ``ValueError`` where it has no marks for them."""
    text = page.read_text("utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{tables(results)}{END}{after}", "utf-8")


def _names(results: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(result.model for result in results))


def _table(outcomes: Sequence[Outcome]) -> str:
    order = list(dict.fromkeys(outcome.target for outcome in outcomes))
    outcomes = sorted(outcomes, key=lambda outcome: order.index(outcome.target))
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    one = results[0]
    lines = [
        f"### {one.model}",
        "",
        f"{one.tokens} tokens; the source's perplexity is {one.reference_perplexity:.2f}.",
        "",
        "| payload | MB | bits | KL | top-1 | perplexity |",
        "|---|---:|---:|---:|---:|---:|",
        *map(_row, results),
        "",
    ]
    missing = [outcome for outcome in outcomes if isinstance(outcome, Missing)]
    for why in dict.fromkeys(outcome.why for outcome in missing):
        names = [f"{outcome.target} {outcome.scheme}" for outcome in missing if outcome.why == why]
        lines += [f"Without a row: {', '.join(names)}. {why}", ""]
    if checked := [_check(result) for result in results if result.engine_kl is not None]:
        lines += ["By mlx itself, on the first tokens: " + "; ".join(checked) + ".", ""]
    if pairs := [pair for peer in results if peer.target in RIVALS for pair in _pair(peer, results)]:
        lines += ["In a peer's bytes or fewer, edgepack's payload of least KL:", "", *_HEAD, *pairs, ""]
    return "\n".join(lines)


_HEAD = ("| peer | MB | KL | edgepack | MB | KL | less by, errors |", "|---|---:|---:|---|---:|---:|---:|")


def _pair(peer: Result, results: Sequence[Result]) -> Iterator[str]:
    """Yield the line of a peer and of our best in its bytes, with the difference in standard errors of both."""
    if ours := beside(peer, results):
        best = min(ours, key=lambda one: one.kl)
        errors = (peer.kl - best.kl) / hypot(peer.kl_error, best.kl_error)
        columns = (f"{one.target} {one.scheme} | {_size(one)} | {one.kl:.4f}" for one in (peer, best))
        yield f"| {' | '.join(columns)} | {errors:.1f} |"


def _size(result: Result) -> str:
    """Return megabytes to three digits or more."""
    return f"{result.bytes / 1e6:.{1 if result.bytes >= 1e7 else 2 if result.bytes >= 1e6 else 3}f}"


def _row(result: Result) -> str:
    kl = f"{result.kl:.4f} ± {result.kl_error:.4f}"
    name = f"{result.target} {result.scheme}"
    return f"| {name} | {_size(result)} | {result.bits} | {kl} | {result.top1:.1%} | {result.perplexity:.2f} |"


def _check(result: Result) -> str:
    return f"{result.scheme} {result.engine_kl:.4f}, the reference {result.checked_kl:.4f}"
