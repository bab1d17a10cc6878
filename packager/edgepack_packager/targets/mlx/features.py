"""What distinguishes a decoder from the plainest Llama, by name: the words for what a model file of mlx-lm can do."""

from __future__ import annotations

import math

from edgepack.bundle.decoder import Decoder, LinearScaling, Llama3Scaling, LongRopeScaling


def features(decoder: Decoder) -> frozenset[str]:
    """Return the names of the features that a decoder has."""
    marks = _block_marks(decoder) | _position_marks(decoder)
    return frozenset(name for name, has in marks.items() if has)


def _block_marks(decoder: Decoder) -> dict[str, bool]:
    # Gemma's scale is the root of the hidden size, rounded to as little as 8 bits.
    root = math.isclose(decoder.embedding_scale, math.sqrt(decoder.hidden_size), rel_tol=2.0**-8)
    scaled = decoder.embedding_scale != 1
    return {
        "untied": not decoder.tied,
        "head_dim": decoder.q_size != decoder.hidden_size,
        "qkv_bias": decoder.qkv_bias and not decoder.output_bias,
        "output_bias": decoder.output_bias and not decoder.qkv_bias,
        "attention_bias": decoder.qkv_bias and decoder.output_bias,
        "mlp_bias": decoder.mlp_bias,
        "qk_norm": decoder.qk_norm,
        "post_norms": decoder.post_norms,
        "gelu_tanh": decoder.activation == "gelu_tanh",
        "root_embedding_scale": scaled and root,
        "other_embedding_scale": scaled and not root,
        "attention_scale": not math.isclose(decoder.score_scale, decoder.head_dim**-0.5),
        "attention_softcap": decoder.attention_softcap is not None,
        "logits_softcap": decoder.logits_softcap is not None,
    }


def _position_marks(decoder: Decoder) -> dict[str, bool]:
    layers = [decoder.attention(layer) for layer in range(decoder.n_layers)]
    scalings = {type(rope.scaling) for rope in decoder.ropes}
    windows = {layer.window for layer in layers}
    one_of_two = None in windows and len(windows) == 2
    return {
        "windows": one_of_two,
        "other_windows": windows != {None} and not one_of_two,
        "layers_without_rope": any(layer.rope is None for layer in layers),
        "two_ropes": len(decoder.ropes) > 1,
        "mixed_layers": not _is_local_before_global(decoder),
        "partial_rope": any(rope.dim != decoder.head_dim for rope in decoder.ropes),
        "linear": LinearScaling in scalings,
        "llama3": Llama3Scaling in scalings,
        "longrope": LongRopeScaling in scalings,
        "small_magnitude": any(rope.magnitude < 1 for rope in decoder.ropes),
    }


def _is_local_before_global(decoder: Decoder) -> bool:
    """Say whether the pattern is layers that are alike and scale no rope, if any, and then one that sees everything."""
    *local, last = decoder.pattern
    plain = all(layer == local[0] and layer.rope is not None and layer.rope.scaling is None for layer in local)
    return plain and last.window is None
