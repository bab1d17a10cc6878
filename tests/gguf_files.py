"""GGUF files of checkpoints, and others made of those by the package ``gguf``: in parts, or with random weights in any
of ggml's types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize

from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.targets import Model, Request
from edgepack_packager.targets.gguf import GgufTarget
from edgepack_packager.targets.gguf.recipe import NEEDS_CALIBRATION
from edgepack_packager.text import read_text
from edgepack_packager.write import write

_HALVES = {"TQ1_0": 52, "TQ2_0": 64}
"""Where a block has its scale in half precision, if not at its beginning."""

_TYPES = {
    int: (GGUFValueType.UINT16,),
    str: (GGUFValueType.STRING,),
    list: (GGUFValueType.ARRAY, GGUFValueType.STRING),
}

_LOUD = 0.1  # as a root of the mean square, that of a model's weights


def packed(folder: Path, out: Path, scheme: str = "f32", context: int | None = None) -> Path:
    """Write the model of a checkpoint as a GGUF file, with the target's own writer; all columns count alike."""
    config = read_object(folder / "config.json")
    decoder = families.describe(config, context)
    counts = {name: np.ones(shape[-1], np.float32) for name, shape in decoder.tensors() if scheme in NEEDS_CALIBRATION}
    model = Model("tiny", decoder, "f32", config, read_text(folder, config, decoder), importance=counts)
    with open_checkpoint(folder) as checkpoint:
        weights = families.open_model(checkpoint, context)
        write(weights, [Request(GgufTarget(), scheme, scheme)], out, model)
    return out / f"gguf-{scheme}" / "model.gguf"


def in_parts(file: Path, out: Path, tensors: int, *, small_first: bool = False) -> list[Path]:
    """Write a file in parts of at most so many tensors each, the first with none if it is to be small."""
    _copy(file, GGUFWriter(out, "", split_max_tensors=tensors, small_first_shard=small_first))
    return sorted(out.parent.glob(f"{out.stem}-*-of-*.gguf"))


def random_blocks(file: Path, out: Path, kind: str) -> Path:
    """Write a file whose matrices are random blocks of a type, about as loud as a model's weights."""
    _copy(file, GGUFWriter(out, ""), kind=kind)
    return out


def changed(file: Path, keys: Mapping[str, object]) -> None:
    """Give a file other keys: numbers of 16 bits, texts, lists of them, and None for a key that goes."""
    new = file.with_suffix(".new")
    _copy(file, GGUFWriter(new, ""), keys)
    new.replace(file)


def blocks(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Random blocks of a type: uint8 [n, bytes of a block]."""
    chosen = GGMLQuantizationType[kind]
    found = rng.integers(0, 256, (n, GGML_QUANT_SIZES[chosen][1]), dtype=np.uint8)
    scale = 1.0
    for _ in range(2):
        _scale(found, kind, scale)
        scale = _LOUD / float(np.sqrt(np.square(dequantize(found, chosen)).mean()))
    return found


def _scale(found: np.ndarray, kind: str, scale: float) -> None:
    """Write the scale of all blocks."""
    bits = int(np.float16(scale).view(np.uint16))
    if kind == "MXFP4":
        found[:, 0] = 127 + round(np.log2(scale))
    elif kind == "IQ1_M":  # in the high four bits of each of the last four numbers of 16
        for place in range(4):
            found[:, 49 + 2 * place] = found[:, 49 + 2 * place] & 15 | (bits >> 4 * place & 15) << 4
    else:
        first = _HALVES.get(kind, 0)
        found[:, first : first + 2] = bits & 255, bits >> 8


def _copy(
    file: Path, writer: GGUFWriter, keys: Mapping[str, object] = MappingProxyType({}), kind: str | None = None
) -> None:
    reader, rng = GGUFReader(file), np.random.default_rng(5)
    writer.kv_data[0].clear()  # the architecture, which the file says itself
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in keys:
            below = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], below)
    for key, value in keys.items():
        if value is not None:
            writer.add_key_value(key, value, *_TYPES[type(value)])
    for tensor in reader.tensors:
        if kind is None or len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        chosen = GGMLQuantizationType[kind]
        size, _ = GGML_QUANT_SIZES[chosen]
        columns, rows = map(int, tensor.shape)
        data = blocks(kind, rows * columns // size, rng).reshape(rows, -1)
        writer.add_tensor(tensor.name, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
