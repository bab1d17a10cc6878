"""How a receipt is shown: a table of figures, and bars where a person looks at a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgepack.cli import losses
from edgepack.cli.screen import out, say, styled, table
from edgepack.errors import brief

if TYPE_CHECKING:
    from rich.console import Console

    from edgepack.bundle.receipt import Figures, Receipt

    Row = tuple[str, Figures]
    """What a payload is called, and its figures."""

_EIGHTHS = " ▏▎▍▌▋▊▉"


def rows_of(receipt: Receipt) -> Iterator[Row]:
    """Yield a row for each variant, and after one that is calibrated or has forms of its own the plain scheme in its
    bytes."""
    for each in receipt.variants:
        yield each.variant, each.lost
        if each.plain:
            other = f" {brief(each.plain_scheme)}" if each.plain_scheme else ""
            bits = f", {each.plain_bits:g} bits" if each.plain_bits else ""
            yield f"  plain{other}{bits}", each.plain


def show(receipt: Receipt) -> None:
    """Print a receipt: what it was measured on, its figures, and in a terminal bars of the KL."""
    from edgepack.bundle.receipt import BUILT_IN, REFERENCE, WHOLE

    console, rows = out(), list(rows_of(receipt))
    text = receipt.text
    shown = table("variant", "KL (nats)", "p99", "top-1", "perplexity", right=("p99",))
    for name, found in rows:
        kl, top1, ratio = losses.cells(
            (found.kl, found.kl_error), (found.top1, found.top1_error), (found.ratio, found.ratio_error)
        )
        shown.add_row(name, kl, f"{found.kl_p99:.2g}", top1, ratio)
    console.print(shown)
    source = losses.shown((receipt.perplexity, receipt.perplexity_error))
    held = f"{text.tokens} tokens held out ({brief(text.name)}, {text.sha256[:12]})"
    say(console, styled("dim", f"Lost on {held}, where the source's perplexity is {source}."))
    by = ", ".join(each.variant for each in receipt.variants if each.by == REFERENCE)
    if by:
        say(console, styled("dim", f"By the reference over the payload's own weights: {by}."))
    if remark := losses.remark(found.ratio for _, found in rows):
        say(console, styled("dim", remark))
    if text.tokens < WHOLE and text.name == BUILT_IN:
        say(
            console,
            styled("dim", f"A build with --receipt built-in measures {WHOLE} tokens, where the context holds."),
        )
    if console.is_terminal:
        console.print()
        for line in bars(console, rows):
            console.print(line, soft_wrap=True)


def bars(console: Console, rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each row: its name, a bar as long as its KL is large, and the figure."""
    widest = max(len(name) for name, _ in rows)
    most = max(found.kl for _, found in rows)
    room = max(4, min(40, console.width - widest - 12))
    plain = not _draws(console)
    for name, found in rows:
        share = max(0.0, found.kl / most) if most > 0 else 0.0
        yield f"{name:<{widest}}  {_bar(share * room, plain)} {found.kl:.2g}"


def _bar(length: float, plain: bool) -> str:
    if plain:
        return "#" * max(1, round(length))
    whole, part = divmod(max(1, round(8 * length)), 8)
    return "█" * whole + _EIGHTHS[part].strip()


def _draws(console: Console) -> bool:
    try:
        "█▏▎▍▌▋▊▉".encode(console.encoding)
    except UnicodeEncodeError:
        return False
    return True
