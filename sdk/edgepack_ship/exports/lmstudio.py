"""LM Studio: model.yaml, and the weights where LM Studio looks for them, ``PUBLISHER/MODEL/``.

The fields of model.yaml are those of ``virtualModelDefinitionSchema`` in the npm package @lmstudio/lms-shared-types,
the keys of its settings those of @lmstudio/lms-kv-config; where models lie says LM Studio's page "Import Models". It
renders the Jinja template of the weights itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgepack.bundle.manifest import Manifest, Variant
from edgepack_ship.exports.differences import left_behind, templated
from edgepack_ship.exports.export import CARD, Export, Made, write_text
from edgepack_ship.exports.memory import figures

PUBLISHER = "edgepack"
_COMPATIBLE = {"gguf": "gguf", "mlx": "safetensors"}
Yaml = str | int | float | bool | Sequence["Yaml"] | Mapping[str, "Yaml"]


def write(asked: Export, folder: Path) -> Made:
    """Write model.yaml and the variant under PUBLISHER/MODEL/: the GGUF file, or a folder of mlx-lm."""
    variant = asked.variant("gguf", "mlx")
    name = f"{asked.name}-{variant.id}"
    licences = asked.shared(*asked.manifest.license.files, CARD)
    files = asked.hub_folder(variant) if variant.target == "mlx" else asked.variant_files(variant) | licences
    if variant.target == "gguf":  # it is called as the folder is, since LM Studio shows the file's name
        files = {name_of: f"{name}.gguf" if place == "model.gguf" else place for name_of, place in files.items()}
    asked.copy(files, folder / PUBLISHER / name)
    write_text(folder / "model.yaml", "".join(_lines(definition(asked, variant, f"{PUBLISHER}/{name}"))))
    use = (f"cp -r {PUBLISHER} ~/.lmstudio/models/", "lms push  # model.yaml, for users of the hub")
    return Made(variant.id, (*templated(asked.manifest, "LM Studio"), *left_behind(asked)), use)


def definition(asked: Export, variant: Variant, base: str) -> dict[str, Yaml]:
    """Return what model.yaml says."""
    manifest = asked.manifest
    found: dict[str, Yaml] = {
        "model": f"{PUBLISHER}/{asked.name}",
        "base": base,
        "metadataOverrides": _metadata(asked, variant),
    }
    load = [_field("llm.load.contextLength", asked.context)]
    if manifest.embedding is None:
        found["config"] = {"operation": {"fields": _sampling(manifest)}, "load": {"fields": load}}
    if custom := _thinking(manifest):
        found["customFields"] = custom
    return found


def _metadata(asked: Export, variant: Variant) -> dict[str, Yaml]:
    manifest = asked.manifest
    chat = manifest.chat
    tools = chat is not None and (chat.tool_use is not None or any(golden.tools for golden in chat.goldens))
    return {
        "domain": "llm" if manifest.embedding is None else "embedding",
        "architectures": [manifest.decoder.family],
        "compatibilityTypes": [_COMPATIBLE[variant.target]],
        "minMemoryUsageBytes": figures(manifest, variant, [asked.context])[asked.context],
        "contextLengths": [manifest.context.profile],
        "vision": False,
        "reasoning": chat is not None and chat.thinking is not None,
        "trainedForToolUse": tools,
    }


def _sampling(manifest: Manifest) -> list[Yaml]:
    given = manifest.generation

    def checked(value: float, idle: float) -> Yaml:
        return {"checked": value != idle, "value": value}

    return [
        _field("llm.prediction.temperature", given.temperature),
        _field("llm.prediction.topKSampling", given.top_k),
        _field("llm.prediction.topPSampling", checked(given.top_p, 1.0)),
        _field("llm.prediction.minPSampling", checked(given.min_p, 0.0)),
        _field("llm.prediction.repeatPenalty", checked(given.repetition_penalty, 1.0)),
        _field("llm.prediction.maxPredictedTokens", {"checked": True, "value": given.max_tokens}),
        _field("llm.prediction.stopStrings", [stop.text for stop in manifest.stops]),
    ]


def _field(key: str, value: Yaml) -> Yaml:
    return {"key": key, "value": value}


def _thinking(manifest: Manifest) -> list[Yaml]:
    """Return the switch by which a template is told to let its model think, where it is a variable that is true."""
    thinking = manifest.chat.thinking if manifest.chat else None
    switch = thinking.switch if thinking is not None else None
    if thinking is None or switch is None or switch.variable is None or (switch.on, switch.off) != (True, False):
        return []
    return [
        {
            "key": "thinking",
            "displayName": "Thinking",
            "description": "Whether the model thinks before it answers",
            "type": "boolean",
            "defaultValue": thinking.default,
            "effects": [{"type": "setJinjaVariable", "variable": switch.variable}],
        }
    ]


def _lines(value: Mapping[str, Yaml], indent: str = "") -> list[str]:
    """Return a mapping in YAML: blocks of mappings, and everything inside of a list as JSON, which YAML 1.2 is over."""
    lines: list[str] = []
    for key, each in value.items():
        if isinstance(each, Mapping):
            lines += [f"{indent}{key}:\n", *_lines(each, indent + "  ")]
        elif isinstance(each, Sequence) and not isinstance(each, str) and any(isinstance(one, Mapping) for one in each):
            lines += [f"{indent}{key}:\n", *(f"{indent}  - {json.dumps(one)}\n" for one in each)]
        else:
            lines.append(f"{indent}{key}: {json.dumps(each)}\n")
    return lines
