"""What a GGUF file calls the canonical tensors, and in which order it has their heads and the rows of q and k.

Source of the names: gguf-py's constants.py and tensor_mapping.py; of what a fused tensor holds: ``build_qkv`` in
llama.cpp's src/llama-graph.cpp, and ``ggml_swiglu``, which takes the gate from the first half; of the order of a delta
rule's heads: ``ggml_gated_delta_net``, whose head of values i has the keys i modulo their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Attention, Decoder, layer_of

INTERLEAVED = frozenset({"llama", "smollm3", "mistral3", "granite"})
"""Architectures whose rope turns neighbours, so that files have the rows of q and k of a head in that order."""

FUSED = frozenset({"phi3"})
"""Architectures that have q, k and v in one tensor, and the gate and up projections in another."""

_ROOTS = {
    "embedding": "token_embd",
    "inputs.embedding": "per_layer_token_embd",
    "inputs.projection": "per_layer_model_proj",
    "inputs.norm": "per_layer_proj_norm",
    "norm": "output_norm",
    "head": "output",
}
_OTHERWISE = {("lfm2", "norm"): "token_embd_norm", ("qwen35", "mlp.norm"): "post_attention_norm"}
"""What an architecture calls a tensor that others call by another name."""

_WHOLE = ("delta.step", "delta.decay")
"""Roles whose names have no ending more."""

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
    "attention.gate": "attn_q",
    "delta.norm": "attn_norm",
    "delta.qkv": "attn_qkv",
    "delta.z": "attn_gate",
    "delta.a": "ssm_alpha",
    "delta.b": "ssm_beta",
    "delta.kernel": "ssm_conv1d",
    "delta.step": "ssm_dt.bias",
    "delta.decay": "ssm_a",
    "delta.head_norm": "ssm_norm",
    "delta.out": "ssm_out",
    "mlp.norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp.post_norm": "post_ffw_norm",
    "inputs.gate": "inp_gate",
    "inputs.out": "proj",
    "inputs.post_norm": "post_norm",
    "scale": "layer_output_scale",
}
_TOGETHER = {
    "attention.q": "attn_qkv",
    "attention.k": "attn_qkv",
    "attention.v": "attn_qkv",
    "mlp.gate": "ffn_up",
    "mlp.up": "ffn_up",
}


@dataclass(frozen=True, slots=True)
class Tiles:
    """The order of a delta rule's heads of values: in a file the first head of each key, then the second of each.

    A model has the ``shared`` heads of a key together, key after key. ``size``: the rows (or columns) of a head;
    ``before``: those in front of all heads, which stay where they are.
    """

    keys: int
    shared: int
    size: int
    before: int = 0

    def place(self, row: int) -> int:
        """Return the file's row of a canonical one."""
        if row < self.before:
            return row
        head, within = divmod(row - self.before, self.size)
        key, turn = divmod(head, self.shared)
        return self.before + (turn * self.keys + key) * self.size + within

    def together(self, row: int) -> int:
        """Return how many rows from a canonical one on follow each other in the file."""
        return self.before - row if row < self.before else self.size - (row - self.before) % self.size

    def order(self) -> NDArray[np.intp]:
        """Return the canonical row of each of the file's: intp [rows]."""
        heads = self.before + np.arange(self.keys * self.shared * self.size).reshape(self.keys, self.shared, self.size)
        return np.concatenate([np.arange(self.before), heads.swapaxes(0, 1).reshape(-1)])


