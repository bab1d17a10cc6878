"""ONNX Runtime GenAI: the folder that ``onnxruntime_genai.Model`` takes, with genai_config.json in it.

It reads tokenizer.json beside the graph, stops from ``model.eos_token_id``, and sampling from ``search`` of
genai_config.json (onnxruntime-genai, "Config reference").
"""

from __future__ import annotations

from pathlib import Path

from edgepack.errors import UsageError
from edgepack_ship.exports.differences import left_behind, missing_stops, templated
from edgepack_ship.exports.export import Export, Made

CONFIG = "genai_config.json"


def write(asked: Export, folder: Path) -> Made:
    """Write the variant with the tokenizer, the licence and the model card beside it.

    Raises ``UsageError`` for a variant without a genai_config.json, as of a graph that another exporter wrote.
    """
    asked.refuse_embedding()
    variant = asked.variant("onnx")
    if all(file.path != CONFIG for file in variant.files):
        raise UsageError(
            f"{variant.id} has no {CONFIG}: onnxruntime-genai does not run its graph.",
            hint="Run it with edgepack, or with onnxruntime alone.",
        )
    asked.copy(asked.hub_folder(variant), folder)
    model = asked.json_of(variant, CONFIG).get("model")
    found = model.get("eos_token_id") if isinstance(model, dict) else None
    differs = (
        *missing_stops(asked, found, "onnxruntime-genai", "their ids to whoever ends the loop"),
        *templated(asked.manifest, "onnxruntime-genai"),
        *left_behind(asked),
    )
    return Made(variant.id, differs, ("python -c 'import onnxruntime_genai as og; og.Model(\".\")'",))
