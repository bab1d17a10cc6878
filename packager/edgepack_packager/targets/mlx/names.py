"""Which tensor of an MLX variant holds a canonical one."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.bundle.decoder import Attention, Decoder, Layer
from edgepack_packager.targets.mlx.model_types import ModelType

_PARTS = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention.norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.gate": "self_attn.gate_proj",
    "attention.o": "self_attn.o_proj",
    "convolution.norm": "input_layernorm",
    "convolution.in": "conv.in_proj",
    "convolution.kernel": "conv.conv",
    "convolution.out": "conv.out_proj",
    "delta.norm": "input_layernorm",
    "delta.qkv": "linear_attn.in_proj_qkv",
    "delta.z": "linear_attn.in_proj_z",
    "delta.a": "linear_attn.in_proj_a",
    "delta.b": "linear_attn.in_proj_b",
    "delta.kernel": "linear_attn.conv1d",
    "delta.head_norm": "linear_attn.norm",
    "delta.out": "linear_attn.out_proj",
    "mlp.norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "inputs.embedding": "model.embed_tokens_per_layer",
    "inputs.projection": "model.per_layer_model_projection",
    "inputs.norm": "model.per_layer_projection_norm",
    "inputs.gate": "per_layer_input_gate",
    "inputs.out": "per_layer_projection",
    "inputs.post_norm": "post_per_layer_input_norm",
}

# Parameters of a module that holds others too: of a layer itself, where it has no name.
_PARAMETERS = {
    "delta.step": (".linear_attn", "dt_bias"),
    "delta.decay": (".linear_attn", "A_log"),
    "scale": ("", "layer_scalar"),
}

# With four norms, Gemma's names: what Llama calls the norm after the attention is there the second of four.
_FOUR_NORMS = {
    "attention.post_norm": "post_attention_layernorm",
    "convolution.post_norm": "post_attention_layernorm",
    "delta.post_norm": "post_attention_layernorm",
    "mlp.norm": "pre_feedforward_layernorm",
    "mlp.post_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A module of mlx-lm, one of its parameters ("weight" or "bias"), and the first of its rows that are meant."""

    module: str
    parameter: str
    first: int

    @property
    def tensor(self) -> str:
        """The tensor's name where it is not quantised."""
        return f"{self.module}.{self.parameter}"


def place(kind: ModelType, decoder: Decoder, name: str) -> Place:
    """Return where a model file keeps a canonical tensor, "layers.3.attention.q" or its ".bias" for example.

    A fused matrix has its parts' rows one after the other. A row is quantised by itself, so they may be quantised each.
    """
    parameter = "bias" if name.endswith(".bias") else "weight"
    name = name.removesuffix(".bias")
    if not name.startswith("layers."):
        return Place(kind.names.get(_PARTS[name], _PARTS[name]), parameter, 0)
    _, layer, part = name.split(".", 2)
    if part in _PARAMETERS:
        module, parameter = _PARAMETERS[part]
        return Place(f"model.layers.{layer}{module}", parameter, 0)
    parts = {**_PARTS, **(_FOUR_NORMS if decoder.layer(int(layer)).post_norms else {})}
    module, first = kind.names.get(parts[part], parts[part]), 0
    if kind.fused:
        module, first = _fused(decoder.layer(int(layer))).get(part, (module, 0))
    return Place(f"model.layers.{layer}.{module}", parameter, first)


def dimensions(decoder: Decoder, tensor: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a file states of a tensor: of a convolution's kernel [channels, length, 1]."""
    if not tensor.endswith((".conv.conv.weight", ".conv1d.weight")):
        return shape
    mixer = decoder.layer(int(tensor.split(".")[2])).mixer
    assert not isinstance(mixer, Attention)
    return (shape[0] // mixer.length, mixer.length, 1)


def stored_shapes(kind: ModelType, decoder: Decoder) -> dict[tuple[str, str], tuple[int, ...]]:
    """Return the shapes of a model file's parameters before quantisation, by module and parameter, in model order."""
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for name, (rows, *columns) in decoder.tensors():
        where = place(kind, decoder, name)
        shapes[where.module, where.parameter] = (where.first + rows, *columns)  # its last part comes last
    return shapes


def _fused(layer: Layer) -> dict[str, tuple[str, int]]:
    """Return the matrix that holds a part of a layer, and the part's first row."""
    attention = layer.mixer
    if not isinstance(attention, Attention):
        return {}
    return {
        "attention.q": ("self_attn.qkv_proj", 0),
        "attention.k": ("self_attn.qkv_proj", attention.q_size),
        "attention.v": ("self_attn.qkv_proj", attention.q_size + attention.kv_size),
        "mlp.gate": ("mlp.gate_up_proj", 0),
        "mlp.up": ("mlp.gate_up_proj", layer.mlp.size),
    }
