"""The tables that ``quality.py`` writes into docs/quality.md, between two marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


class Result(msgspec.Struct, frozen=True):
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


def tables(results: Sequence[Result]) -> str:
    """Return a table for each model, in Markdown."""
    return "\n".join(_table([each for each in results if each.model == name]) for name in _names(results))


def write(page: Path, results: Sequence[Result]) -> None:
    """Replace the tables of a page. Raises ``ValueError`` where it has no marks for them."""
    text = page.read_text("utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{tables(results)}{END}{after}", "utf-8")


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.model for result in results))


def _table(results: Sequence[Result]) -> str:
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
    checked = [_check(result) for result in results if result.engine_kl is not None]
    return "\n".join(
        [*lines, *(["By mlx itself, on the first tokens: " + "; ".join(checked) + ".", ""] * bool(checked))]
    )


def _row(result: Result) -> str:
    kl = f"{result.kl:.4f} ± {result.kl_error:.4f}"
    name, size = f"{result.target} {result.scheme}", result.bytes / 1e6
    return f"| {name} | {size:.1f} | {result.bits} | {kl} | {result.top1:.1%} | {result.perplexity:.2f} |"


def _check(result: Result) -> str:
    return f"{result.scheme} {result.engine_kl:.4f}, the reference {result.checked_kl:.4f}"
