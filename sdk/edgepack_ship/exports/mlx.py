"""MLX: the folder that mlx-lm takes, and with it Apple's own loaders, such as MLXLLM of mlx-swift-lm.

mlx-lm looks for tokenizer.json beside the weights and takes stops from ``eos_token_id`` of generation_config.json, or
of config.json (``mlx_lm.utils.load``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgepack.bundle.files import VARIANTS
from edgepack.bundle.manifest import Variant
from edgepack.errors import BundleDamagedError
from edgepack_ship.exports.export import Export, Made
from edgepack_ship.exports.llamacpp import left_behind, templated


def write(asked: Export, folder: Path) -> Made:
    """Write the variant with the tokenizer, the licence and the model card beside it."""
    asked.refuse_embedding()
    variant = asked.variant("mlx")
    asked.copy(asked.hub_folder(variant), folder)
    known = [object_of(asked, variant, name) for name in ("generation_config.json", "config.json")]
    found = next((each["eos_token_id"] for each in known if each.get("eos_token_id") is not None), None)
    differs = (
        *missing_stops(asked, found, "mlx-lm", "--extra-eos-token"),
        *defaults_left_out(asked, "mlx-lm"),
        *templated(asked.manifest, "mlx-lm"),
        *left_behind(asked),
    )
    return Made(variant.id, differs, ("mlx_lm.chat --model .",))


def object_of(asked: Export, variant: Variant, name: str) -> Mapping[str, Any]:
    """Return a JSON object of a variant, of the bundle where the variant has none, or an empty one. Raises
    ``BundleDamagedError`` for what is no JSON."""
    own = f"{VARIANTS}/{variant.id}/{name}"
    known = own if any(file.path == name for file in variant.files) else next(iter(asked.shared(name)), None)
    if known is None:
        return {}
    try:
        found = json.loads(asked.bundle.read(known))
    except (ValueError, RecursionError):
        raise BundleDamagedError(f"{known} of the bundle is no JSON.", hint="Build the bundle again.") from None
    return found if isinstance(found, dict) else {}


def missing_stops(asked: Export, found: object, system: str, option: str) -> Iterable[str]:
    """Yield what is to be said where a system ends an answer at fewer tokens than the bundle."""
    ids = found if isinstance(found, list) else [found]
    if missing := [stop.text for stop in asked.manifest.stops if stop.id not in ids]:
        yield f"{system} does not end an answer at {', '.join(missing)}: pass {option}."


def defaults_left_out(asked: Export, system: str) -> Iterable[str]:
    """Yield what is to be said where a system has defaults of its own for sampling."""
    given = asked.manifest.generation
    said = {"temperature": given.temperature, "top_p": given.top_p, "top_k": given.top_k, "min_p": given.min_p}
    words = ", ".join(f"{name} {value:g}" for name, value in said.items())
    yield f"{system} samples by its own defaults unless a call says otherwise; the bundle's are {words}."
