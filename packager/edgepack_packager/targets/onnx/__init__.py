"""The ONNX target: one graph with its weights in one data file, for onnxruntime and onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgepack.bundle.decoder import Decoder
from edgepack.errors import UnsupportedModelError, UsageError
from edgepack.extras import needed
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import CALIBRATED_BITS, NO_FORMS, Activations, Form, Forms, Model, Slot, Written, slots
from edgepack_packager.targets.onnx import blocks, graph
from edgepack_packager.targets.onnx.forms import BITS, FORMS, form
from edgepack_packager.targets.onnx.layout import FLOATS, MIXED, SCHEMES, layout, sizes
from edgepack_packager.targets.onnx.reader import OnnxReader
from edgepack_packager.targets.onnx.writer import OnnxWriter

_UNIFORM = {"q8": "int8", "q4": "int4_mixed", "fp32": "f32", "fp16": "f16"}


@dataclass(frozen=True, slots=True)
class OnnxTarget:
    """``model.onnx`` and ``model.onnx.data``: f32; f16 (stored so, computed in f32); int8 and int4 in blocks of 32, as
    onnxruntime-genai's own builder makes them, or of 64 and 128; int2 with searched scales; int4_mixed, 4 bits with
    searched scales and 8 in what is sensitive.

    Every matrix takes the scheme, the embedding too; a row that does not fill its last block is filled with zeros.
    Norms and biases stay f32. With a ``kv_cache`` of "f16" the attention computes in it (None: f32 throughout); with
    one of "q8" it keeps keys and values in int8, with one scale for each channel.
    """

    kv_cache: KvCache | None = None
    name: ClassVar[str] = "onnx"
    runtime: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx",)
    schemes: ClassVar[Mapping[str, int]] = SCHEMES
    searched: ClassVar[frozenset[str]] = frozenset({MIXED, *(name for name, each in FORMS.items() if each.searched)})
    needs_calibration: ClassVar[frozenset[str]] = frozenset()
    for_grids: ClassVar[frozenset[str]] = frozenset()
    fed: ClassVar[frozenset[str]] = frozenset(name for name, each in FORMS.items() if each.bits < CALIBRATED_BITS)

    def with_kv_cache(self, kv_cache: KvCache) -> OnnxTarget:
        """Return the target of graphs with a KV cache of that type."""
        return OnnxTarget(None if kv_cache == "f32" else kv_cache)

    def floor(self, decoder: Decoder) -> str:
        """Return 1.27; states, and attention to the keys of another layer, are onnxruntime's own from 1.32 on."""
        return "1.32" if decoder.states or decoder.keeping != decoder.attending else "1.27"

    def nmse(self, decoder: Decoder) -> float:
        """Return 1e-10: onnxruntime computes in float32, but for what an f16 or q8 cache rounds."""
        return 1e-10

    def activations(self, form: Form) -> Activations:
        """Return 8 bits for the blocks of MatMulNBits, whose accuracy level is 4, and f32 for all else."""
        return form.group if form.kind in ("signed", "asymmetric") else "f32"

    def scheme(self, quant: str, model: Model) -> str:
        """Map a uniform name, one of ``schemes`` or another name of its form, "fp32" or "fp16" to the scheme to write.

        The graph expresses every feature of a decoder; only its attention's head dimension has a limit.
        """
        packed = form(quant)
        chosen = packed.name if packed else _UNIFORM.get(quant, quant)
        if chosen not in SCHEMES:
            known = ", ".join((*FLOATS, *_UNIFORM, MIXED))
            raise UsageError(
                f"The target onnx has no quantization {quant!r}.",
                hint=f"Choose from: {known}; or {', '.join(map(str, BITS))} bits in blocks of 32 (int4), of 64 "
                "(int4_b64) or of 128 (int4_b128), 4 bits with zero points too (int4_asym).",
            )
        if odd := [each.head_dim for each in model.decoder.attentions if each.head_dim % 8]:
            raise UnsupportedModelError(
                f"A head dimension of {odd[0]} does not fit onnxruntime's attention, which takes multiples of 8.",
                hint="Build the other targets.",
            )
        if model.decoder.at_once and self.kv_cache:
            raise UsageError(
                f"A KV cache of {self.kv_cache} was asked for, and this model keeps none: it evaluates a text at once.",
                hint="Leave --kv-cache out.",
            )
        _require_onnx()
        return chosen

    def check(self, model: Model, scheme: str) -> None:
        """Refuse nothing more than ``scheme``: a tokenizer is carried as it is."""

    def measure(self, decoder: Decoder, dtype: str, scheme: str, forms: Forms = NO_FORMS) -> Written:
        """Return the sizes of a variant, from its layout."""
        return layout(decoder, scheme, self.kv_cache or "f32", forms).written

    def slots(self, decoder: Decoder, dtype: str) -> Sequence[Slot]:
        """Return all matrices, none of which shares a tensor with another, and their sizes in ``FORMS``."""
        return slots.of(decoder, lambda name: name, sizes)

    def ruled(self, decoder: Decoder, dtype: str, scheme: str) -> Forms:
        """Return the blocks of every matrix that a scheme quantises."""
        stored = layout(decoder, scheme).tensors
        return {name: each.blocks.name for name, each in stored.items() if each.blocks is not None}

    def rounded(self, model: Model, name: str, rows: Float32, form: str) -> Float32:
        """Return rows as a data file with such blocks holds them."""
        own = FORMS[form]
        feedback = model.feedback.get(name) if form in self.fed else None
        encoded = blocks.encode(rows, own, model.importance.get(name), feedback)
        return blocks.dequantize(*encoded, rows.shape[1], own.bits)

    def graph_bytes(self, decoder: Decoder, scheme: str) -> int:
        """Return the bytes of ``model.onnx``, to which ``measure`` adds those of its data file. It needs onnx."""
        return len(graph.serialize(decoder, layout(decoder, scheme, self.kv_cache or "f32"), self.kv_cache or "f32"))

    def open(self, folder: Path, model: Model, scheme: str) -> OnnxWriter:
        """Create the files of a variant in an empty folder, at their full size."""
        return OnnxWriter(folder, model, scheme, self.kv_cache or "f32")

    def read(self, folder: Path, decoder: Decoder) -> OnnxReader:
        """Open a finished variant for reading back."""
        return OnnxReader(folder, decoder)


def _require_onnx() -> None:
    with needed("The target onnx", "build"):
        import onnx  # noqa: F401
