"""Where every byte of an MLX variant lies: a pure function of the decoder, the scheme and the source's element type.

A weight file is safetensors (huggingface/safetensors, README "Format"): 8 bytes with the header's length,
little-endian; the header, JSON padded with spaces to a multiple of 8; the tensors without a hole, wider elements first
and then by name, so that each is aligned. It knows nothing of values: sizes can be told from a config alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Fallback
from edgepack_packager.targets import NO_FORMS, Forms, Written
from edgepack_packager.targets.mixture import next_sensitive, sensitive
from edgepack_packager.targets.mlx.forms import FORMS, Affine, filling
from edgepack_packager.targets.mlx.model_types import choose
from edgepack_packager.targets.mlx.names import dimensions, place, stored_shapes
from edgepack_packager.targets.mlx.quantize import Float

SHARD_BYTES = 5 << 30
"""mlx-lm's own limit of the tensors in one file."""

MIXED = "4bit_mixed"
WIDE_BITS = 6
"""Bits of what is sensitive in the mixture."""

QUANTIZED: Mapping[str, int] = {MIXED: 4, **{name: form.bits for name, form in FORMS.items()}}
"""Bits of the schemes that quantise."""

FLOATS: Mapping[str, Float] = {"f32": "f32", "f16": "f16", "bf16": "bf16"}

