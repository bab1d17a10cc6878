"""An adapter that PEFT saved: ``adapter_config.json`` and ``adapter_model.safetensors``.

What the fields mean is PEFT's ``LoraConfig``; a field that is set and is not known here is refused by its name, because
it may change what the tensors mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.adapters.change import Change, Part, is_positive
from edgepack_packager.checkpoint.safetensors import SafetensorsFile

FILE = "adapter_model.safetensors"

_READ = frozenset(
    {
        *("peft_type", "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("use_dora", "bias", "init_lora_weights", "modules_to_save", "ensure_weight_tying"),
    }
)

# Which modules were chosen, which the tensors' names say; how they were trained; and what tells of PEFT itself.
_PASSED_OVER = frozenset(
    {
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "task_type"),
        *("inference_mode", "auto_mapping", "revision", "peft_version", "megatron_core", "qalora_group_size"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "merge_weights"),
    }
)

# Ways to begin a training that leave the base as it is; others, as PiSSA and OLoRA, take a part out of it.
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")

_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"lora_(?P<linear>[AB])(?:\.default)?\.weight"
    r"|lora_embedding_(?P<embedding>[AB])(?:\.default)?"
    r"|lora_magnitude_vector(?:\.default)?(?:\.weight)?"
    r"|(?:base_layer\.|modules_to_save\.(?:default\.)?)?(?P<whole>weight|bias)"
    r")"
)

# A pattern is a regular expression that a stranger wrote: one that can be tried in few ways only.
_PATTERN = re.compile(r"[\w.\\^$|()\[\]*+-]{1,200}", re.ASCII)
_MOST_REPEATS = 2

_MERGE = "Merge it with PEFT's merge_and_unload(), save the model, and build that."


def read(config: Mapping[str, Any], file: SafetensorsFile, place: Path) -> dict[str, Change]:
    """Return what the adapter makes of each tensor, by the tensor's name in the model that it was trained on.

    ``place`` is its adapter_config.json. Raises ``UnsupportedModelError`` for a kind or a field that is not merged,
    ``SourceError`` for a field or a tensor that contradicts another.
    """
    _refuse(config, place)
    parts: dict[str, dict[str, Part]] = {}
    for name in file.entries:
        if not (found := _PART.fullmatch(name)):
            raise UnsupportedModelError(f"{file.path}: the tensor {name} is no part of a LoRA.", hint=_MERGE)
        module = found["module"].removeprefix(_PREFIX)
        kind, role, turned = _role(found)
        tensor = f"{module}.{found['whole'] or 'weight'}"
        if role in parts.setdefault(tensor, {}):
            raise SourceError(f"{file.path}: two tensors are the {kind} of {module}.", hint="Save the adapter again.")
        parts[tensor][role] = Part(file, name, turned)
    _check_saved(config, parts, place)
    return {tensor: _change(config, tensor, found, place) for tensor, found in parts.items()}


def ties(config: Mapping[str, Any]) -> bool:
    """Say whether what it makes of the embedding of a tied model it makes of the head."""
    return bool(config.get("ensure_weight_tying"))


def base(config: Mapping[str, Any]) -> object:
    """Return the name of the model that it was trained on, as it is there."""
    return config.get("base_model_name_or_path")


def _role(found: re.Match[str]) -> tuple[str, str, bool]:
    """Return what PEFT calls a tensor, what it is of a ``Change``, and whether it is stored the other way round."""
    if letter := found["linear"]:
        return f"lora_{letter}", {"A": "right", "B": "left"}[letter], False
    if letter := found["embedding"]:
        return f"lora_embedding_{letter}", {"A": "left", "B": "right"}[letter], True
    if found["whole"]:
        return found["whole"], "whole", False
    return "lora_magnitude_vector", "magnitude", False


def _refuse(config: Mapping[str, Any], place: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(f"{place}: the adapter is of the type {kind!r}; edgepack merges LORA.", hint=_MERGE)
    if (bias := config.get("bias", "none")) != "none":
        raise UnsupportedModelError(f"{place}: bias is {bias!r}; edgepack merges none.", hint=_MERGE)
    start = config.get("init_lora_weights")
    if start not in _INITIAL and str(start).lower() not in _INITIAL:
        raise UnsupportedModelError(
            f"{place}: init_lora_weights is {start!r}, which changes the base before the training.",
            hint=f"Save it with PEFT's path_initial_model_for_weight_conversion. Or: {_MERGE}",
        )
    for field, value in config.items():
        if value and field not in _READ | _PASSED_OVER:
            raise UnsupportedModelError(f"{place}: {field} is set, which edgepack does not merge.", hint=_MERGE)


def _check_saved(config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Part]], place: Path) -> None:
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise SourceError(f"{place}: modules_to_save must be a list of names.", hint="Save the adapter again.")
    modules = [tensor.rpartition(".")[0] for tensor, found in parts.items() if "whole" in found]
    for name in saved:
        if not any(module.endswith(name) for module in modules):
            raise SourceError(
                f"{place}: modules_to_save names {name}, which {FILE} does not hold.", hint="Save the adapter again."
            )


def _change(config: Mapping[str, Any], tensor: str, parts: Mapping[str, Part], place: Path) -> Change:
    """Put the parts of a tensor's change together."""
    module = tensor.removesuffix(".weight")
    if "left" not in parts and "right" not in parts and "magnitude" not in parts:
        return Change(parts["whole"])
    dora = _flag(config, "use_dora", place)
    wanted = {"left", "right", *(("magnitude",) if dora else ())}
    if wanted != parts.keys() - {"whole"}:
        names = {"left": "lora_B", "right": "lora_A", "magnitude": "lora_magnitude_vector"}
        odd = names[min(wanted ^ (parts.keys() - {"whole"}))]
        states = "lacks" if names and odd in {names[each] for each in wanted} else "has, and use_dora does not ask for,"
        raise SourceError(f"{place.with_name(FILE)}: {module} {states} its {odd}.", hint="Save the adapter again.")
    if dora and parts["left"].turned:
        raise UnsupportedModelError(f"{place}: use_dora is set for the embedding {module}.", hint=_MERGE)
    rank = parts["right"].n_rows
    said = _number(config, "r", "rank_pattern", module, place)
    if said != rank:
        raise SourceError(
            f"{place}: by its r and rank_pattern {module} has rank {said:g}, in {FILE} {rank}.",
            hint="Take both files from one training.",
        )
    alpha = _number(config, "lora_alpha", "alpha_pattern", module, place)
    scale = alpha / (math.sqrt(rank) if _flag(config, "use_rslora", place) else rank)
    return Change(**parts, scale=scale)


