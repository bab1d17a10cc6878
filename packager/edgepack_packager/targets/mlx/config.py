"""The JSON files beside the weights: config.json in the spelling of mlx-lm and of transformers 4 and 5."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Decoder
from edgepack_packager.targets import Model
from edgepack_packager.targets.mlx.forms import Affine
from edgepack_packager.targets.mlx.layout import QUANTIZED, float_type, packings, usual
from edgepack_packager.targets.mlx.model_types import attention_scalar, choose
from edgepack_packager.targets.mlx.rope import rope_fields
from edgepack_packager.text.side import Text

# Without tokenizer.json, which lies once in a bundle and is large.
TEXT_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)

# What a source's config may add: facts that change nothing in how mlx-lm computes. Everything else comes from the
# decoder, so that a field that the source misspells, or one that names code to run, has no way in.
_CARRIED = ("attention_dropout", "initializer_range", "pad_token_id", "pretraining_tp", "use_cache")

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


def config_json(model: Model, scheme: str) -> bytes:
    """Return config.json: keys sorted, four-space indent, a final newline.

    edgepack's runtime computes with the manifest's numbers, and refuses a payload whose file says something else.
    """
    decoder, kind = model.decoder, choose(model.decoder)
    attention, mlp = decoder.attentions[0], decoder.layer(0).mlp
    config: dict[str, Any] = {key: model.config[key] for key in _CARRIED if key in model.config}
    config |= {
        "architectures": [kind.architecture or decoder.architecture],
        "model_type": kind.name,
        "vocab_size": decoder.n_vocab,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": mlp.size,
        "num_hidden_layers": decoder.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "max_position_embeddings": decoder.context,
        "hidden_act": _ACTIVATIONS[mlp.activation],
        "layer_norm_eps" if decoder.norm else "rms_norm_eps": decoder.norm_eps,
        "attention_bias": attention.qkv_bias,
        "mlp_bias": mlp.bias,
        "tie_word_embeddings": decoder.tied,
    }
    config |= _layer_fields(decoder) | _score_fields(decoder) | rope_fields(decoder) | kind.fields(decoder)
    config["torch_dtype"] = config["dtype"] = _DTYPES[float_type(decoder, scheme, model.dtype)]
    if scheme in QUANTIZED:
        config["quantization"] = config["quantization_config"] = _quantization(model, scheme)
    if model.text is not None:
        config |= {"bos_token_id": model.text.bos, "eos_token_id": list(model.text.stops)}
    return _dump(config)


def _quantization(model: Model, scheme: str) -> dict[str, Any]:
    """Say how matrices are quantised, and of each that is so otherwise than most, how."""

    def of(one: Affine) -> dict[str, Any]:
        return {"group_size": one.group, "bits": one.bits, "mode": "affine"}

    most, own = usual(scheme), packings(model.decoder, scheme, model.forms)
    return of(most) | {module: of(packing) for module, packing in own.items() if packing != most}


def _layer_fields(decoder: Decoder) -> dict[str, Any]:
    """Say which layers have a window and which a rope, where not all are alike."""
    layers = decoder.attentions
    fields: dict[str, Any] = {}
    if any(layer.window for layer in layers):
        fields["use_sliding_window"] = True
        fields["sliding_window"] = max(layer.window or 0 for layer in layers)
        fields["layer_types"] = ["sliding_attention" if layer.window else "full_attention" for layer in layers]
    if not all(layer.rope for layer in layers):
        fields["no_rope_layers"] = [int(bool(layer.rope)) for layer in layers]  # 1: this layer has one
    return fields | _convolution_fields(decoder) | _delta_fields(decoder)


def _convolution_fields(decoder: Decoder) -> dict[str, Any]:
    """Say which layers have a short convolution, in LFM2's words; the MLP's size is final here."""
    if not (convolving := decoder.convolving):
        return {}
    one = next(iter(convolving.values()))
    return {
        "layer_types": ["conv" if index in convolving else "full_attention" for index in range(decoder.n_layers)],
        "conv_L_cache": one.length,
        "conv_bias": one.bias,
        "norm_eps": decoder.norm_eps,
        "block_dim": decoder.hidden_size,
        "block_ff_dim": decoder.layer(0).mlp.size,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    }


def _delta_fields(decoder: Decoder) -> dict[str, Any]:
    """Say which layers have a delta rule, in Qwen3.5's words."""
    if not (correcting := decoder.correcting):
        return {}
    one = next(iter(correcting.values()))
    kinds = ["linear_attention" if index in correcting else "full_attention" for index in range(decoder.n_layers)]
    return {
        "layer_types": kinds,
        "linear_num_key_heads": one.n_key_heads,
        "linear_num_value_heads": one.n_value_heads,
        "linear_key_head_dim": one.key_dim,
        "linear_value_head_dim": one.value_dim,
        "linear_conv_kernel_dim": one.length,
    }


def _score_fields(decoder: Decoder) -> dict[str, Any]:
    """A null is no absent softcap: transformers fills an absent one in."""
    fields: dict[str, Any] = {}
    attention = decoder.attentions[0]
    if attention.scale is not None:
        fields["query_pre_attn_scalar"] = attention_scalar(decoder)
    caps = {"attn_logit_softcapping": attention.softcap, "final_logit_softcapping": decoder.logits_softcap}
    return fields | caps if any(caps.values()) else fields


def text_files(text: Text) -> Mapping[str, bytes]:
    """Return the small files of a text side by name, as they are but for the stop ids of generation_config.json.

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