_ITEM_BYTES = {"U32": 4, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of a file: its dtype as safetensors spells it, its shape, and its first byte in the file.

    ``stated`` is the shape that the header says, where it is another one of as many elements.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    stated: tuple[int, ...] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; of one element where it is a vector."""
        return math.prod(self.shape[1:]) * _ITEM_BYTES[self.dtype]

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """All tensors by MLX's name, each file's name, first bytes and size in bytes, and what could not be quantised."""

    slots: Mapping[str, Slot]
    heads: Mapping[str, bytes]
    sizes: Mapping[str, int]
    fallbacks: tuple[Fallback, ...]

    @property
    def written(self) -> Written:
        """What a writer of this layout reports; MLX keeps the tensors as they are in the files."""
        return Written(sum(self.sizes.values()), self.tensor_bytes, self.tensor_bytes, self.fallbacks)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(slot.size for slot in self.slots.values())


def float_type(decoder: Decoder, scheme: str, dtype: str) -> Float:
    """Return the element type of all that a variant does not quantise: norms, biases, scales, and so the activations.

    A float scheme names it. A quantised one keeps the source's type, with two exceptions. 8 bits take f16 for bf16,
    whose 8 significant bits are no more than those of the levels that a scale multiplies; so does "4bit_g32", which is
    there for grids whose scales are to be kept. And a ``wide`` decoder takes
    bf16 for f16, whose range its activations exceed; see ``level_type`` for what that costs its 8-bit scales.
    """
    if scheme in FLOATS:
        return FLOATS[scheme]
    if dtype == "f32":
        return "f32"
    if decoder.wide:
        return "bf16"
    return "f16" if scheme == "4bit_g32" or QUANTIZED[scheme] == 8 else FLOATS[dtype]


def level_type(decoder: Decoder, scheme: str, dtype: str) -> Float | None:
    """Return the type that scales are rounded to before levels are chosen; None: after it, as mlx_lm.convert does.

    With bf16 scales at 8 bits, levels that are chosen first cost 1.6 times the KL of float32 scales, levels that are
    chosen last nothing: 3.1e-3 and 1.9e-3 nats against 2.0e-3 on a random Gemma 3 of 6 layers. At 4 bits the type of
    the scales makes no difference, and zeros stay exact. A mixture searches among scales that can be stored.
    """
    kind = float_type(decoder, scheme, dtype)
    return kind if scheme == MIXED or (QUANTIZED.get(scheme) == 8 and kind == "bf16") else None


def usual(scheme: str) -> Affine:
    """Return how most matrices of a scheme that quantises are."""
    return FORMS.get(scheme, Affine(QUANTIZED[scheme]))


def packing(scheme: str, shape: tuple[int, ...]) -> Affine | None:
    """Return how a tensor of that shape is quantised; None: not at all."""
    return filling(usual(scheme), shape[1]) if scheme in QUANTIZED and len(shape) == 2 else None


def packings(decoder: Decoder, scheme: str, forms: Forms = NO_FORMS) -> dict[str, Affine]:
    """Return how every quantised matrix is, by MLX's name of its module.

    Parts that are fused have the bits of the most sensitive one, or all the same form of their own.
    """
    wide = sensitive(decoder) | next_sensitive(decoder) if scheme == MIXED else frozenset()
    found: dict[str, Affine] = {}
    kind = choose(decoder)
    for name, shape in decoder.tensors():
        module = place(kind, decoder, name).module
        if name in forms:
            found[module] = FORMS[forms[name]]
        elif own := packing(scheme, shape):
            bits = WIDE_BITS if name in wide else own.bits
            if module not in found or bits > found[module].bits:
                found[module] = Affine(bits, own.group)
    return found


def sizes(decoder: Decoder, dtype: str, rows: int, columns: int) -> dict[str, int]:
    """Return the bytes of a matrix in each form whose groups fill its rows; where none does, it has none."""
    scale = 2 * _ITEM_BYTES[float_type(decoder, MIXED, dtype).upper()]
    fitting = {name: of for name, of in FORMS.items() if columns % of.group == 0}
    return {name: rows * (columns * of.bits // 8 + columns // of.group * scale) for name, of in fitting.items()}


def lay_out(
    decoder: Decoder, scheme: str, dtype: str, shard_bytes: int = SHARD_BYTES, forms: Forms = NO_FORMS
) -> Layout:
    """Return the layout of a variant.

    ``dtype`` is the source's element type, ``shard_bytes`` the most bytes of tensors in a file; a larger tensor gets a
    file of its own.
    """
    shards = _shard(list(_tensors(decoder, scheme, dtype, forms)), shard_bytes)
    slots: dict[str, Slot] = {}
    heads: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    for index, shard in enumerate(shards, 1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        placed, heads[file], sizes[file] = _fill(shard, file)
        slots |= placed
    return Layout(slots, heads, sizes, tuple(_fallbacks(decoder, scheme, dtype, forms)))


def _fallbacks(decoder: Decoder, scheme: str, dtype: str, forms: Forms) -> Iterator[Fallback]:
    for name, shape in decoder.tensors():
        if scheme not in QUANTIZED or len(shape) == 1 or name in forms:
            continue
        whole, own = usual(scheme), packing(scheme, shape)
        if own is None or own.group != whole.group:
            reason = f"{shape[1]} columns are not a multiple of the group of {whole.group}"
            yield Fallback(tensor=name, scheme=own.name if own else float_type(decoder, scheme, dtype), reason=reason)


def _tensors(decoder: Decoder, scheme: str, dtype: str, forms: Forms) -> Iterator[tuple[str, Slot]]:
    float_dtype = float_type(decoder, scheme, dtype).upper()
    packed = packings(decoder, scheme, forms)
    for (module, parameter), shape in stored_shapes(choose(decoder), decoder).items():
        if parameter != "weight" or module not in packed:
            tensor = f"{module}.{parameter}"
            yield tensor, Slot(float_dtype, shape, "", 0, dimensions(decoder, tensor, shape))
            continue
        rows, columns = shape
        own = packed[module]
        yield f"{module}.weight", Slot("U32", (rows, columns * own.bits // 32), "", 0)
        yield f"{module}.scales", Slot(float_dtype, (rows, columns // own.group), "", 0)
        yield f"{module}.biases", Slot(float_dtype, (rows, columns // own.group), "", 0)


def _shard(tensors: list[tuple[str, Slot]], limit: int) -> list[dict[str, Slot]]:
    """Fill one file after the other in model order."""
    shards: list[dict[str, Slot]] = [{}]
    filled = 0
    for name, slot in tensors:
        if shards[-1] and filled + slot.size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = slot
        filled += slot.size
    return shards


def _fill(shard: Mapping[str, Slot], file: str) -> tuple[dict[str, Slot], bytes, int]:
    order = sorted(shard, key=lambda name: (-_ITEM_BYTES[shard[name].dtype], name))
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    begin = 0
    begins: dict[str, int] = {}
    for name in order:
        slot = shard[name]
        begins[name] = begin
        header[name] = {
            "dtype": slot.dtype,
            "shape": slot.stated or slot.shape,
            "data_offsets": [begin, begin + slot.size],
        }
        begin += slot.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    placed = {name: replace(shard[name], file=file, offset=len(head) + begins[name]) for name in order}
    return placed, head, len(head) + begin


def index_json(layout: Layout, parameters: int) -> bytes:
    """Return model.safetensors.index.json: which file holds which tensor."""
    weight_map = {name: layout.slots[name].file for name in sorted(layout.slots)}
    metadata = {"total_size": layout.tensor_bytes, "total_parameters": parameters}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=4).encode() + b"\n"
