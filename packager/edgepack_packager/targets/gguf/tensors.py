"""Where a file has each canonical tensor, what it is multiplied by there, and which tables stand beside them.

Source of the names: gguf-py's constants.py and tensor_mapping.py; of what a fused tensor holds: ``build_qkv`` in
llama.cpp's src/llama-graph.cpp, and ``ggml_swiglu``, which takes the gate from the first half.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import sqrt

import numpy as np

from edgepack.bundle.decoder import Decoder, Llama3Scaling, LongRopeScaling, Rope
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.gguf.architecture import Architecture, choose

_ROOTS = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
_BLOCKS = {
    "attention.norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.o": "attn_output",
    "attention.post_norm": "post_attention_norm",
    "mlp.norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp.post_norm": "post_ffw_norm",
}
_FUSED = {
    "attention.q": "attn_qkv",
    "attention.k": "attn_qkv",
    "attention.v": "attn_qkv",
    "mlp.gate": "ffn_up",
    "mlp.up": "ffn_up",
}

# A ratio closer to one than this is two roundings of the same number.
_SAME = 2.0**-22


@dataclass(frozen=True, slots=True)
class Part:
    """The place of a canonical tensor: the file's tensor, its shape there with the rows first, and the first row."""

    name: str
    shape: tuple[int, ...]
    first: int


def parts(decoder: Decoder) -> dict[str, Part]:
    """Return the place of every canonical tensor. Raises ``UnsupportedModelError`` as ``architecture.choose``."""
    architecture = choose(decoder)
    names = {canonical: gguf_name(canonical, architecture) for canonical, _ in decoder.tensors()}
    rows: Counter[str] = Counter()
    first = {}
    for canonical, shape in decoder.tensors():
        first[canonical] = rows[names[canonical]]
        rows[names[canonical]] += shape[0]
    return {
        canonical: Part(names[canonical], (rows[names[canonical]], *shape[1:]), first[canonical])
        for canonical, shape in decoder.tensors()
    }


def gguf_name(canonical: str, architecture: Architecture) -> str:
    """Return the name of the tensor that holds a canonical one: "blk.3.attn_q.bias" for "layers.3.attention.q.bias"."""
    stem, suffix = (canonical[:-5], "bias") if canonical.endswith(".bias") else (canonical, "weight")
    if stem in _ROOTS:
        return f"{_ROOTS[stem]}.{suffix}"
    _, layer, role = stem.split(".", 2)
    name = _FUSED.get(role, _BLOCKS[role]) if architecture.fused else _BLOCKS[role]
    return f"blk.{layer}.{name}.{suffix}"


def factor(decoder: Decoder, canonical: str) -> float:
    """Return what a tensor is multiplied by in the file, so that the architecture's own constants come out right.

    q, or the norm of q where there is one, takes the model's scale of the scores over the architecture's. The norms
    after each block take ``stream_factor``. No other tensor changes.
    """
    role = canonical.partition("attention.")[2].removesuffix(".bias")
    if role == ("q_norm" if decoder.qk_norm else "q"):
        return _ratio(decoder.score_scale, choose(decoder).score_scale(decoder))
    return stream_factor(decoder) if canonical.endswith("post_norm") else 1.0


def stream_factor(decoder: Decoder) -> float:
    """Return by how much the states between the blocks are larger in llama.cpp than in the model.

    An architecture that scales embeddings multiplies them by the root of their size, the model by that root rounded to
    the type of its weights (25.25 for 640). Instead of the embedding, whose rounding would then change, all that is
    added to it takes the same factor: the norms after each block. The norms that read the states divide it out again,
    exactly so if epsilon takes its square. Those of q, k and the blocks' outputs have the same epsilon, which there is
    up to 2**-7 too large: less than 1e-17 in NMSE for an epsilon of 1e-6 and inputs of mean square one.
    """
    return _ratio(sqrt(decoder.hidden_size), decoder.embedding_scale) if decoder.embedding_scale != 1 else 1.0


def tables(decoder: Decoder) -> dict[str, Float32]:
    """Return what the rope needs beside the keys: divisors of the angles, float32 [dim / 2] each.

    llama.cpp has one list of longrope factors for contexts up to the original one and another beyond; the decoder's
    one list is right for all contexts that it may be run at.
    """
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
