"""What a GGUF file calls the canonical tensors, and in which order it has the rows of q and k.

Source of the names: gguf-py's constants.py and tensor_mapping.py; of what a fused tensor holds: ``build_qkv`` in
llama.cpp's src/llama-graph.cpp, and ``ggml_swiglu``, which takes the gate from the first half.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from edgepack.bundle.decoder import Decoder

INTERLEAVED = frozenset({"llama", "smollm3", "mistral3", "granite"})
"""Architectures whose rope turns neighbours, so that files have the rows of q and k of a head in that order."""

FUSED = frozenset({"phi3"})
"""Architectures that have q, k and v in one tensor, and the gate and up projections in another."""

_ROOTS = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
_NORMS = {"lfm2": "token_embd_norm"}
"""What architectures call the last norm that call it otherwise."""

_BLOCKS = {
    "attention.norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.o": "attn_output",
    "attention.post_norm": "post_attention_norm",
    "convolution.norm": "attn_norm",
    "convolution.in": "shortconv.in_proj",
    "convolution.kernel": "shortconv.conv",
    "convolution.out": "shortconv.out_proj",
    "convolution.post_norm": "post_attention_norm",
    "mlp.norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp.post_norm": "post_ffw_norm",
}
_TOGETHER = {
    "attention.q": "attn_qkv",
    "attention.k": "attn_qkv",
    "attention.v": "attn_qkv",
    "mlp.gate": "ffn_up",
    "mlp.up": "ffn_up",
}


@dataclass(frozen=True, slots=True)
class Part:
    """The place of a canonical tensor: the file's tensor, its shape there with the rows first, and the first row.

    ``stated`` is the shape that the file says, where it is another one of as many elements.
    """

    name: str
    shape: tuple[int, ...]
    first: int
    stated: tuple[int, ...] | None = None


def parts(decoder: Decoder, architecture: str) -> dict[str, Part]:
    """Return the place of every canonical tensor in a file of that architecture."""
    names = {canonical: gguf_name(canonical, architecture) for canonical, _ in decoder.tensors()}
    rows: Counter[str] = Counter()
    first = {}
    for canonical, shape in decoder.tensors():
        first[canonical] = rows[names[canonical]]
        rows[names[canonical]] += shape[0]
    return {
        canonical: Part(
            names[canonical], (rows[names[canonical]], *shape[1:]), first[canonical], _kernel(decoder, canonical, shape)
        )
        for canonical, shape in decoder.tensors()
    }


def _kernel(decoder: Decoder, canonical: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of a convolution's kernel in a file: [channels, length]."""
    channels = decoder.hidden_size
    return (channels, shape[0] // channels) if canonical.endswith("convolution.kernel") else None


def gguf_name(canonical: str, architecture: str) -> str:
    """Return the name of the tensor that holds a canonical one: "blk.3.attn_q.bias" for "layers.3.attention.q.bias"."""
    stem, suffix = (canonical[:-5], "bias") if canonical.endswith(".bias") else (canonical, "weight")
    if stem in _ROOTS:
        root = _NORMS.get(architecture, _ROOTS[stem]) if stem == "norm" else _ROOTS[stem]
        return f"{root}.{suffix}"
    _, layer, role = stem.split(".", 2)
    name = _TOGETHER.get(role, _BLOCKS[role]) if architecture in FUSED else _BLOCKS[role]
    return f"blk.{layer}.{name}.{suffix}"


def rotates(canonical: str, architecture: str) -> bool:
    """Whether a file has the rows of this tensor with each head's two halves interleaved."""
    return architecture in INTERLEAVED and canonical.removesuffix(".bias").endswith(("attention.q", "attention.k"))
