"""Make a checkpoint of a published model's exact shape with random weights (bf16), for benchmarks and catalogue builds.

    python benchmarks/make_model.py llama-3.2-1b FOLDER
    python benchmarks/make_model.py phi-3.5-mini FOLDER
    python benchmarks/make_model.py path/to/config.json FOLDER --layers 6 --text FOLDER_WITH_TOKENIZER

A name stands for the published config.json of that model; its tokenizer may not be redistributed, so without --text the
folder gets a small byte-level one, which leaves most rows of the embedding without a token.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from models import Shape, draw, safetensors_bytes, shapes, text_of
from text_side import write_json, write_text_side

SHARD_BYTES = 1 << 30
# Less variance in the blocks than a test's model: a deep one would drown every token in its quantisation's noise.
GAIN = 0.2

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "phi-3.5-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 8192,
        "vocab_size": 32064,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        # The published factors rise like these, from about 1 to 1.4 and from about 1 to 65.
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1 + 0.4 * i / 47 for i in range(48)],
            "long_factor": [65 ** (i / 47) for i in range(48)],
        },
        "sliding_window": 262144,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}


def main() -> None:
    """Write the checkpoint, one shard in memory at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help=f"{', '.join(CONFIGS)}, or a config.json")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="keep the first so many layers")
    parser.add_argument("--text", type=Path, help="a folder whose tokenizer and template the model gets")
    parser.add_argument("--gain", type=float, default=GAIN)
    parser.add_argument("--counts", action="store_true", help="a model that continues each token id with the next one")
    asked = parser.parse_args()
    fields = CONFIGS.get(asked.config) or json.loads(Path(asked.config).read_text())
    print(make(fields, asked.folder, layers=asked.layers, text=asked.text, gain=asked.gain, counts=asked.counts))


def make(
    fields: Mapping[str, Any],
    folder: Path,
    *,
    layers: int | None = None,
    text: Path | None = None,
    gain: float = GAIN,
    counts: bool = False,
) -> Path:
    """Write the checkpoint that a config.json describes and return its folder.

    With ``counts``, what the blocks say is drowned by the embedding, and the head knows each row of it by the next id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if counts:
        fields, gain = {**fields, "tie_word_embeddings": False}, gain / 10
    if layers:
        fields = cut(fields, layers)
    prefix = "language_model." if "text_config" in fields else ""
    weight_map: dict[str, str] = {}
    for number, part in enumerate(_shards(shapes(fields))):
        file = f"model-{number:05}.safetensors"
        tensors = {prefix + name: _values(name, shape, gain, fields) for name, shape in part.items()}
        if counts and "lm_head.weight" in part:
            embedding = "model.embed_tokens.weight"
            tensors["lm_head.weight"] = 0.1 * np.roll(
                _values(embedding, part["lm_head.weight"], gain, fields), 1, axis=0
            )
        (folder / file).write_bytes(safetensors_bytes(tensors, "bf16"))
        weight_map |= dict.fromkeys(tensors, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_json(folder / "config.json", fields)
    if text is None:
        write_text_side(folder, text_of(fields).get("vocab_size", 262208), add_bos=False)
    else:
        for path in text.iterdir():
            if "token" in path.name or "template" in path.name:
                shutil.copyfile(path, folder / path.name)
    return folder


def _values(name: str, shape: Shape, gain: float, fields: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return a tensor's values: blocks that speak softly, and embeddings and heads whose logits have clear winners."""
    clear = 6.0 if fields["architectures"][0].startswith("Gemma") else 1.0  # a test's Gemma has faint embeddings
    return draw(name, shape, 1, gain if name.startswith("model.layers.") else clear, fields)


def cut(fields: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return the config of a model's first layers, of which half at most read the keys of others as its last do."""
    if "text_config" in fields:
        return {**fields, "text_config": cut(fields["text_config"], layers)}
    short = {**fields, "num_hidden_layers": min(layers, fields["num_hidden_layers"])}
    for name in ("layer_types", "no_rope_layers"):
        if name in short:
            short[name] = short[name][:layers]
    if "full_attn_idxs" in short:
        short["full_attn_idxs"] = [index for index in short["full_attn_idxs"] if index < layers]
    if "num_kv_shared_layers" in short:
        short["num_kv_shared_layers"] = min(short["num_kv_shared_layers"], layers // 2)
    return short


def _shards(all_shapes: Mapping[str, Shape]) -> Iterator[dict[str, Shape]]:
    part: dict[str, Shape] = {}
    size = 0
    for name, shape in all_shapes.items():
        tensor = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        if part and size + tensor > SHARD_BYTES:
            yield part
            part, size = {}, 0
        part[name] = shape
        size += tensor
    yield part


if __name__ == "__main__":
    main()
