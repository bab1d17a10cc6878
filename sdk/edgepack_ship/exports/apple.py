"""Apple's Background Assets: a folder that ``xcrun ba-package`` makes an asset pack of.

The manifest's fields (``assetPackID``, ``downloadPolicy``, ``fileSelectors``, ``platforms``) are those of Apple's pages
"Creating managed asset packs" and of what ``xcrun ba-package template`` prints; paths are relative to where that
program runs.
"""

from __future__ import annotations

from pathlib import Path

from edgepack_ship.exports.differences import left_behind, templated
from edgepack_ship.exports.export import CARD, Export, Made, as_json, write_text
from edgepack_ship.exports.memory import report

PLATFORMS = ("iOS", "macOS", "visionOS")


def write(asked: Export, folder: Path) -> Made:
    """Write the pack's manifest, the folder that it names, and the memory that the variant takes: the folder of mlx-lm
    where the bundle has one, which MLXLLM loads, else the GGUF file for llama.cpp."""
    targets = ("gguf",) if asked.manifest.embedding else ("mlx", "gguf")
    variant = asked.variant(*targets)
    files = asked.hub_folder(variant)
    if variant.target == "gguf":
        files = asked.variant_files(variant) | asked.shared("chat_template.jinja", *asked.manifest.license.files, CARD)
    asked.copy(files, folder / asked.name)
    pack = {
        "assetPackID": asked.name,
        "downloadPolicy": {"onDemand": {}},
        "fileSelectors": [{"directory": asked.name}],
        "platforms": list(PLATFORMS),
    }
    write_text(folder / "Manifest.json", as_json(pack))
    write_text(folder / "memory.json", as_json(report(asked.manifest, variant)))
    differs = templated(asked.manifest, "the app's engine")
    use = (f"xcrun ba-package Manifest.json -o {asked.name}.aar",)
    return Made(variant.id, (*differs, *left_behind(asked)), use)
