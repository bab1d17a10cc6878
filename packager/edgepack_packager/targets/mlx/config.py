"""The JSON files beside the weights: config.json in the spelling of mlx-lm and of transformers 4 and 5."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgepack.decoder import LinearScaling, Llama3Scaling, LongRopeScaling, Rope
from edgepack.errors import UnsupportedModelError
from edgepack_packager.targets import Model, Text
from edgepack_packager.targets.mlx.layout import QUANTIZED, float_type
from edgepack_packager.targets.mlx.quantize import GROUP

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.model",
)

# What a source's config may add: facts that change nothing in how mlx-lm computes. Everything else comes from the
# decoder, so that a field that the source misspells, or one that names code to run, has no way in.
_CARRIED = ("attention_dropout", "initializer_range", "pad_token_id", "pretraining_tp", "use_cache")

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def config_json(model: Model, scheme: str) -> bytes:
    """Return config.json: keys sorted, four-space indent, a final newline."""
    decoder = model.decoder
    config: dict[str, Any] = {key: model.config[key] for key in _CARRIED if key in model.config}
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": decoder.n_vocab,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.n_layers,
        "num_attention_heads": decoder.n_heads,
        "num_key_value_heads": decoder.n_kv_heads,
        "head_dim": decoder.head_dim,
        "max_position_embeddings": decoder.context,
        "hidden_act": decoder.activation,
        "rms_norm_eps": decoder.norm_eps,
        "attention_bias": decoder.qkv_bias,
        "mlp_bias": decoder.mlp_bias,
        "tie_word_embeddings": decoder.tied,
    }
    config |= _rope(decoder.ropes[0])
    config["torch_dtype"] = config["dtype"] = _DTYPES[float_type(scheme, model.dtype)]
    if scheme in QUANTIZED:
        quantization = {"group_size": GROUP, "bits": QUANTIZED[scheme], "mode": "affine"}
        config["quantization"] = config["quantization_config"] = quantization
    if model.text is not None:
        config |= {"bos_token_id": model.text.bos, "eos_token_id": list(model.text.stops)}
    return _dump(config)


def _rope(rope: Rope) -> dict[str, Any]:
    """mlx-lm and transformers 4 read the first two keys, transformers 5 the third; each ignores the other spelling."""
    scaling = _scaling(rope)
    parameters = {"rope_theta": rope.theta, **(scaling or {"rope_type": "default"})}
    return {"rope_theta": rope.theta, "rope_scaling": scaling, "rope_parameters": parameters}


def _scaling(rope: Rope) -> dict[str, Any] | None:
    match rope.scaling:
        case LongRopeScaling():
            raise UnsupportedModelError("MLX payloads with longrope are not built.")
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "type": "linear", "factor": factor}
        case Llama3Scaling(factor, low, high, context):
            return {
                "rope_type": "llama3",
                "type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }


def text_files(text: Text) -> Mapping[str, bytes]:
    """Return the tokenizer's files by name, as they are but for the stop ids of generation_config.json.

    mlx-lm takes the stop ids of generation_config.json before those of config.json, so it must name all of them.
    """
    files = {name: text.files[name] for name in TEXT_FILES if name in text.files}
    generation = files.get("generation_config.json")
    if generation is not None and text.stops:
        fields = json.loads(generation)
        named = fields.get("eos_token_id")
        if set(named if isinstance(named, list) else [named]) != set(text.stops):
            files["generation_config.json"] = _dump(fields | {"eos_token_id": list(text.stops)})
    return files


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(sorted(value.items())), indent=4, ensure_ascii=False).encode() + b"\n"
