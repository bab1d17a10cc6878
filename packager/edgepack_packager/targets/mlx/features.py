"""What distinguishes a decoder from the plainest Llama, by name: the words for what a model file of mlx-lm can do."""

from __future__ import annotations

import math

from msgspec import UNSET
from msgspec.structs import replace

from edgepack.bundle.decoder import Attention, Decoder, Layer
from edgepack.bundle.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    Scaling,
    YarnScaling,
)


def features(decoder: Decoder) -> frozenset[str]:
    """Return the names of the features that a decoder has."""
    marks = _block_marks(decoder) | _position_marks(decoder)
    return frozenset(name for name, has in marks.items() if has)


def _block_marks(decoder: Decoder) -> dict[str, bool]:
    # Gemma's scale is the root of the hidden size, rounded to as little as 8 bits.
    root = math.isclose(decoder.embedding_scale, math.sqrt(decoder.hidden_size), rel_tol=2.0**-8)
    scaled = decoder.embedding_scale != 1
    layer, attention = decoder.layer(0), decoder.attentions[0]
    return {
        "unlike_layers": not decoder.alike and not _is_of_two_sizes(decoder),
        "two_sizes": not decoder.alike and _is_of_two_sizes(decoder),
        "convolutions": bool(decoder.convolving),
        "delta_rules": bool(decoder.correcting),
        "gated": bool(attention.gated),
        "bidirectional": decoder.at_once,
        "untied": not decoder.tied,
        "head_dim": attention.q_size != decoder.hidden_size,
        "qkv_bias": attention.qkv_bias and not attention.output_bias,
        "output_bias": attention.output_bias and not attention.qkv_bias,
        "attention_bias": attention.qkv_bias and attention.output_bias,
        "mlp_bias": layer.mlp.bias,
        "qk_norm": attention.qk_norm == "head",
        "wide_qk_norm": attention.qk_norm == "width",
        "rotated_qk_norm": attention.qk_norm == "rotated",
        "v_norm": bool(attention.v_norm),
        "token_inputs": bool(decoder.inputs),
        "scaled_layers": bool(layer.scaled),
        "unscaled_scores": all(each.score_scale == 1 for each in decoder.attentions),
        "temperature": attention.temperature is not None,
        "other_temperature": _starts_elsewhere(decoder),
        "layer_norms": bool(decoder.norm),
        "post_norms": layer.norms == "both",
        "norms_after": layer.norms == "after",
        "residual_scale": layer.residual_scale != 1,
        "logits_scale": decoder.logits_scale != 1,
        "gelu_tanh": layer.mlp.activation == "gelu_tanh",
        "root_embedding_scale": scaled and root,
        "other_embedding_scale": scaled and not root,
        "attention_scale": not math.isclose(attention.score_scale, attention.head_dim**-0.5),
        "attention_softcap": attention.softcap is not None,
        "logits_softcap": decoder.logits_softcap is not None,
    }


def _position_marks(decoder: Decoder) -> dict[str, bool]:
    layers = decoder.attentions
    scalings = {type(rope.scaling) for rope in decoder.ropes}
    windows = {layer.window for layer in layers}
    one_of_two = None in windows and len(windows) == 2
    return {
        "windows": one_of_two,
        "other_windows": windows != {None} and not one_of_two,
        "layers_without_rope": any(layer.rope is None for layer in layers),
        "ropes_of_windows": one_of_two and all(bool(layer.rope) == bool(layer.window) for layer in layers),
        "no_ropes": not decoder.ropes,
        "two_ropes": len(decoder.ropes) > 1,
        "two_thetas": len({rope.theta for rope in decoder.ropes}) > 1,
        "mixed_layers": not _is_local_before_global(decoder),
        "partial_rope": any(layer.rope.dim != layer.head_dim for layer in layers if layer.rope),
        "linear": LinearScaling in scalings,
        "llama3": Llama3Scaling in scalings,
        "longrope": LongRopeScaling in scalings,
        "proportional": ProportionalScaling in scalings,
        "yarn": YarnScaling in scalings,
        "other_yarn": any(_is_other_yarn(rope.scaling) for rope in decoder.ropes),
        "small_magnitude": any(rope.magnitude < 1 for rope in decoder.ropes),
    }


def _is_of_two_sizes(decoder: Decoder) -> bool:
    """Say whether layers differ in what Gemma 4's may: heads of one size with a window and of one without, and last
    layers that read the keys of the last others with or without one, some twice as wide."""
    keeping = decoder.keeping
    last = {bool(attention.window): index for index, attention in keeping.items()}
    shared = {index: attention for index, attention in decoder.attending.items() if not attention.owns}
    regular = [*decoder.attending] == [*keeping, *shared] == [*range(decoder.n_layers)] and all(
        attention.kv_layer == last.get(bool(attention.window)) for attention in shared.values()
    )
    normed = {bool(attention.v_norm) for attention in keeping.values()}
    sizes = [layer.mlp.size for layer in decoder.layers]
    own, others = {*sizes[: len(keeping)]}, {*sizes[len(keeping) :]}
    wide = len(own) == 1 and (not others or others in (own, {2 * size for size in own}))
    heads = {(bool(each.window), each.head_dim) for each in decoder.attentions}
    even = len(normed) == 1 and len(heads) == len(last)
    return regular and wide and even and len({_of_one_size(layer) for layer in decoder.layers}) == 1


def _of_one_size(layer: Layer) -> Layer:
    mixer = layer.mixer
    assert isinstance(mixer, Attention)
    mixer = replace(mixer, head_dim=1, window=None, rope=None, kv_layer=UNSET, v_norm=UNSET)
    return replace(layer, mixer=mixer, mlp=replace(layer.mlp, size=1))


def _is_other_yarn(scaling: Scaling | None) -> bool:
    """Say whether a YaRN has what mlx-lm has no field for: a ramp from within a pair, or a magnitude of no factor."""
    if not isinstance(scaling, YarnScaling):
        return False
    return not scaling.whole or (scaling.factor <= 1 and scaling.magnitude != 1)


def _starts_elsewhere(decoder: Decoder) -> bool:
    """Say whether the queries grow from another position on than a rope's original context."""
    scalings = [rope.scaling for rope in decoder.ropes]
    contexts = {each.original_context for each in scalings if isinstance(each, Llama3Scaling | YarnScaling)}
    return any({each.length} != contexts for each in decoder.temperatures if contexts)


def _is_local_before_global(decoder: Decoder) -> bool:
    """Say whether the pattern is layers that are alike and scale no rope, if any, and then one that sees everything."""
    *local, last = decoder.attentions[: len(decoder.pattern)]
    plain = all(layer == local[0] and layer.rope is not None and layer.rope.scaling is None for layer in local)
    return plain and last.window is None
