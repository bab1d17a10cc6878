"""What Gemma 2 and 3 share: norms that store their gain less one, four of them a layer, and scaled embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack.bundle.rope import Rope
from edgepack.errors import UnsupportedModelError
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import FILE, agreed, count, flag, only, positive
from edgepack_packager.families.llama_like import Heads, stored_name
from edgepack_packager.families.mapping import Source

_NORMS: Mapping[str, str] = {"mlp.norm": "pre_feedforward_layernorm"}

BODY = "Gemma3TextModel"
"""The class that may see what comes after: it writes nothing."""

_SIGNIFICAND_BITS: Mapping[str, int] = {"float32": 24, "float16": 11, "bfloat16": 8}


def refuse_others(config: Mapping[str, Any]) -> None:
    """Refuse what transformers can read from a Gemma's config.json and edgepack does not build."""
    stated = {name: config[name] for name in ("hidden_activation", "hidden_act") if config.get(name) is not None}
    agreed(stated)
    for name in stated:
        only(config, name, "gelu_pytorch_tanh")
    if config.get("architectures") != [BODY]:
        only(config, "use_bidirectional_attention", False)


def embedding_scale(config: Mapping[str, Any], hidden_size: int) -> float:
    """Return sqrt(hidden size) as transformers multiplies by it: rounded to the type that the weights are loaded in.

    That is ``torch_dtype``, or ``dtype`` in version 5, and float32 where the file names none.
    """
    stated = {name: config[name] for name in ("torch_dtype", "dtype") if config.get(name) is not None}
    dtype = agreed(stated) if stated else "float32"
    if not isinstance(dtype, str) or dtype not in _SIGNIFICAND_BITS:
        raise UnsupportedModelError(
            f"{FILE}: {next(iter(stated))} is {dtype!r}; edgepack builds {', '.join(_SIGNIFICAND_BITS)}."
        )
    bits = _SIGNIFICAND_BITS[dtype]
    significand, exponent = math.frexp(math.sqrt(hidden_size))
    # round() takes ties to even, as the conversion does.
    return math.ldexp(round(math.ldexp(significand, bits)), exponent - bits)


def layer(
    config: Mapping[str, Any],
    heads: Heads,
    rope: Rope,
    window: int | None = None,
    *,
    softcap: float | None,
    qk_norm: Literal["head"] | None,
) -> Layer:
    """Return a layer of a Gemma: four norms, biases in its attention or none, and gelu."""
    bias = flag(config, "attention_bias", default=False)
    mixer = Attention(
        **heads,
        rope=rope,
        window=window,
        scale=_attention_scale(config, heads["head_dim"]),
        softcap=softcap,
        qk_norm=qk_norm,
        qkv_bias=bias,
        output_bias=bias,
    )
    mlp = Mlp(size=count(config, "intermediate_size"), activation="gelu_tanh")
    return Layer(mixer=mixer, mlp=mlp, norms="both")


def _attention_scale(config: Mapping[str, Any], head_dim: int) -> float | None:
    """Return query_pre_attn_scalar ** -0.5, None where that is the usual scale of the head dimension."""
    scalar = positive(config, "query_pre_attn_scalar")
    return None if scalar == head_dim else scalar**-0.5


def source(decoder: Decoder, name: str) -> Source:
    """Say where a Gemma checkpoint keeps a canonical tensor, and that a norm's gain is one more than what it stores."""
    return Source(stored_name(name, {**llama_like.MODULES, **_NORMS}), plus=1.0 if name.endswith("norm") else 0.0)
