"""Where llama.cpp put a model's layers, from what it logs while it loads: the C interface has no question for it.

That a device is present, or that layers were asked for on it, proves nothing: llama.cpp counts a layer as offloaded
before it has a device for it. What it writes for each layer is the device of the buffers that its weights went to.
Source: ``llama_model_base::load_tensors`` in src/llama-model.cpp of the builds that ``library`` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

_LAYER: Final = re.compile(r"layer +(\d+) assigned to device (\S+?),")
_BUFFER: Final = re.compile(r"(\S+) model buffer size =")


def device_of(lines: Iterable[str], families: Mapping[str, str], n_layers: int) -> str:
    """Return what all layers and the output were placed on: "metal", "cuda", or else "cpu".

    ``families`` maps the names of the engine's accelerators to what they are ("CUDA0": "cuda"). "cpu" also where one
    layer stayed behind, or where none of the accelerators holds any weights.
    """
    layers: dict[int, str] = {}
    filled: set[str] = set()
    for line in lines:
        if layer := _LAYER.search(line):
            layers[int(layer[1])] = families.get(layer[2], "cpu")
        elif buffer := _BUFFER.search(line):
            # The buffer of a device bears its name: CUDA0, MTL0_Mapped. CUDA_Host is the host's.
            filled.add(families.get(buffer[1].partition("_")[0], "cpu"))
    placed = set(layers.values())
    if len(layers) < n_layers + 1 or len(placed) != 1:
        return "cpu"
    device = placed.pop()
    return device if device in filled else "cpu"