@dataclass(frozen=True, slots=True)
class Part:
    """The place of a canonical tensor: the file's tensor, its shape there with the rows first, and the first row.

    ``stated`` is the shape that the file says, where it is another one of as many elements. With ``woven`` the heads of
    two canonical tensors, of so many rows, lie by turns: those of the one whose ``first`` is 0 begin. ``tiled`` is
    another order of the rows, ``columns`` one of the columns.
    """

    name: str
    shape: tuple[int, ...]
    first: int
    stated: tuple[int, ...] | None = None
    woven: int = 0
    tiled: Tiles | None = None
    columns: Tiles | None = None

    def place(self, row: int) -> int:
        """Return the file's row of a canonical one."""
        if self.tiled:
            return self.first + self.tiled.place(row)
        if not self.woven:
            return self.first + row
        head, within = divmod(row, self.woven)
        return (2 * head + (self.first > 0)) * self.woven + within

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (first, last) over the canonical rows from ``start`` to ``stop``: such as follow each other there."""
        while start < stop:
            together = stop - start
            if self.tiled:
                together = self.tiled.together(start)
            elif self.woven:
                together = self.woven - start % self.woven
            last = min(stop, start + together)
            yield start, last
            start = last


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
            names[canonical],
            (rows[names[canonical]], *shape[1:]),
            first[canonical],
            _kernel(decoder, canonical, shape),
            _woven(decoder, canonical),
            _tiled(decoder, canonical),
            columns(decoder, canonical),
        )
        for canonical, shape in decoder.tensors()
    }


def _kernel(decoder: Decoder, canonical: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of a convolution's kernel in a file: [channels, length]."""
    if not canonical.endswith(".kernel"):
        return None
    mixer = decoder.layer(layer_of(canonical)).mixer
    return None if isinstance(mixer, Attention) else (shape[0] // mixer.length, mixer.length)


def _woven(decoder: Decoder, canonical: str) -> int:
    if not canonical.endswith(("attention.q", "attention.gate")):
        return 0
    attention = decoder.attention(layer_of(canonical))
    return attention.head_dim if attention.gated else 0


def _tiled(decoder: Decoder, canonical: str) -> Tiles | None:
    """Return the order of the rows that belong to a delta rule's heads of values."""
    _, _, role = canonical.rpartition("delta.")
    delta = decoder.correcting.get(layer_of(canonical)) if role != canonical else None
    if delta is None or delta.n_value_heads == delta.n_key_heads:
        return None
    sizes = {  # (of a head, before all)
        "qkv": (delta.value_dim, 2 * delta.key_size),
        "kernel": (delta.value_dim * delta.length, 2 * delta.key_size * delta.length),
        "z": (delta.value_dim, 0),
    } | dict.fromkeys(("a", "b", "step", "decay"), (1, 0))
    if role not in sizes:
        return None
    return Tiles(delta.n_key_heads, delta.n_value_heads // delta.n_key_heads, *sizes[role])


def columns(decoder: Decoder, canonical: str) -> Tiles | None:
    """Return the order of a matrix's columns in a file, where it is another one: those of a delta rule's result."""
    if not canonical.endswith("delta.out"):
        return None
    delta = decoder.correcting[layer_of(canonical)]
    if delta.n_value_heads == delta.n_key_heads:
        return None
    return Tiles(delta.n_key_heads, delta.n_value_heads // delta.n_key_heads, delta.value_dim)


def gguf_name(canonical: str, architecture: str) -> str:
    """Return the name of the tensor that holds a canonical one: "blk.3.attn_q.bias" for "layers.3.attention.q.bias"."""
    stem, suffix = (canonical[:-5], "bias") if canonical.endswith(".bias") else (canonical, "weight")
    if stem in _ROOTS:
        return f"{_OTHERWISE.get((architecture, stem), _ROOTS[stem])}.{suffix}"
    _, layer, role = stem.split(".", 2)
    name = _TOGETHER.get(role, _BLOCKS[role]) if architecture in FUSED else _BLOCKS[role]
    name = _OTHERWISE.get((architecture, role), name)
    return f"blk.{layer}.{name}" if role in _WHOLE else f"blk.{layer}.{name}.{suffix}"


def rotates(canonical: str, architecture: str) -> bool:
    """Whether a file has the rows of this tensor with each head's two halves interleaved."""
    return architecture in INTERLEAVED and canonical.removesuffix(".bias").endswith(("attention.q", "attention.k"))
