"""Which element type each tensor takes under a scheme: llama.cpp's own rules.

It knows shapes and names, no values and no bytes. The source of every rule is ``llama_tensor_get_type`` in llama.cpp's
src/llama-quant.cpp, for the iq types with an importance matrix where a model is calibrated; the tests compare the
result with llama.cpp's own quantiser. Of the architectures, only those that fuse tensors, and those that know a model
of 70 B, have rules of their own there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Fallback
from edgepack_packager.targets import NO_FORMS, Forms
from edgepack_packager.targets.gguf.architecture import Architecture, choose
from edgepack_packager.targets.gguf.tensors import factor

Kind = Literal[
    "f32", "f16", "bf16",
    "q1_0", "q2_0", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0",
    "q2_K", "q3_K", "q4_K", "q5_K", "q6_K",
    "iq4_nl", "iq4_xs", "iq3_s",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Format:
    """How ggml stores an element type: its number in a file, elements per block, and bytes per block."""

    number: int
    block: int
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row; ``columns`` must be a multiple of ``block``."""
        return columns // self.block * self.block_bytes


# ggml.h (enum ggml_type) and ggml-common.h (the block structures)
FORMATS: dict[Kind, Format] = {
    "f32": Format(0, 1, 4),
    "f16": Format(1, 1, 2),
    "bf16": Format(30, 1, 2),
    "q4_0": Format(2, 32, 18),
    "q4_1": Format(3, 32, 20),
    "q5_0": Format(6, 32, 22),
    "q5_1": Format(7, 32, 24),
    "q8_0": Format(8, 32, 34),
    "q1_0": Format(41, 128, 18),
    "q2_0": Format(42, 64, 18),
    "iq4_nl": Format(20, 32, 18),
    "iq4_xs": Format(23, 256, 136),
    "iq3_s": Format(21, 256, 110),
    "q2_K": Format(10, 256, 84),
    "q3_K": Format(11, 256, 110),
    "q4_K": Format(12, 256, 144),
    "q5_K": Format(13, 256, 176),
    "q6_K": Format(14, 256, 210),
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """A mixture: llama.cpp's number of it (``llama_ftype``), the type that most tensors take and its nominal bits."""

    file_type: int
    kind: Kind
    bits: int


SCHEMES: dict[str, Scheme] = {
    "f32": Scheme(0, "f32", 32),
    "f16": Scheme(1, "f16", 16),
    "bf16": Scheme(32, "bf16", 16),
    "q8_0": Scheme(7, "q8_0", 8),
    "q4_0": Scheme(2, "q4_0", 4),
    "q4_1": Scheme(3, "q4_1", 4),
    "q2_k": Scheme(10, "q2_K", 2),
    "q3_k_m": Scheme(12, "q3_K", 3),
    "q4_k_m": Scheme(15, "q4_K", 4),
    "q5_k_m": Scheme(17, "q5_K", 5),
    "q6_k": Scheme(18, "q6_K", 6),
    "iq3_s": Scheme(26, "iq3_s", 3),
    "iq4_xs": Scheme(30, "iq4_xs", 4),
    "iq4_nl": Scheme(25, "iq4_nl", 4),
    "q1_0": Scheme(40, "q1_0", 1),
    "q2_0": Scheme(41, "q2_0", 2),
}

NEEDS_CALIBRATION = frozenset({"q2_k", "iq3_s"})
"""Schemes that make nonsense of any model unless a text chose their scales."""

K_QUANTS: frozenset[Kind] = frozenset({"q2_K", "q3_K", "q4_K", "q5_K", "q6_K"})

GRIDS: dict[Kind, str] = {"q1_0": "-1 and 1", "q2_0": "-1, 0, 1 and 2"}
"""Types for weights that lie on a grid of so few levels, and what those are times their scale."""

# What a row takes that its type's block does not divide; after that, f16, which divides every row. llama.cpp names no
# other type for q1_0.
_NARROWER: dict[Kind, Kind] = {
    "q1_0": "q4_0",
    "q2_0": "q4_0",
    "q2_K": "q4_0",
    "q3_K": "q4_0",
    "q4_K": "q5_0",
    "q5_K": "q5_1",
    "q6_K": "q8_0",
    "iq3_s": "iq4_nl",
    "iq4_xs": "iq4_nl",
}


# What a matrix of its own form is tried in: each costs a measurement.
_OFFERED: tuple[Kind, ...] = (
    "q3_K",
    "iq4_xs",
    "iq4_nl",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "q4_K",
    "q5_K",
    "q6_K",
)

# What a mixture gives the projection of the attention's result.
_OUTPUT: dict[str, Kind] = {"q2_k": "q3_K", "q3_k_m": "q4_K"}


@dataclass(frozen=True, slots=True)
class Choice:
    """A canonical tensor, its shape, the type that it takes, and the type that it should have taken."""

    tensor: str
    shape: tuple[int, ...]
    kind: Kind
    asked: Kind

    @property
    def fallback(self) -> Fallback | None:
        """The manifest's record where the tensor could not take its type."""
        if self.kind == self.asked:
            return None
        block = FORMATS[self.asked].block
        reason = f"rows of {self.shape[-1]} are not a multiple of {self.asked}'s block of {block}"
        return Fallback(tensor=self.tensor, scheme=self.kind, reason=reason)


def choices(decoder: Decoder, scheme: str, forms: Forms = NO_FORMS, calibrated: bool = False) -> Iterator[Choice]:
    """Yield the type of every canonical tensor, in model order: its own of ``forms``, else that of the scheme's rule.

    Raises ``UnsupportedModelError`` for a decoder that no architecture computes.
    """
    architecture = choose(decoder)
    for name, shape in decoder.tensors():
        own = cast("Kind | None", forms.get(name))
        asked = own or _asked(decoder, architecture, scheme, calibrated, name, shape)
        yield Choice(name, shape, _fitting(asked, shape[-1]), asked)


def sizes(decoder: Decoder, rows: int, columns: int) -> dict[str, int]:
    """Return the bytes of a matrix in each type that it may be given: of ``_OFFERED`` those whose blocks fill its rows,
    and the half precision that the decoder's activations fit in."""
    offered = [*_OFFERED, _half(decoder)]
    fitting = {kind: of for kind, of in FORMATS.items() if kind in offered and columns % of.block == 0}
    return {kind: rows * of.row_bytes(columns) for kind, of in fitting.items()}


def _half(decoder: Decoder) -> Kind:
    return "bf16" if decoder.wide else "f16"


def _fitting(kind: Kind, columns: int) -> Kind:
    while columns % FORMATS[kind].block:
        kind = _NARROWER.get(kind, "f16")
    return kind


def _asked(
    decoder: Decoder, architecture: Architecture, scheme: str, calibrated: bool, name: str, shape: tuple[int, ...]
) -> Kind:
    kind = SCHEMES[scheme].kind
    if len(shape) == 1:
        return "f32"
    if FORMATS[kind].block == 1:
        # What the file multiplies, 16 bits would round a second time.
        again = name.endswith(("embedding", "inputs.gate")) and factor(decoder, name) != 1
        return "f32" if again else kind
    if name == "inputs.projection":
        return _half(decoder)  # llama.cpp leaves it as it is: in a converter's file, in 16 bits
    looked_up = name in ("embedding", "inputs.embedding")
    if name == "head" or (looked_up and decoder.tied):
        return "q8_0" if kind == "q8_0" else "q6_K"
    if looked_up:
        # which is hardly ever on the grid of the other matrices; llama.cpp knows that of q2_0 alone
        return "q4_K" if kind in GRIDS else kind
    layer = int(name.split(".")[1])
    # A tensor that holds q, k and v is as sensitive as v is.
    if name.endswith(("attention.q", "attention.k", "attention.v") if architecture.fused else "attention.v"):
        return _value(decoder, architecture, scheme, layer)
    if name.endswith("mlp.down"):
        return _down(decoder.n_layers, scheme, calibrated, layer)
    if name.endswith("attention.o"):
        return _OUTPUT.get(scheme, kind)
    return kind


def _value(decoder: Decoder, architecture: Architecture, scheme: str, layer: int) -> Kind:
    """It counts the layers that have one."""
    kind = SCHEMES[scheme].kind
    keeping = [*decoder.keeping]
    place, first = keeping.index(layer), decoder.attentions[0]
    shared = first.n_heads // first.n_kv_heads >= 4
    match scheme:
        case "q2_k":
            kind = "q4_K" if shared else "q3_K"
        case "q3_k_m":
            kind = "q5_K" if place < 2 else "q4_K"
        case "iq3_s" if shared:
            kind = "q4_K"
        case "iq4_nl" | "iq4_xs" if shared:
            kind = "q5_K"
        case "q4_k_m" | "q5_k_m" if _more_bits(place, len(keeping)):
            kind = "q6_K"
    return "q5_K" if kind in ("q3_K", "q4_K") and _is_70b(decoder, architecture) else kind


def _down(n_layers: int, scheme: str, calibrated: bool, layer: int) -> Kind:
    match scheme:
        case "q2_k":
            return "q3_K"
        case "q3_k_m":
            return "q5_K" if layer < n_layers // 16 else "q4_K"
        case "iq4_nl" | "iq4_xs" if layer < n_layers // 8 and not calibrated:
            return "q5_K"
        case "q4_k_m" | "q5_k_m" if _more_bits(layer, n_layers):
            return "q6_K"
    return SCHEMES[scheme].kind


def _is_70b(decoder: Decoder, architecture: Architecture) -> bool:
    """Whether llama.cpp takes a model for one of 70 B, whose value projections are small: it counts the layers."""
    grouped = decoder.attentions[0].shares
    return decoder.n_layers == 80 and (architecture.name == "qwen2" or (architecture.name == "llama" and grouped))


def _more_bits(layer: int, n_layers: int) -> bool:
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
