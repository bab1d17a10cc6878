"""What a GGUF file's metadata say of a model, in the words of a config.json, so that a family reads it as any other.

An architecture is a fixed graph with a few keys. Source of what each key means, and of what holds without it:
llama.cpp's src/models/<name>.cpp. A key that is not known here may change the model, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgepack.bundle.rope import Llama3Scaling, Rope
from edgepack.errors import UnsupportedModelError
from edgepack_packager.checkpoint.gguf.file import GgufFile
from edgepack_packager.source.gguf.keys import Keys, damaged, unsupported

Config = dict[str, Any]

_CLASSES: Mapping[str, tuple[str, str]] = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "phi3": ("Phi3ForCausalLM", "phi3"),
    "smollm3": ("SmolLM3ForCausalLM", "smollm3"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}
_KNOWN = frozenset(
    {
        *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.layer_norm_rms_epsilon", "attention.causal", "attention.sliding_window"),
        *("attention.sliding_window_pattern", "attn_logit_softcapping", "final_logit_softcapping"),
        *("rope.dimension_count", "rope.freq_base", "rope.freq_base_swa", "rope.scale_linear"),
        *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor"),
        *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
        *("expert_count", "expert_used_count", "tensor_data_layout"),
    }
)
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}

# With so many layers llama.cpp takes a Gemma for the one of 27 B, whose scores have a scale of their own.
_OF_27B = {"gemma2": 46, "gemma3": 62}

_FREQUENCIES, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_MAX_PAIRS = 1 << 13


def read(file: GgufFile) -> Config:
    """Return the config.json of a file.

    Raises ``UnsupportedModelError`` for an architecture, or a key of one, that is not built, ``SourceError`` for a file
    whose metadata lack something or contradict its tensors.
    """
    keys = Keys(file)
    _check_kind(keys)
    heads, hidden = keys.count("attention.head_count"), keys.count("embedding_length")
    head_dim = keys.count("attention.key_length", hidden // heads if heads else 0)
    if not head_dim or keys.count("attention.value_length", head_dim) != head_dim:
        raise unsupported(file.path, f"has heads of {head_dim} elements for keys, and of another size for values")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise damaged(file.path, "lacks the tensor token_embd.weight")
    names, kind = _CLASSES[keys.architecture]
    config: Config = {
        "architectures": [names],
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": keys.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": keys.count("feed_forward_length"),
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": keys.count("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "torch_dtype": _DTYPES[file.dtype],
        **_biases(file),
    }
    if (rotated := keys.count("rope.dimension_count", head_dim)) != head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
    if scaling := _scaling(keys, config, rotated):
        config["rope_scaling"] = scaling
    for role in ("bos", "eos"):
        if (token := keys.id(role)) is not None:
            config[f"{role}_token_id"] = token
    return config | _SPECIAL.get(keys.architecture, _nothing)(keys, config)


def _check_kind(keys: Keys) -> None:
    path, name = keys.file.path, keys.architecture
    kind = keys.text("general.type") or "model"
    if kind != "model":
        raise unsupported(path, f"is no model, but by its general.type a part of one: {kind!r}")
    if name not in _CLASSES:
        raise UnsupportedModelError(
            f"{path} has the architecture {name!r}, which edgepack does not build from GGUF files.",
            hint=f"It builds: {', '.join(sorted(_CLASSES))}.",
        )
    if keys.count("expert_count", 0):
        raise unsupported(path, "holds a mixture of experts, which edgepack does not build")
    if not keys.flag("attention.causal", True):
        raise unsupported(path, "holds a model that sees the tokens after each one, and so writes no text")
    stated = [*keys.file.keys, *keys.file.arrays]
    ours = [key.removeprefix(f"{name}.") for key in stated if key.startswith(f"{name}.")]
    if unknown := sorted(set(ours) - _KNOWN):
        raise unsupported(path, f"has the key {name}.{unknown[0]}, which edgepack does not know")


def _biases(file: GgufFile) -> Config:
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }


def _scaling(keys: Keys, config: Config, rotated: int) -> Config | None:
    kind = keys.text("rope.scaling.type")
    tables = keys.file.tensors
    if _LONG in tables or _SHORT in tables:
        return {
            "rope_type": "longrope",
            "long_factor": _table(keys.file, _LONG, rotated),
            "short_factor": _table(keys.file, _SHORT, rotated),
            "attention_factor": keys.number("rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings": keys.count("rope.scaling.original_context_length"),
        }
    if kind not in (None, "none", "linear") or keys.number("rope.scaling.attn_factor", 1.0) != 1:
        raise unsupported(keys.file.path, f"stretches its rope as {kind!r} says, which edgepack does not build")
    if _FREQUENCIES in tables:
        return _llama3(keys.file, Rope(config["rope_theta"], rotated))
    if kind == "linear" or keys.has("rope.scale_linear"):
        factor = keys.number("rope.scaling.factor" if kind == "linear" else "rope.scale_linear")
        return {"rope_type": "linear", "factor": factor}
    return None


def _table(file: GgufFile, name: str, rotated: int) -> list[float]:
    info = file.tensors.get(name)
    if info is None or info.shape != (rotated // 2,) or info.shape[0] > _MAX_PAIRS:
        raise damaged(file.path, f"lacks the tensor {name}, with a number for each of {rotated // 2} pairs")
    return [float(str(value)) for value in file.rows(info, 0, info.shape[0])]


def _llama3(file: GgufFile, rope: Rope) -> Config | None:
    """Find what llama3's rule was told from the divisors that it gave, which is all that a file keeps.

    Its two limits are 1 and 4 wherever the rule is used, and its original context a power of two.
    """
    divisors = np.array(_table(file, _FREQUENCIES, rope.dim), np.float32)
    if (divisors == 1).all():
        return None
    factor, plain = float(f"{divisors.max():.6g}"), rope.frequencies()
    for context in (2**power for power in range(4, 21)):
        found = Rope(rope.theta, rope.dim, Llama3Scaling(factor, 1.0, 4.0, context)).frequencies()
        if np.allclose(plain / found, divisors, rtol=1e-5, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": context,
            }
    raise unsupported(file.path, f"divides the angles of its rope ({_FREQUENCIES}) by another rule than llama3's")


def _nothing(keys: Keys, config: Config) -> Config:
    return {}


def _phi3(keys: Keys, config: Config) -> Config:
    """llama.cpp reads the key of a window, and then ignores it; the model that the file was made from has one."""
    return {"sliding_window": keys.count("attention.sliding_window", 0) or None}


def _gemma(keys: Keys, config: Config) -> Config:
    """The embedding's scale is the root of its size as float32 has it, whatever type the model was trained in."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    wide = layers == _OF_27B[keys.architecture]
    return {
        "query_pre_attn_scalar": config["hidden_size"] // heads if wide else config["head_dim"],
        "hidden_activation": "gelu_pytorch_tanh",
        "torch_dtype": "float32",
    }