def _flag(config: Mapping[str, Any], field: str, place: Path) -> bool:
    value = config.get(field) or False
    if not isinstance(value, bool):
        raise SourceError(f"{place}: {field} must be true or false, not {value!r}.", hint="Correct the field.")
    return value


def _number(config: Mapping[str, Any], field: str, patterns: str, module: str, place: Path) -> float:
    """Return the number that a field says of all modules, or the first pattern that a module's name matches.

    The rule is PEFT's ``get_pattern_key``: the pattern is the name, or its end after a point.
    """
    value, said = config.get(field), config.get(patterns) or {}
    if not isinstance(said, dict):
        raise SourceError(f"{place}: {patterns} must be an object.", hint="Correct the field.")
    for pattern, special in said.items():
        if _matches(pattern, module, f"{place}: {patterns}"):
            field, value = f"{patterns}[{pattern!r}]", special
            break
    if not is_positive(value):
        raise SourceError(f"{place}: {field} must be a number above 0, not {value!r}.", hint="Correct the field.")
    return float(value)


def _matches(pattern: str, module: str, place: str) -> bool:
    repeats = len(re.findall(r"[*+]", pattern))
    if not _PATTERN.fullmatch(pattern) or repeats > _MOST_REPEATS or re.search(r"\)[*+]", pattern):
        raise UnsupportedModelError(f"{place} has the pattern {pattern!r}, which is not read.", hint=_MERGE)
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error as error:
        raise SourceError(f"{place}: {pattern!r} is no pattern: {error}.", hint="Correct it.") from None
