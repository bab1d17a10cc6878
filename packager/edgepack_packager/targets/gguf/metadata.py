"""The key-value pairs that describe a decoder, as llama.cpp's converter writes them for its architecture."""

from __future__ import annotations

import re
from math import log

import numpy as np

from edgepack.bundle.decoder import Attention, Decoder, Delta
from edgepack.bundle.rope import LinearScaling, LongRopeScaling, YarnScaling
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf.architecture import Architecture, choose
from edgepack_packager.targets.gguf.features import YARN_TURNS, ropes
from edgepack_packager.targets.gguf.header import F32, U32, Value
from edgepack_packager.targets.gguf.layout import ALIGNMENT
from edgepack_packager.targets.gguf.recipe import SCHEMES
from edgepack_packager.targets.gguf.tensors import stream_factor
from edgepack_packager.targets.gguf.vocabulary import vocabulary
from edgepack_packager.text.side import Text

# GGML_QNT_VERSION of ggml.h: the version of the block formats
_QUANTIZATION_VERSION = 2

# enum llama_pooling_type of llama.h
_POOLING = {"mean": 1, "first": 2, "last": 3}

# In a model named "phi-3" or "phi3", llama.cpp lets every added token but the second three swallow the white space
# that follows, and fails where one of all four is missing.
_PHI3_TOKENS = frozenset({"</s>", "<unk>", "<s>", "<|endoftext|>"})
_PHI3_KEPT = _PHI3_TOKENS - {"</s>"}


def metadata(model: Model, scheme: str) -> dict[str, Value]:
    """Return all keys of a file, in the order in which they are written. No time and no path is among them.

    Raises ``UnsupportedModelError`` for what llama.cpp's architectures or its tokenizers cannot express.
    """
    architecture = choose(model.decoder)
    words = vocabulary(model)
    general: dict[str, Value] = {
        "general.architecture": architecture.name,
        "general.type": "model",
        "general.name": _name(model.name, model.text),
        "general.alignment": U32(ALIGNMENT),
        "general.quantization_version": U32(_QUANTIZATION_VERSION),
        "general.file_type": U32(SCHEMES[scheme].file_type),
    }
    keys = (
        _sizes(model.decoder, architecture)
        | _positions(model.decoder, architecture)
        | _caps(model.decoder, architecture)
    )
    keys |= _scales(model.decoder, architecture)
    if model.embedding is not None:
        keys["pooling_type"] = U32(_POOLING[model.embedding.pooling])
    return general | {f"{architecture.name}.{key}": value for key, value in keys.items()} | words


def _name(name: str, text: Text | None) -> str:
    """Return the model's name, spelled so that llama.cpp tokenises as tokenizer.json does."""
    added = {
        token["content"]: bool(token.get("rstrip"))
        for token in (text.tokenizer if text else {}).get("added_tokens") or []
    }
    if added.keys() >= _PHI3_TOKENS and all(strips == (token not in _PHI3_KEPT) for token, strips in added.items()):
        return name
    return re.sub("(phi)-?(3)", r"\1 \2", name, flags=re.IGNORECASE)


def _sizes(decoder: Decoder, architecture: Architecture) -> dict[str, Value]:
    attention = decoder.attentions[0]
    more: dict[str, Value] = {}
    mixers = [layer.mixer for layer in decoder.layers]
    # by the zeros llama.cpp knows which layers have convolutions
    kv_heads = [each.n_kv_heads if isinstance(each, Attention) else 0 for each in mixers]
    if convolving := decoder.convolving:
        more["shortconv.l_cache"] = U32(next(iter(convolving.values())).length)
    if correcting := decoder.correcting:
        kv_heads = [attention.n_kv_heads]
        more |= _delta(decoder, next(iter(correcting.values())))
    if architecture.by_layer:
        attention = next(each for each in decoder.attentions if not each.window)
        more |= _by_layer(decoder)
    if decoder.norm:
        more["use_parallel_residual"] = False
    epsilon = "layer_norm_epsilon" if decoder.norm else "layer_norm_rms_epsilon"
    return {
        "block_count": U32(decoder.n_layers),
        "context_length": U32(decoder.context),
        "embedding_length": U32(decoder.hidden_size),
        "feed_forward_length": _each([layer.mlp.size for layer in decoder.layers]),
        "attention.head_count": U32(attention.n_heads),
        "attention.head_count_kv": _each(kv_heads),
        f"attention.{epsilon}": F32(decoder.norm_eps * stream_factor(decoder) ** 2),
        "attention.key_length": U32(attention.head_dim),
        "attention.value_length": U32(attention.head_dim),
        "vocab_size": U32(decoder.n_vocab),
        **more,
    }


def _each(numbers: list[int]) -> Value:
    """Return the number of all layers, or the list of their numbers."""
    return U32(numbers[0]) if len(set(numbers)) == 1 else np.array(numbers, np.int32)


