"""Makes adapters as PEFT and mlx-lm save them, with numpy only, and says by the plain formula what they mean."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from models import safetensors_bytes
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

PEFT_CONFIG: Mapping[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "acme/base",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj"],
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_dora": False,
    "use_rslora": False,
    "layer_replication": None,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}


def draw(name: str, *shape: int, seed: int = 0, deviation: float = 0.1) -> Float32:
    """Return the values of a tensor, which follow from its name, its shape and the seed."""
    normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    return np.float32(deviation) * normal


def write_peft(
    folder: Path,
    tensors: Mapping[str, Float32],
    config: Mapping[str, object] | None = None,
    *,
    prefix: str = "base_model.model.",
    dtype: str = "f32",
) -> Path:
    """Write tensors, by their names without the prefix, and a config.json of ``PEFT_CONFIG`` with other fields."""
    folder.mkdir(parents=True)
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(named, dtype))
    (folder / "adapter_config.json").write_text(json.dumps({**PEFT_CONFIG, **(config or {})}))
    return folder


def write_mlx(folder: Path, tensors: Mapping[str, Float32], config: Mapping[str, object] | None = None) -> Path:
    """Write tensors as mlx-lm does, with a rank of 4 and a scale of 2 where the fields say nothing else."""
    folder.mkdir(parents=True)
    said = {
        "fine_tune_type": "lora",
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0},
        "model": "acme/base",
    }
    (folder / "adapters.safetensors").write_bytes(safetensors_bytes(tensors, "f32"))
    (folder / "adapter_config.json").write_text(json.dumps({**said, **(config or {})}))
    return folder


def pair(module: str, rows: int, columns: int, rank: int = 4, seed: int = 0) -> dict[str, Float32]:
    """Return lora_A and lora_B of a linear module, by PEFT's names."""
    names = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
    return {names[0]: draw(names[0], rank, columns, seed=seed), names[1]: draw(names[1], rows, rank, seed=seed)}


def merged(
    weight: Float32,
    tensors: Mapping[str, Float32],
    module: str,
    scale: float,
    magnitude: Float32 | None = None,
) -> NDArray[np.float64]:
    """Return W + scale B A, in float64; with a magnitude its rows have that length."""
    a, b = (tensors[f"{module}.lora_{letter}.weight"].astype(np.float64) for letter in "AB")
    result: NDArray[np.float64] = weight.astype(np.float64) + scale * (b @ a)
    if magnitude is None:
        return result
    lengths: NDArray[np.float64] = np.linalg.norm(result, axis=1, keepdims=True)
    return result / lengths * magnitude[:, None]
