"""Whether a checkpoint's weights are quantised already, and by what: as its tensors say, not as config.json does.

A model that was trained on a base of 4 bits and merged to 16 keeps the base's ``quantization_config``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from edgepack.errors import UnsupportedModelError
from edgepack_packager.checkpoint.safetensors import FLOATS, Entry

FIELDS = ("quantization_config", "compression_config", "quantization")

_MLX = "MLX"
# What each tool stores beside or in place of a weight.
_MARKS: Mapping[str, str] = {
    r".+\.(qweight|qzeros|g_idx)": "gptq or awq",
    r".+\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)|.+\.SCB": "bitsandbytes",
    r".+\.(weight_packed|weight_shape|weight_zero_point|weight_g_idx)": "compressed-tensors",
    r".+\.(weight_scale_inv|weight_scale|input_scale|activation_scale)": "fp8",
    r".+_(blocks|scales)": "mxfp4",
    r".+\.biases": _MLX,
    r".+\.(W_q|codes|codebooks|scales|weight\._data|weight\._scale)": "a tool that is not named",
}

_ORIGINAL = "Build the original of 16 or 32 bits that they were made from"
_WAYS: Mapping[str, str] = {
    _MLX: f"{_ORIGINAL}, or write them in 16 bits with `mlx_lm.fuse --dequantize` or `mlx_lm.convert --dequantize`.",
    "bitsandbytes": f"{_ORIGINAL}; a model that was trained on them is merged to 16 bits first.",
}

# Less than the two bytes that the smallest float takes; norms and a header are little beside.
_LEAST_BYTES = 1.9


def declared(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the field of config.json that says the weights are quantised, and the tool that it names."""
    for field in FIELDS:
        said = config.get(field)
        if not said:
            continue
        said = said if isinstance(said, dict) else {}
        if isinstance(method := said.get("quant_method"), str):
            return field, method
        if any(said.get(key) for key in ("load_in_4bit", "load_in_8bit")):
            return field, "bitsandbytes"
        return field, _MLX if {"bits", "group_size"} <= said.keys() else "a tool that is not named"
    return None


def refuse(place: object, config: Mapping[str, Any], stored: Mapping[str, Entry], needed: Collection[str]) -> None:
    """Raise ``UnsupportedModelError`` where one of the needed tensors is no float, or others belong to quantised ones.

    ``stored`` are all tensors by their names in the files, ``needed`` the names that the model is made of.
    """
    tool = next((tool for mark, tool in _MARKS.items() if any(re.fullmatch(mark, name) for name in stored)), None)
    marks = (name for name in stored if any(re.fullmatch(mark, name) for mark in _MARKS))
    packed = next((name for name in needed if name in stored and stored[name].dtype not in FLOATS), next(marks, None))
    if packed is not None:
        named = declared(config)
        raise _refusal(place, named[1] if named else tool, f"{packed} is stored as {stored[packed].dtype}")


def refuse_size(place: object, config: Mapping[str, Any], size: int, n_parameters: int) -> None:
    """Raise ``UnsupportedModelError`` where config.json names a quantisation and the weight files are that small."""
    named = declared(config)
    if named and size < _LEAST_BYTES * n_parameters:
        raise _refusal(place, named[1], f"its weight files take {size} bytes for {n_parameters} parameters")


def _refusal(place: object, tool: str | None, why: str) -> UnsupportedModelError:
    by = f" by {tool}" if tool else ""
    return UnsupportedModelError(
        f"{place}: the weights are quantised already{by}: {why}.", hint=_WAYS.get(tool or "", f"{_ORIGINAL}.")
    )


def note(config: Mapping[str, Any]) -> str | None:
    """Return what to say of a config.json that names a quantisation where the tensors have none."""
    named = declared(config)
    return named and f"config.json: {named[0]} ({named[1]}) is passed over: no tensor is quantised."
