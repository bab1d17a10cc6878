"""An adapter that mlx-lm trained: ``adapter_config.json`` and ``adapters.safetensors``.

Its matrices are stored the other way round, its scale as it is, and it says nothing of a rank but for all modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.adapters.change import Change, Part, is_positive
from edgepack_packager.checkpoint.safetensors import SafetensorsFile

FILE = "adapters.safetensors"

_PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m|weight|bias)")
_EMBEDDING = "embed_tokens"
_HINT = "Merge it with `mlx_lm.fuse`, and build the folder that it writes."


def read(config: Mapping[str, Any], file: SafetensorsFile, place: Path) -> dict[str, Change]:
    """Return what the adapter makes of each tensor, by the tensor's name in mlx-lm's model; ``place`` is its
    adapter_config.json. Raises as ``peft.read``."""
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise UnsupportedModelError(f"{place}: fine_tune_type is {kind!r}, which edgepack does not merge.", hint=_HINT)
    parts: dict[str, dict[str, Part]] = {}
    for name in file.entries:
        match = _PART.fullmatch(name)
        if not match or (match["part"] in ("weight", "bias")) != (kind == "full"):
            raise UnsupportedModelError(f"{file.path}: the tensor {name} is no part of {kind!r}.", hint=_HINT)
        if kind == "full":
            parts[name] = {"whole": Part(file, name)}
        else:
            role, turned = _role(match["module"], match["part"])
            parts.setdefault(f"{match['module']}.weight", {})[role] = Part(file, name, turned)
    if kind == "full":
        return {tensor: Change(found["whole"]) for tensor, found in parts.items()}
    rank, scale = (_number(config, field, place) for field in ("rank", "scale"))
    for tensor, found in parts.items():
        _check(tensor, found, kind, rank, place)
    return {tensor: Change(**found, scale=scale) for tensor, found in parts.items()}


def ties(config: Mapping[str, Any]) -> bool:
    """Say that what becomes of the embedding of a tied model becomes of the head: mlx-lm's model has no other."""
    return True


def base(config: Mapping[str, Any]) -> object:
    """Return the name of the model that it was trained on, as it is there."""
    return config.get("model")


def _role(module: str, part: str) -> tuple[str, bool]:
    """Return what a tensor is of a ``Change``, and whether it is stored the other way round.

    An embedding is looked up: its rows are those of the first matrix.
    """
    if part == "m":
        return "magnitude", False
    if module.endswith(_EMBEDDING):
        return {"lora_a": "left", "lora_b": "right"}[part], False
    return {"lora_a": "right", "lora_b": "left"}[part], True


def _check(tensor: str, found: Mapping[str, Part], kind: str, rank: float, place: Path) -> None:
    """Refuse a module that lacks a part of its kind, or has one more, or another rank."""
    path, hint = place.with_name(FILE), "Take both files from one training."
    if found.keys() != {"left", "right", *(("magnitude",) if kind == "dora" else ())}:
        has = ", ".join(sorted(each.name.rpartition(".")[2] for each in found.values()))
        raise SourceError(
            f"{path}: {tensor.removesuffix('.weight')} has not all that {kind!r} has, and no more: {has}.", hint=hint
        )
    if found["right"].n_rows != rank:
        raise SourceError(
            f"{place}: lora_parameters says rank {rank:g}, {tensor.removesuffix('.weight')} has "
            f"{found['right'].n_rows}.",
            hint=hint,
        )


def _number(config: Mapping[str, Any], field: str, place: Path) -> float:
    said = config.get("lora_parameters")
    value = said.get(field) if isinstance(said, dict) else None
    if not is_positive(value):
        raise SourceError(
            f"{place}: lora_parameters.{field} must be a number above 0, not {value!r}.", hint="Correct the field."
        )
    return float(value)
