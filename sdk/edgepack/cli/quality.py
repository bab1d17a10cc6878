"""``edgepack quality``: what the variants of bundles lost on a held-out text, as their receipts say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepack.cli import receipts
from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack.cli.screen import as_json, err, next_step, out, say, styled

if TYPE_CHECKING:
    from edgepack.bundle.files import Bundle
    from edgepack.bundle.receipt import Receipt
    from edgepack.measuring.scatter import Point

Bundles = Annotated[
    list[Path],
    typer.Argument(
        help="The bundles' folders; several of one source share the picture.", metavar="BUNDLE...", show_default=False
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FILE.svg", help="Draw loss against bytes into this file too.", show_default=False
    ),
]


@examples("edgepack quality demo.edgepack", "edgepack quality demo.edgepack -o quality.svg")
def quality(bundles: Bundles, out: Picture = None, json: AsJson = False) -> None:
    """Show what every variant lost on a held-out text, and draw it against its bytes."""
    from edgepack.bundle.files import open_bundle
    from edgepack.bundle.writing import write_atomically
    from edgepack.cli import plot
    from edgepack.errors import visible
    from edgepack.measuring import scatter

    plot.check(out, "--out")
    found = [(opened, _receipt(opened)) for opened in (open_bundle(path, verify="sizes") for path in bundles)]
    _check_comparable(found)
    first, receipt = found[0]
    if out:
        title = (
            f"{visible(first.manifest.name)} on {receipt.text.tokens} held-out tokens ({visible(receipt.text.name)})"
        )
        points = [point for one in found for point in _points(*one, named=len(found) > 1)]
        write_atomically(out, scatter.draw(title, "size, MB", "KL divergence from the source, nats", points).encode())
        say(err(), f"Drawn: {out}")
    if json:
        as_json({"bundles": [as_mapping(*one) for one in found]})
        return
    _show(found)
    if not out:
        next_step("edgepack", "quality", *map(str, bundles), "-o", "quality.svg")


def as_mapping(bundle: Bundle, receipt: Receipt) -> dict[str, Any]:
    """Return a receipt as JSON values, with the bundle's id and each variant's bytes."""
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(receipt)
    sizes = _sizes(bundle)
    for values in plain["variants"]:
        values["bytes"] = sizes[values["variant"]]
    return {"id": bundle.id, "name": bundle.manifest.name} | plain


def _receipt(bundle: Bundle) -> Receipt:
    from edgepack.bundle.receipt import read
    from edgepack.errors import BundleError

    receipt = read(bundle)
    if receipt is None:
        name = bundle.manifest.source.repository or "MODEL"
        again = f"Build it again with: edgepack build {name} --receipt built-in --force"
        exact = "It is in f32, and what it loses is in its proof: edgepack inspect shows it."
        raise BundleError(
            f"{bundle.path} has no receipt: nothing of it was measured on a held-out text.",
            hint=exact if bundle.manifest.decoder.exported else again,
        )
    return receipt


def _check_comparable(found: Sequence[tuple[Bundle, Receipt]]) -> None:
    """Raise ``UsageError`` for receipts of several sources, texts, or numbers of tokens."""
    from edgepack.errors import UsageError

    first, known = found[0]
    for bundle, receipt in found[1:]:
        for what, ours, theirs in (
            ("source", known.source, receipt.source),
            ("text", known.text.sha256, receipt.text.sha256),
            ("number of tokens", known.text.tokens, receipt.text.tokens),
        ):
            if ours != theirs:
                raise UsageError(
                    f"{bundle.path} was measured on another {what} than {first.path}: {_short(theirs)} and "
                    f"{_short(ours)}.",
                    hint="Compare bundles of one source, built with the same --receipt.",
                )


def _short(value: str | int) -> str:
    return str(value)[:12]


def _sizes(bundle: Bundle) -> dict[str, int]:
    return {variant.id: sum(file.size for file in variant.files) for variant in bundle.manifest.variants}


def _points(bundle: Bundle, receipt: Receipt, named: bool) -> Iterator[Point]:
    """Yield what is drawn of a bundle; ``named`` has its folder before each label."""
    from edgepack.errors import visible
    from edgepack.measuring.scatter import Point

    sizes, targets = _sizes(bundle), {variant.id: variant.target for variant in bundle.manifest.variants}
    bits = {variant.id: variant.quantization.bits for variant in bundle.manifest.variants}
    for each in receipt.variants:
        at, group = sizes[each.variant] / 1e6, targets[each.variant]
        before = f"{visible(bundle.path.name.removesuffix('.edgepack'))}: " if named else ""
        yield Point(before + each.variant, group, at, each.lost.kl, each.lost.kl_error)
        if each.plain:
            scheme = f" {visible(each.plain_scheme)}" if each.plain_scheme else ""
            yield Point(
                f"{before}{each.variant.removesuffix('-cal')}, plain{scheme}",
                group,
                at * each.plain_bits / bits[each.variant] if each.plain_bits else at,
                each.plain.kl,
                each.plain.kl_error,
                hollow=True,
            )


def _show(found: Sequence[tuple[Bundle, Receipt]]) -> None:
    console = out()
    for number, (bundle, receipt) in enumerate(found):
        if number:
            console.print()
        say(console, styled("bold", f"{bundle.manifest.name} {bundle.manifest.version}"))
        receipts.show(receipt)
