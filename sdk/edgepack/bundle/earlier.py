"""Reads what earlier schemas said otherwise: a bundle that was sealed once can be loaded from then on.

Schema 1 described a decoder all of whose layers are alike but for their ropes and windows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from edgepack.bundle.bounds import MAX_LAYERS, Count, HeadSize, Layers, Positive, Width
from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp, arranged
from edgepack.bundle.exported import Exported
from edgepack.bundle.rope import Rope


class _Positions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rope: Rope | None
    window: Count | None = None


class _Decoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    family: str
    architecture: str
    n_layers: Layers
    hidden_size: Width
    n_heads: Width
    n_kv_heads: Width
    head_dim: HeadSize
    intermediate_size: Width
    n_vocab: Width
    context: Count
    trained_context: Count
    norm_eps: Positive
    pattern: Annotated[tuple[_Positions, ...], msgspec.Meta(min_length=1, max_length=MAX_LAYERS)]
    tied: bool
    activation: Literal["silu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: Positive = 1.0
    attention_scale: Positive | None = None
    attention_softcap: Positive | None = None
    logits_softcap: Positive | None = None
    wide: bool = False
    exported: Exported | msgspec.UnsetType = msgspec.UNSET


class _Document(msgspec.Struct):
    decoder: _Decoder


def upgraded(data: bytes) -> bytes:
    """Return the bytes of a manifest of schema 1 as schema 2 says the same.

    Raises ``ValueError`` of msgspec for a decoder that schema 1 does not allow.
    """
    decoder = msgspec.json.decode(data, type=_Document).decoder
    fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    schema = msgspec.json.decode(fields["schema"], type=dict[str, Any])
    now = {"schema": schema | {"version": 2}, "decoder": _current(decoder)}
    return msgspec.json.encode(fields | now)


def _current(old: _Decoder) -> Decoder:
    def layer(positions: _Positions) -> Layer:
        return Layer(
            mixer=Attention(
                n_heads=old.n_heads,
                n_kv_heads=old.n_kv_heads,
                head_dim=old.head_dim,
                rope=positions.rope,
                window=positions.window,
                scale=old.attention_scale,
                softcap=old.attention_softcap,
                qk_norm="head" if old.qk_norm else None,
                qkv_bias=old.qkv_bias,
                output_bias=old.output_bias,
            ),
            mlp=Mlp(size=old.intermediate_size, activation=old.activation, bias=old.mlp_bias),
            norms="both" if old.post_norms else "before",
        )

    return Decoder(
        family=old.family,
        architecture=old.architecture,
        n_layers=old.n_layers,
        hidden_size=old.hidden_size,
        n_vocab=old.n_vocab,
        context=old.context,
        trained_context=old.trained_context,
        norm_eps=old.norm_eps,
        **arranged([layer(old.pattern[index % len(old.pattern)]) for index in range(old.n_layers)]),
        tied=old.tied,
        embedding_scale=old.embedding_scale,
        logits_softcap=old.logits_softcap,
        wide=old.wide,
        exported=old.exported,
    )