def _by_layer(decoder: Decoder) -> dict[str, Value]:
    local = next(each for each in decoder.attentions if each.window)
    _, rope = ropes(decoder)
    return {
        "attention.shared_kv_layers": U32(decoder.n_layers - len(decoder.keeping)),
        "attention.key_length_swa": U32(local.head_dim),
        "attention.value_length_swa": U32(local.head_dim),
        "rope.dimension_count_swa": U32(rope.dim),
        "embedding_length_per_layer_input": U32(decoder.inputs),
    }


def _delta(decoder: Decoder, delta: Delta) -> dict[str, Value]:
    """The three sections say which position of an image turns a pair, pair by pair in turns; in a text all are one."""
    pairs = decoder.ropes[0].dim // 2
    return {
        "rope.dimension_sections": np.array([*(-(-(pairs - turn) // 3) for turn in range(3)), 0], np.int32),
        "attention.recurrent_layers": np.array(
            [int(index in decoder.correcting) for index in range(decoder.n_layers)], np.int32
        ),
        "ssm.conv_kernel": U32(delta.length),
        "ssm.inner_size": U32(delta.value_size),
        "ssm.state_size": U32(delta.key_dim),
        "ssm.time_step_rank": U32(delta.n_value_heads),
        "ssm.group_count": U32(delta.n_key_heads),
    }


def _positions(decoder: Decoder, architecture: Architecture) -> dict[str, Value]:
    rope, local_rope = ropes(decoder)
    keys: dict[str, Value] = {"rope.freq_base": F32(rope.theta), "rope.dimension_count": U32(rope.dim)}
    match rope.scaling:
        case LinearScaling(factor):
            keys["rope.scaling.type"] = "linear"
            keys["rope.scaling.factor"] = F32(factor)
        case LongRopeScaling(original_context=original):
            keys["rope.scaling.original_context_length"] = U32(original)
            keys["rope.scaling.attn_factor"] = F32(rope.magnitude)
        case YarnScaling():
            keys |= _yarn(rope.scaling)
    for temperature in decoder.temperatures:
        keys["attention.temperature_scale"] = F32(temperature.beta)
        keys["rope.scaling.original_context_length"] = U32(temperature.length)
    if architecture.period:
        windows = _windows(decoder, architecture)
        if any(windows):
            keys["attention.sliding_window"] = U32(_window(max(windows), architecture))
            keys["rope.freq_base_swa"] = F32(local_rope.theta)
        local = [window > 0 for window in windows]
        # Only where it differs from what llama.cpp assumes, as the converter does.
        if local != [(layer + 1) % architecture.period != 0 for layer in range(decoder.n_layers)]:
            keys["attention.sliding_window_pattern"] = np.array(local, np.int32)
    return keys


def _yarn(yarn: YarnScaling) -> dict[str, Value]:
    """llama.cpp multiplies cosine and sine by 1 + ln(factor) / 10 as well, where the factor is more than 1."""
    keys: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": F32(yarn.factor),
        "rope.scaling.original_context_length": U32(yarn.original_context),
        "rope.scaling.attn_factor": F32(yarn.magnitude / (1 + 0.1 * log(max(yarn.factor, 1)))),
    }
    if (yarn.beta_fast, yarn.beta_slow) != YARN_TURNS:
        keys["rope.scaling.yarn_beta_fast"] = F32(yarn.beta_fast)
        keys["rope.scaling.yarn_beta_slow"] = F32(yarn.beta_slow)
    return keys


def _windows(decoder: Decoder, architecture: Architecture) -> list[int]:
    """Return each layer's window, 0 for none. A window may be longer than the context, and then hides nothing."""
    windows = [attention.window or 0 for attention in decoder.attentions]
    return windows if any(windows) or not architecture.needs_window else [decoder.context] * decoder.n_layers


def _window(window: int, architecture: Architecture) -> int:
    """Return what a key says of a window. Of one to both sides llama.cpp halves it, without the position itself."""
    return max(1, 2 * (window - 1)) if architecture.both_sides else window


def _caps(decoder: Decoder, architecture: Architecture) -> dict[str, Value]:
    # Where layers differ llama.cpp assumes a cap of 30, and takes 0 for none.
    none = 0.0 if architecture.by_layer else None
    caps = {
        "attn_logit_softcapping": decoder.attentions[0].softcap,
        "final_logit_softcapping": decoder.logits_softcap or none,
    }
    return {key: F32(cap) for key, cap in caps.items() if cap is not None}


def _scales(decoder: Decoder, architecture: Architecture) -> dict[str, Value]:
    if not architecture.scales:
        return {}
    return {
        "attention.scale": F32(architecture.score_scale(decoder, decoder.attentions[0])),
        "embedding_scale": F32(architecture.embedding_scale(decoder)),
        "residual_scale": F32(decoder.layer(0).residual_scale),
        "logit_scale": F32(1 / decoder.logits_scale),  # a divisor
    }
