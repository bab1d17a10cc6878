"""A small bundle with a variant for each of the systems that take one, for the tests of exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from small_bundle import entry, variant, write

WEIGHTS = {
    "gguf-q4_0": {"model.gguf": b"GGUF four bits"},
    "gguf-f16": {"model.gguf": b"GGUF sixteen bits"},
    "mlx-4bit": {
        "config.json": b'{"eos_token_id": 257}',
        "model.safetensors": b"tensors",
        "tokenizer_config.json": b'{"eos_token": "</s>", "own": true}',
    },
    "onnx-int4": {
        "genai_config.json": b'{"model": {"eos_token_id": [257]}}',
        "model.onnx": b"graph",
        "model.onnx.data": b"data",
    },
}
BITS = {"gguf-f16": 16.0}


def small(folder: Path, ids: tuple[str, ...] = tuple(WEIGHTS), unproven: tuple[str, ...] = (), **changes: Any) -> Path:
    """Write the bundle with these variants; ``changes`` are of its manifest."""
    variants = [variant(id, files=[entry(name, data) for name, data in WEIGHTS[id].items()]) for id in ids]
    for each in variants:
        each["quantization"]["bits"] = BITS.get(each["id"], 4.5)
        each["proof"] = None if each["id"] in unproven else each["proof"]
    write(folder, variants, **changes)
    for id in ids:
        place = folder / "variants" / id
        (place / "model.bin").unlink()
        for name, data in WEIGHTS[id].items():
            (place / name).write_bytes(data)
    return folder


def names(folder: Path) -> set[str]:
    """The paths of all files of a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def record(folder: Path) -> dict[str, Any]:
    """What an export says of itself."""
    found: dict[str, Any] = json.loads((folder / "edgepack-export.json").read_bytes())
    return found
