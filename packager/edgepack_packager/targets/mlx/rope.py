"""A rope in config.json, in the spelling of mlx-lm and transformers 4 and in that of transformers 5."""

from __future__ import annotations

import math
from typing import Any

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import LinearScaling, Llama3Scaling, LongRopeScaling, ProportionalScaling, Rope, YarnScaling


def rope_fields(decoder: Decoder) -> dict[str, Any]:
    """Return the fields of the ropes. Of two, the last is that of the global layers, which has the usual names.

    mlx-lm and transformers 4 read ``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor``, transformers 5
    ``rope_parameters``; each ignores the other spelling.
    """
    fields: dict[str, Any] = {}
    for rope in decoder.ropes[-1:]:
        head_dim = next(each.head_dim for each in decoder.attentions if each.rope == rope)
        fields |= {"rope_theta": rope.theta, "rope_scaling": _scaling(rope)}
        fields["rope_parameters"] = parameters(rope, head_dim)
        if rope.dim != head_dim:
            fields["partial_rotary_factor"] = partial_factor(rope, head_dim)
    for rope in decoder.ropes[:-1]:
        fields["rope_local_base_freq"] = rope.theta
    return fields


def parameters(rope: Rope, head_dim: int) -> dict[str, Any]:
    """Return a rope as transformers 5 spells it."""
    found = {"rope_theta": rope.theta, **(_scaling(rope) or {"rope_type": "default"})}
    if isinstance(rope.scaling, LongRopeScaling):
        found |= {"rope_type": "longrope", "original_max_position_embeddings": rope.scaling.original_context}
        found |= {"attention_factor": rope.scaling.magnitude}
    return found if rope.dim == head_dim else {**found, "partial_rotary_factor": partial_factor(rope, head_dim)}


def partial_factor(rope: Rope, head_dim: int) -> float:
    """Return the part of a head that rotates; its readers take int(head_dim * factor)."""
    factor = rope.dim / head_dim
    return math.nextafter(factor, 1) if head_dim * factor < rope.dim else factor


def _scaling(rope: Rope) -> dict[str, Any] | None:
    match rope.scaling:
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
        case LongRopeScaling(factors):
            # transformers 4 refuses a fourth key.
            return {"type": "longrope", "short_factor": list(factors), "long_factor": list(factors)}
        case ProportionalScaling(turned):
            return {
                "rope_type": "proportional",
                "type": "proportional",
                "partial_rotary_factor": 2 * turned / rope.dim,
            }
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "type": "yarn",
                "factor": rope.scaling.factor,
                "original_max_position_embeddings": rope.scaling.original_context,
                "beta_fast": rope.scaling.beta_fast,
                "beta_slow": rope.scaling.beta_slow,
                "attention_factor": rope.scaling.magnitude,
                "truncate": rope.scaling.whole,
                "mscale": _mscale(rope.scaling),
            }


def _mscale(yarn: YarnScaling) -> float:
    """Return the m that mlx-lm makes the magnitude of: 0.1 m ln(factor) + 1. It does not read ``attention_factor``."""
    return (yarn.magnitude - 1) / (0.1 * math.log(yarn.factor)) if yarn.factor > 1 else 0.0
