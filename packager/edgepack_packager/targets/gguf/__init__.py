"""The GGUF target: one file that llama.cpp and whatever builds on it load as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import cast

from edgepack.bundle.decoder import Decoder
from edgepack.errors import UsageError
from edgepack.extras import needed
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint.gguf.dequantize import dequantize
from edgepack_packager.checkpoint.gguf.names import columns
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import (
    NO_FORMS,
    UNIFORM,
    Activations,
    Form,
    Forms,
    Model,
    Reader,
    Slot,
    Writer,
    Written,
    slots,
)
from edgepack_packager.targets.gguf.architecture import choose
from edgepack_packager.targets.gguf.layout import place
from edgepack_packager.targets.gguf.metadata import metadata
from edgepack_packager.targets.gguf.quantize import FED, encode, keep_grids
from edgepack_packager.targets.gguf.reader import GgufReader
from edgepack_packager.targets.gguf.recipe import FORMATS, GRIDS, NEEDS_CALIBRATION, SCHEMES, Kind, sizes
from edgepack_packager.targets.gguf.tensors import parts
from edgepack_packager.targets.gguf.tiles import moved, moved_back
from edgepack_packager.targets.gguf.writer import GgufWriter

FILE = "model.gguf"


class GgufTarget:
    """Writes and reads ``model.gguf``. What quantises needs numba; float types need numpy alone."""

    name = "gguf"
    runtime = "gguf"
    schemes: Mapping[str, int] = MappingProxyType({name: scheme.bits for name, scheme in SCHEMES.items()})
    searched: frozenset[str] = frozenset()  # K-quants are searched too, by llama.cpp as well
    needs_calibration: frozenset[str] = NEEDS_CALIBRATION
    for_grids: frozenset[str] = frozenset(GRIDS)
    fed: frozenset[str] = frozenset(FED)
    kv_cache: KvCache | None = None

    def __init__(self) -> None:
        self.packages: tuple[str, ...] = ("numpy", *_installed("numba"))

    def floor(self, decoder: Decoder) -> str:
        """Return the oldest llama.cpp that the runtime binds, in its own numbering; what the files use is older."""
        return "0.5.0"

    def nmse(self, decoder: Decoder) -> float:
        """Return 1e-9, or 1e-6 with gelu: where ggml computes less exactly than float32 would.

        It makes a rotation's angle by multiplying one rounded float32 step, pair after pair. Measured: 1.5e-10 for
        heads of 128 after 320 positions, against 7e-12 of a reference that rounds the same way. It reads gelu from a
        table of half-precision numbers (ggml_vec_geglu_f32 in ggml-cpu/vec.h). Measured: 4e-8 to 6e-7 in random models
        of 2 to 36 layers, against 2e-13 to 2e-10 of the same models without their MLPs.
        """
        return 1e-9 if all(kind.mlp.activation == "silu" for kind in decoder.kinds) else 1e-6

    def activations(self, form: Form) -> Activations:
        """Return ggml's ``vec_dot_type`` of a matrix: q8_K (blocks of 256) for K-quants and nearly all of the iq types,
        else q8_0 or q8_1 (of 32)."""
        match form.kind:
            case "f32" | "f16" | "bf16":
                return form.kind
            case kind if kind.endswith("_K") or (kind.startswith(("iq", "tq")) and kind != "iq4_nl"):
                return 256
            case _:
                return 32

    def scheme(self, quant: str, model: Model) -> str:
        """Map a uniform name or one of ``schemes`` to the scheme to write.

        ggml rounds the activations that meet f16 weights to f16, so a model of wide activations gets bf16 for "f16".
        Raises ``UsageError`` for an unknown name, ``UnsupportedModelError`` for a decoder that no architecture
        computes.
        """
        half = "bf16" if model.decoder.wide else "f16"
        uniform = {"f32": "f32", "f16": half, "q8": "q8_0", "q4": "q4_k_m"}
        scheme = uniform.get(quant, quant)
        if scheme not in self.schemes:
            names = ", ".join([*UNIFORM, *(name for name in self.schemes if name not in UNIFORM)])
            raise UsageError(f"The gguf target has no quantization {quant!r}.", hint=f"Choose from: {names}.")
        choose(model.decoder)
        return scheme

    def check(self, model: Model, scheme: str) -> None:
        """Refuse a model or a tokenizer that llama.cpp cannot express, and a host without what writes and reads it."""
        kinds = {tensor.kind for tensor in place(model.decoder, scheme, model.forms).tensors}
        for name in ("gguf", "numba") if any(FORMATS[kind].block > 1 for kind in kinds) else ("gguf",):
            with needed("The target gguf", "build"):
                import_module(name)
        metadata(model, scheme)

    def measure(self, decoder: Decoder, dtype: str, scheme: str, forms: Forms = NO_FORMS) -> Written:
        """Return the sizes of a variant, from its layout."""
        return place(decoder, scheme, forms).written

    def slots(self, decoder: Decoder, dtype: str) -> Sequence[Slot]:
        """Return all matrices, those that the architecture fuses together, and their sizes in ggml's types."""
        places = parts(decoder)
        return slots.of(decoder, lambda name: places[name].name, partial(sizes, decoder))

    def ruled(self, decoder: Decoder, dtype: str, scheme: str) -> Forms:
        """Return the type of every matrix by llama.cpp's rule with an importance matrix; what is fused has one."""
        placed = place(decoder, scheme, calibrated=True).canonical
        return {name: tensor.kind for name, tensor in placed.items() if len(tensor.shape) == 2}

    def rounded(self, model: Model, name: str, rows: Float32, form: str) -> Float32:
        """Return rows as a file with that type holds them, but for what they are multiplied by there."""
        kind = cast(Kind, form)
        importance, feedback = model.importance.get(name), model.feedback.get(name) if form in self.fed else None
        if tiles := columns(model.decoder, name):
            rows, importance, feedback = moved(tiles, rows, importance, feedback)
        encoded = encode(kind, rows, name, importance, feedback)
        keep_grids(kind, rows, 1.0, encoded, name)
        found = dequantize(form.upper(), encoded)
        return moved_back(tiles, found) if tiles else found

    def open(self, folder: Path, model: Model, scheme: str) -> Writer:
        """Create ``model.gguf``, sized, with its header complete, and return the writer of its tensors.

        Raises ``UnsupportedModelError`` for a model or a tokenizer that llama.cpp cannot express.
        """
        return GgufWriter(folder / FILE, model, scheme)

    def read(self, folder: Path, decoder: Decoder) -> Reader:
        """Open a finished ``model.gguf``. Raises ``BuildError`` where it is not a sound GGUF file."""
        return GgufReader(folder / FILE, decoder)


def _installed(*distributions: str) -> list[str]:
    found = []
    for name in distributions:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return found
