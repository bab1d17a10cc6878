"""The receipt: what every variant of a bundle lost on a held-out text, in its file ``receipt.json``.

A file that the manifest lists like any other, so that a reader that knows no receipts opens the bundle all the same.
``docs/bundle-format.md`` defines the fields; those that it does not are passed over. Bytes in, values out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import isfinite
from typing import Annotated

import msgspec

from edgepack.bundle.bounds import Count
from edgepack.bundle.files import Bundle
from edgepack.bundle.manifest import File, Sha256
from edgepack.errors import BundleDamagedError, BundleTooNewError

FILE = "receipt.json"
VERSION = 1
MAX_SIZE = 1 << 20

BUILT_IN = "built-in"
"""What the text that edgepack carries is called."""

WHOLE = 8192
"""Tokens that a build measures which is asked for a receipt; fewer were measured because nobody asked."""

REFERENCE = "reference"
"""What ``Measured.by`` says of the decoder in float32 over the payload's own weights."""

_REBUILD = "Build the bundle again."


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """The text: its name, the sha256 of its UTF-8 bytes, and how many tokens of it were compared, in windows of
    ``window`` tokens that each begin anew."""

    name: str
    sha256: Sha256
    tokens: Count
    window: Count


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a payload lost, against the source in float32; ``..._error`` are standard errors.

    ``kl``: mean over the tokens of KL(source || payload) of the next-token distributions, in nats, ``kl_p99`` the value
    that a hundredth of them exceeds. ``top1``: the share with the same likeliest token. ``ratio``: the payload's
    ``perplexity`` over the source's, whose error is that of the difference on the same tokens.
    """

    kl: float
    kl_error: float
    kl_p99: float
    top1: float
    top1_error: float
    perplexity: float
    ratio: float
    ratio_error: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one variant, and of the plain scheme in the same bytes, null where it is that scheme itself.

    Of a variant whose matrices have forms of their own that is the largest scheme of no more bytes, or the smallest:
    ``plain_scheme``, with ``plain_bits`` a weight, scales and norms included. Left out where it is the variant's own.
    ``by`` says what computed both: the engine's package and its version, or "reference" for the decoder in float32 over
    the payload's own weights.
    """

    variant: str
    by: str
    lost: Figures
    plain: Figures | None = None
    plain_scheme: str | msgspec.UnsetType = msgspec.UNSET
    plain_bits: float | msgspec.UnsetType = msgspec.UNSET


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. ``source`` is ``source_digest`` of what was compared with, ``perplexity`` what that makes of the
    text."""

    version: Count
    text: HeldOut
    source: Sha256
    perplexity: float
    perplexity_error: float
    variants: Annotated[list[Measured], msgspec.Meta(min_length=1, max_length=256)]

    def of(self, variant: str) -> Measured | None:
        """Return what was measured of a variant, None where nothing was."""
        return next((each for each in self.variants if each.variant == variant), None)


class _Head(msgspec.Struct):
    version: Count


def source_digest(files: Sequence[File]) -> str:
    """Return the sha256 of the digests of a source's files, a line each, in the manifest's order."""
    return hashlib.sha256("".join(f"{file.sha256}\n" for file in files).encode()).hexdigest()


def encode(receipt: Receipt) -> bytes:
    """Return the file's bytes: JSON, UTF-8, two-space indent, a final newline."""
    return msgspec.json.format(msgspec.json.encode(receipt), indent=2) + b"\n"


def read(bundle: Bundle) -> Receipt | None:
    """Return a bundle's receipt, with the variants that are here; None where it has none, or none of those.

    Raises ``BundleTooNewError`` for a newer version, and ``BundleDamagedError`` for one that is no receipt, is of
    another source or of variants that the bundle does not have, or differs from its digest.
    """
    entry = next((file for file in bundle.manifest.files if file.path == FILE), None)
    if entry is None:
        return None
    if entry.size > MAX_SIZE:
        raise _damaged(f"has {entry.size} bytes, more than any receipt")
    data = bundle.read(FILE)
    try:
        version = msgspec.json.decode(data, type=_Head).version
        if version > VERSION:
            raise BundleTooNewError(
                f"{FILE} is of version {version}; this edgepack reads version {VERSION}.",
                hint="Upgrade with: pip install -U edgepack",
            )
        receipt = msgspec.json.decode(data, type=Receipt)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _damaged(f"is no receipt: {error}") from None
    _check(receipt, bundle)
    here = [each for each in receipt.variants if each.variant not in bundle.absent]
    return msgspec.structs.replace(receipt, variants=here) if here else None


def _check(receipt: Receipt, bundle: Bundle) -> None:
    if receipt.source != source_digest(bundle.manifest.source.files):
        raise _damaged("was measured against another source than the bundle's")
    known = {*bundle.absent, *(variant.id for variant in bundle.manifest.variants)}
    told = [each.variant for each in receipt.variants]
    if stranger := next((name for name in told if name not in known), None):
        raise _damaged(f"speaks of a variant {stranger!r}, which the bundle does not have")
    if len(set(told)) < len(told):
        raise _damaged("speaks of one variant twice")
    figures = [one for each in receipt.variants for one in (each.lost, each.plain) if one]
    numbers = [
        receipt.perplexity,
        receipt.perplexity_error,
        *(n for one in figures for n in msgspec.structs.astuple(one)),
    ]
    if not all(isfinite(number) for number in numbers):
        raise _damaged("has a figure that is no number")


def _damaged(what: str) -> BundleDamagedError:
    return BundleDamagedError(f"{FILE} {what}.", hint=_REBUILD)
