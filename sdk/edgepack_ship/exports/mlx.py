"""MLX: the folder that mlx-lm takes, and with it Apple's own loaders, such as MLXLLM of mlx-swift-lm.

mlx-lm looks for tokenizer.json beside the weights and takes stops from ``eos_token_id`` of generation_config.json, or
of config.json (``mlx_lm.utils.load``).
"""

from __future__ import annotations

from pathlib import Path

from edgepack_ship.exports.differences import defaults_left_out, left_behind, missing_stops, templated
from edgepack_ship.exports.export import Export, Made


def write(asked: Export, folder: Path) -> Made:
    """Write the variant with the tokenizer, the licence and the model card beside it."""
    asked.refuse_embedding()
    variant = asked.variant("mlx")
    asked.copy(asked.hub_folder(variant), folder)
    known = [asked.json_of(variant, name) for name in ("generation_config.json", "config.json")]
    found = next((each["eos_token_id"] for each in known if each.get("eos_token_id") is not None), None)
    differs = (
        *missing_stops(asked, found, "mlx-lm", "--extra-eos-token"),
        *defaults_left_out(asked, "mlx-lm"),
        *templated(asked.manifest, "mlx-lm"),
        *left_behind(asked),
    )
    return Made(variant.id, differs, ("mlx_lm.chat --model .",))
