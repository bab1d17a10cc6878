"""Where a file has each canonical tensor, what it is multiplied by there, and which tables stand beside them."""

from __future__ import annotations

import numpy as np

from edgepack.bundle.decoder import Decoder, layer_of
from edgepack.bundle.rope import Llama3Scaling, LongRopeScaling, ProportionalScaling, Rope
from edgepack_packager.checkpoint.gguf import names
from edgepack_packager.checkpoint.gguf.names import Part
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.gguf.architecture import choose
from edgepack_packager.targets.gguf.features import ropes

# A ratio closer to one than this is two roundings of the same number.
_SAME = 2.0**-22

# A divisor of an angle that leaves nothing of it.
_STILL = 1e30


def parts(decoder: Decoder) -> dict[str, Part]:
    """Return the place of every canonical tensor. Raises ``UnsupportedModelError`` as ``architecture.choose``."""
    return names.parts(decoder, choose(decoder).name)


def factor(decoder: Decoder, canonical: str) -> float:
    """Return what a tensor is multiplied by in the file, so that the architecture's own constants come out right.

    q, or the norm of q where there is one, takes the model's scale of the scores over the architecture's. The norms
    after each block take ``stream_factor``, and the matrix that reads the states without a norm gives it back. Where
    there are no such norms, the embedding takes what is missing in its scale, and the last norm, which the head
    follows, gives it back: the embedding is the head. A bias takes what its tensor does. No other tensor changes.
    """
    whole = canonical.removesuffix(".bias")
    if whole in ("embedding", "norm") and stream_factor(decoder) == 1:
        missing = _ratio(decoder.embedding_scale, choose(decoder).embedding_scale(decoder))
        return missing if whole == "embedding" else 1 / missing
    role = whole.partition("attention.")[2]
    if role in ("q", "q_norm"):
        attention = decoder.attention(layer_of(canonical))
        if role == ("q_norm" if attention.qk_norm else "q"):
            return _ratio(attention.score_scale, choose(decoder).score_scale(decoder, attention))
    if canonical.endswith("inputs.gate"):
        return 1 / stream_factor(decoder)
    return stream_factor(decoder) if whole.endswith("post_norm") else 1.0


def stream_factor(decoder: Decoder) -> float:
    """Return by how much the states between the blocks are larger in llama.cpp than in the model.

    An architecture that scales embeddings multiplies them by the root of their size, the model by that root rounded to
    the type of its weights (25.25 for 640). Instead of the embedding, whose rounding would then change, all that is
    added to it takes the same factor: the norms after each block. The norms that read the states divide it out again,
    exactly so if epsilon takes its square; the norm of layers' inputs does too. Those of q, k, v and the blocks'
    outputs have the same epsilon, which there is up to 2**-7 too large: less than 1e-17 in NMSE for an epsilon of 1e-6
    and inputs of mean square one.
    """
    if not decoder.layer(0).post_norms:
        return 1.0
    return _ratio(choose(decoder).embedding_scale(decoder), decoder.embedding_scale)


def tables(decoder: Decoder) -> dict[str, Float32]:
    """Return what the rope needs beside the keys: divisors of the angles, float32 [dim / 2] each.

    llama.cpp has one list of longrope factors for contexts up to the original one and another beyond; the decoder's
    one list is right for all contexts that it may be run at. Where layers have sizes of their own, it always has one
    for those without window: pairs that do not turn are divided by so much that nothing is left.
    """
    if choose(decoder).by_layer:
        rope, _ = ropes(decoder)
        turned = rope.scaling.turned if isinstance(rope.scaling, ProportionalScaling) else rope.dim // 2
        return {"rope_freqs.weight": np.where(np.arange(rope.dim // 2) < turned, 1, _STILL).astype(np.float32)}
    for rope in decoder.ropes:
        match rope.scaling:
            case Llama3Scaling():
                return {"rope_freqs.weight": Rope(theta=rope.theta, dim=rope.dim).frequencies() / rope.frequencies()}
            case LongRopeScaling(factors):
                values = np.array(factors, np.float32)
                return {"rope_factors_long.weight": values, "rope_factors_short.weight": values}
    return {}


def _ratio(one: float, other: float) -> float:
    return 1.0 if abs(one / other - 1) <= _SAME else one / other
