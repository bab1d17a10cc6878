"""Google Play's asset packs: a module of Gradle with the model in its assets.

The plug-in, ``packName`` and ``deliveryType`` are those of Android's page "Integrate asset delivery"; a pack may have
1.5 GB as it is downloaded (Play Console Help, "Google Play maximum size limits"). Play for On-device AI takes the same
folder with the plug-in ``com.android.ai-pack`` and a block ``aiPack``.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgepack.text.chat import TEMPLATE
from edgepack_ship.exports.differences import left_behind, templated
from edgepack_ship.exports.export import CARD, TEXT_SIDE, Export, Made, as_json, write_text
from edgepack_ship.exports.memory import report

LIMIT = 1_500_000_000
_GRADLE = """\
plugins {{
    id 'com.android.asset-pack'
}}

assetPack {{
    packName = "{name}"
    dynamicDelivery {{
        deliveryType = "on-demand"
    }}
}}
"""


def write(asked: Export, folder: Path) -> Made:
    """Write a module PACK/ of build.gradle and src/main/assets/MODEL/, and the memory that the variant takes."""
    variant = asked.variant("gguf", "onnx")
    beside = (TEMPLATE,) if variant.target == "gguf" else TEXT_SIDE
    own = asked.variant_files(variant)
    shared = [name for name in beside if name not in own.values()]
    files = own | asked.shared(*shared, *asked.manifest.license.files, CARD)
    pack = pack_name(asked.name)
    asked.copy(files, folder / pack / "src" / "main" / "assets" / asked.name)
    write_text(folder / pack / "build.gradle", _GRADLE.format(name=pack))
    write_text(folder / "memory.json", as_json(report(asked.manifest, variant)))
    differs: list[str] = []
    if (size := asked.size(files)) > LIMIT:
        differs.append(f"Its files have {size:,} bytes, and Play takes packs of {LIMIT:,}: choose a smaller variant.")
    use = (f"cp -r {pack} APP/", f"echo \"include ':{pack}'\" >> APP/settings.gradle",
           f"# in APP/app/build.gradle: android {{ assetPacks = [':{pack}'] }}")  # fmt: skip
    told = templated(asked.manifest, "the app's engine")
    return Made(variant.id, (*differs, *told, *left_behind(asked)), use)


def pack_name(name: str) -> str:
    """Return a name for a pack: a letter, then letters, digits and underlines."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
    return plain if plain[:1].isalpha() else f"model_{plain}"
