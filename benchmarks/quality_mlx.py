"""A payload that mlx-lm quantised as a checkpoint of float32, for ``quality.py``, by mlx-lm on the processor.

    python quality_mlx.py FOLDER OUT

A worker that runs in mlx-lm's own environment. Scales and biases become float32 before they are multiplied with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.utils import dequantize_model


def main() -> None:
    """Load, dequantise, save."""
    folder, out = map(Path, sys.argv[1:])
    mx.set_default_device(mx.cpu)
    model = load(str(folder))[0]
    model.set_dtype(mx.float32)
    tensors = dict(tree_flatten(dequantize_model(model).parameters()))
    out.mkdir()
    mx.save_safetensors(str(out / "model.safetensors"), tensors, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (out / "config.json").write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
