"""The key-value pairs that describe a decoder, as llama.cpp's converter writes them for LlamaForCausalLM."""

from __future__ import annotations

from edgepack.decoder import Decoder, LinearScaling, Rope
from edgepack.errors import UnsupportedModelError
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf.header import F32, U32, Value
from edgepack_packager.targets.gguf.layout import ALIGNMENT
from edgepack_packager.targets.gguf.recipe import SCHEMES
from edgepack_packager.targets.gguf.vocabulary import vocabulary
from edgepack_packager.weights import Float32

# GGML_QNT_VERSION of ggml.h: the version of the block formats
_QUANTIZATION_VERSION = 2


def metadata(model: Model, scheme: str) -> dict[str, Value]:
    """Return all keys of a file, in the order in which they are written. No time and no path is among them.

    Raises ``UnsupportedModelError`` for what the architecture or llama.cpp's tokenizers cannot express.
    """
    general: dict[str, Value] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": model.name,
        "general.alignment": U32(ALIGNMENT),
        "general.quantization_version": U32(_QUANTIZATION_VERSION),
        "general.file_type": U32(SCHEMES[scheme].file_type),
    }
    return general | _architecture(model.decoder) | vocabulary(model)


def rope_factors(rope: Rope) -> Float32:
    """Return what llama.cpp divides each rotation's angle by: the unscaled over the scaled frequency, [dim / 2]."""
    return Rope(theta=rope.theta, dim=rope.dim).frequencies() / rope.frequencies()


def _architecture(decoder: Decoder) -> dict[str, Value]:
    if decoder.ropes[0].dim != decoder.head_dim:
        raise UnsupportedModelError(
            f"GGUF's llama architecture rotates whole heads; this model rotates {decoder.ropes[0].dim} of "
            f"{decoder.head_dim} elements."
        )
    keys: dict[str, Value] = {
        "llama.block_count": U32(decoder.n_layers),
        "llama.context_length": U32(decoder.context),
        "llama.embedding_length": U32(decoder.hidden_size),
        "llama.feed_forward_length": U32(decoder.intermediate_size),
        "llama.attention.head_count": U32(decoder.n_heads),
        "llama.attention.head_count_kv": U32(decoder.n_kv_heads),
        "llama.attention.layer_norm_rms_epsilon": F32(decoder.norm_eps),
        "llama.attention.key_length": U32(decoder.head_dim),
        "llama.attention.value_length": U32(decoder.head_dim),
        "llama.rope.freq_base": F32(decoder.ropes[0].theta),
        "llama.rope.dimension_count": U32(decoder.ropes[0].dim),
        "llama.vocab_size": U32(decoder.n_vocab),
    }
    if isinstance(decoder.ropes[0].scaling, LinearScaling):
        keys["llama.rope.scaling.type"] = "linear"
        keys["llama.rope.scaling.factor"] = F32(decoder.ropes[0].scaling.factor)
    return keys
