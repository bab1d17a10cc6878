"""Fills the model with a checked payload's tensors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from edgepack.bundle.decoder import Decoder
from edgepack.errors import EngineError
from edgepack_runtimes.mlx.model import Transformer
from edgepack_runtimes.mlx.payload import Payload, Tensor


def load_model(variant: Path, payload: Payload, decoder: Decoder, float_type: mx.Dtype) -> Transformer:
    """Return the model in memory; all that is not packed gets ``float_type``, and activations follow.

    Raises ``EngineError`` for a tensor that is missing, unknown or misshapen.
    """
    model = Transformer(decoder, payload.spelling.fused)
    if payload.packings:
        nn.quantize(model, class_predicate=partial(_quantization, payload))
    shapes = {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}
    own = {payload.spelling.stored(name): name for name in shapes}
    _check_tensors(variant, payload, {stored: shapes[name] for stored, name in own.items()})
    weights: dict[str, mx.array] = {}
    for file in payload.files:
        arrays: Any = mx.load(str(file), format="safetensors")
        weights |= arrays
    offset = payload.spelling.gain_offset
    ready = [(own[name], _ready(name, array, offset, float_type)) for name, array in weights.items()]
    model.load_weights(ready, strict=True)
    model.eval()
    mx.eval(model.parameters())
    return model


def _quantization(payload: Payload, module: str, _: nn.Module) -> dict[str, int] | bool:
    """Return how a module is quantised; False: not at all."""
    packing = payload.packings.get(payload.spelling.stored(module))
    return packing is not None and {"group_size": packing[1], "bits": packing[0]}


def _ready(name: str, array: mx.array, gain_offset: float, float_type: mx.Dtype) -> mx.array:
    """Return a tensor as the model computes with it: packed levels as they are, a norm as its gain."""
    if array.dtype == mx.uint32:
        return array
    whole = array.astype(mx.float32) + gain_offset if name.endswith("norm.weight") else array
    return whole.astype(float_type)


def _check_tensors(variant: Path, payload: Payload, expected: dict[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() | payload.tensors.keys()):
        packed = name.endswith(".weight") and f"{name.removesuffix('.weight')}.scales" in expected
        wanted = Tensor("U32" if packed else payload.float_type, expected[name]) if name in expected else None
        found = payload.tensors.get(name)
        if found != wanted:
            raise EngineError(
                f"{variant}: the tensor {name} is {_describe(found)}, expected {_describe(wanted)}.",
                hint="Build the variant again.",
            )


def _describe(tensor: Tensor | None) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}" if tensor else "none"
