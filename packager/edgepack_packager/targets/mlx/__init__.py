"""The MLX target: a folder that mlx-lm loads with the bundle's tokenizer.json beside it, written with numpy alone.

Tensors are named as in Hugging Face checkpoints. A quantised matrix is three tensors: packed levels (uint32), scales
and biases of its groups of columns (``forms``); the levels are those of ``mlx_lm.convert -q`` on a CPU, byte for byte,
but for 8 bits of a decoder that needs bfloat16 (``layout.level_type``), and for 4bit_mixed: searched scales, and 6 bits
in what is sensitive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from edgepack.bundle.decoder import Decoder
from edgepack.errors import UsageError
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import CALIBRATED_BITS, NO_FORMS, Activations, Form, Forms, Model, Slot, Written, slots
from edgepack_packager.targets.mlx.forms import BITS, FORMS, form
from edgepack_packager.targets.mlx.layout import (
    FLOATS,
    MIXED,
    QUANTIZED,
    SHARD_BYTES,
    float_type,
    lay_out,
    packings,
    sizes,
)
from edgepack_packager.targets.mlx.model_types import choose
from edgepack_packager.targets.mlx.names import place
from edgepack_packager.targets.mlx.quantize import dequantize, feed, keep_grids, quantize
from edgepack_packager.targets.mlx.reading import MlxReader
from edgepack_packager.targets.mlx.writing import MlxWriter

_UNIFORM = {"f32": "f32", "f16": "f16", "q8": "8bit", "q4": "4bit_mixed"}


class MlxTarget:
    """Writes MLX variants in weight files of at most ``shard_bytes`` of tensors."""

    name = "mlx"
    runtime = "mlx"
    packages: tuple[str, ...] = ("numpy",)
    schemes: Mapping[str, int] = MappingProxyType({"f32": 32, "f16": 16, "bf16": 16, **QUANTIZED})
    searched: frozenset[str] = frozenset({MIXED})
    needs_calibration: frozenset[str] = frozenset()
    for_grids: frozenset[str] = frozenset()
    fed: frozenset[str] = frozenset(name for name, each in FORMS.items() if each.bits < CALIBRATED_BITS)
    kv_cache: KvCache | None = None

    def __init__(self, shard_bytes: int = SHARD_BYTES) -> None:
        self._shard_bytes = shard_bytes

    def floor(self, decoder: Decoder) -> str:
        """Return the version of mlx that the payloads were proven with."""
        return "0.32.4"

    def nmse(self, decoder: Decoder) -> float:
        """Return 1e-10: MLX on a processor computes in float32 throughout."""
        return 1e-10

    def activations(self, form: Form) -> Activations:
        """Return f32: with a KV cache of f32, MLX computes in it whatever the weights are."""
        return "f32"

    def scheme(self, quant: str, model: Model) -> str:
        """Map "f32", "f16", "q8", "q4", one of ``schemes`` or another name of its form to a scheme.

        MLX computes in the type of 16-bit weights, so a model of wide activations gets bf16 for "f16". Raises
        ``UsageError`` for another name.
        """
        half = {"f16": "bf16"} if model.decoder.wide else {}
        scheme = (_UNIFORM | half).get(quant, quant)
        if (packed := form(scheme)) is not None:
            return packed.name
        if scheme not in self.schemes:
            names = ", ".join(dict.fromkeys((*_UNIFORM, *FLOATS, MIXED)))
            raise UsageError(
                f"The mlx target has no quantisation {quant!r}.",
                hint=f"Choose from: {names}; or {', '.join(map(str, BITS))} bits in groups of 64 (4bit), of 32 "
                "(4bit_g32) or of 128 (4bit_g128).",
            )
        return scheme

    def check(self, model: Model, scheme: str) -> None:
        """Refuse nothing more than ``scheme``: a tokenizer is carried as it is."""

    def measure(self, decoder: Decoder, dtype: str, scheme: str, forms: Forms = NO_FORMS) -> Written:
        """Return the sizes of a variant, from its layout."""
        return lay_out(decoder, scheme, dtype, self._shard_bytes, forms).written

    def slots(self, decoder: Decoder, dtype: str) -> Sequence[Slot]:
        """Return all matrices, those that the model file fuses together, and their sizes in ``FORMS``."""
        kind = choose(decoder)
        return slots.of(decoder, lambda name: place(kind, decoder, name).module, partial(sizes, decoder, dtype))

    def ruled(self, decoder: Decoder, dtype: str, scheme: str) -> Forms:
        """Return the groups of every matrix that a scheme quantises; what is fused has the same."""
        kind, packed = choose(decoder), packings(decoder, scheme)
        places = {name: place(kind, decoder, name).module for name, shape in decoder.tensors() if len(shape) == 2}
        return {name: packed[module].name for name, module in places.items() if module in packed}

    def rounded(self, model: Model, name: str, rows: Float32, form: str) -> Float32:
        """Return rows as a file with that form holds them."""
        own, counts, stored = FORMS[form], model.importance.get(name), float_type(model.decoder, MIXED, model.dtype)
        levels, scales, biases = quantize(rows, own.bits, stored, search=True, group=own.group, importance=counts)
        if form in self.fed and name in model.feedback:
            feed(rows, own.bits, stored, levels, scales, biases, model.feedback[name])
        keep_grids(rows, own.bits, stored, levels, scales, biases)
        return dequantize(levels, scales, biases, own.bits)

    def open(self, folder: Path, model: Model, scheme: str) -> MlxWriter:
        """Create the files in an empty folder, sized, and return the writer of their tensors."""
        return MlxWriter(folder, model, scheme, self._shard_bytes)

    def read(self, folder: Path, decoder: Decoder) -> MlxReader:
        """Open a finished variant for reading back. Raises ``BuildError`` where it is damaged."""
        return MlxReader(folder, decoder)