def _gemma2(keys: Keys, config: Config) -> Config:
    if keys.number("rope.freq_base_swa", config["rope_theta"]) != config["rope_theta"]:
        raise unsupported(keys.file.path, "gives the layers with a window a rope of their own")
    caps = {name: keys.number(name, cap) or None for name, cap in _CAPS.items()}
    window = keys.count("attention.sliding_window", 4096)
    return _gemma(keys, config) | caps | {"sliding_window": window, "layer_types": _kinds(keys, config, 2)}


_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def _gemma3(keys: Keys, config: Config) -> Config:
    window = keys.count("attention.sliding_window", 0)
    return _gemma(keys, config) | {
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10000.0),
        "sliding_window": window or config["max_position_embeddings"],
        "layer_types": _kinds(keys, config, 6 if window else 1),
    }


def _kinds(keys: Keys, config: Config, period: int) -> list[str]:
    """Return the kind of every layer: every so many there is one without window, unless the file says otherwise."""
    layers, key = config["num_hidden_layers"], "attention.sliding_window_pattern"
    if layers > 512:
        raise damaged(keys.file.path, f"has {layers} layers")
    if keys.name(key) in keys.file.arrays:
        local = [bool(each) for each in keys.array(key, 512)]
        if len(local) != layers:
            raise damaged(keys.file.path, f"tells of {len(local)} layers whether they have a window, and has {layers}")
    else:
        every = keys.count(key, period)
        local = [every == 0 or layer % every < every - 1 for layer in range(layers)]
    return ["sliding_attention" if each else "full_attention" for each in local]


_SPECIAL: Mapping[str, Callable[[Keys, Config], Config]] = {"phi3": _phi3, "gemma2": _gemma2, "gemma3": _gemma3}
