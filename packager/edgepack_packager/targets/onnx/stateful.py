"""Mixers with states: a gated short convolution, and the gated delta rule.

Of either a CausalConvWithState keeps the last positions of its input. With its channels last it reads and writes the
states as [batch, positions, channels], without a transposition. The delta rule is one GatedDeltaNet, whose states are
[batch, heads, value dimension, key dimension].
"""

from __future__ import annotations

from edgepack.bundle.decoder import Decoder
from edgepack_packager.targets.onnx.nodes import Nodes

PAST = "past_{}.{}"
PRESENT = "present_{}.{}"


def convolution(nodes: Nodes, decoder: Decoder, layer: int, inputs: str) -> str:
    """Add a layer's convolution from its normed input to its output projection."""
    name, kind = f"layers.{layer}.convolution", decoder.convolving[layer]
    joined = nodes.linear(f"{name}.in", inputs)
    opening, closing, values = (f"{name}.{part}" for part in ("opening", "closing", "values"))
    nodes.add("Split", [joined], opening, closing, values, axis=-1, num_outputs=3)
    gated = nodes.add("Mul", [opening, values], f"{name}.gated")
    bias = nodes.stored(nodes.layout.tensors[f"{name}.kernel.bias"].weight) if kind.bias else ""
    mixed = _convolved(nodes, name, layer, gated, (decoder.hidden_size, 1, kind.length), bias)
    return nodes.linear(f"{name}.out", nodes.add("Mul", [closing, mixed], f"{name}.closed"))


def delta(nodes: Nodes, decoder: Decoder, layer: int, inputs: str) -> str:
    """Add a layer's delta rule from its normed input to its output projection."""
    name, kind = f"layers.{layer}.delta", decoder.correcting[layer]
    joined = nodes.linear(f"{name}.qkv", inputs)
    mixed = _convolved(nodes, name, layer, joined, (kind.channels, 1, kind.length), activation="silu")
    sizes = nodes.integers("delta.sizes", 2 * kind.key_size, kind.value_size)
    keys, values = f"{name}.qk.joined", f"{name}.v.joined"
    nodes.add("Split", [mixed, sizes], keys, values, axis=-1)
    apart = [
        nodes.add("Reshape", [part, nodes.integers(f"{count}x{size}", 0, 0, count, size)], f"{name}.{of}.heads")
        for part, of, count, size in (
            (keys, "qk", 2 * kind.n_key_heads, kind.key_dim),
            (values, "v", kind.n_value_heads, kind.value_dim),
        )
    ]
    parts = f"{name}.q.heads", f"{name}.k.heads"
    nodes.add("Split", [_unit(nodes, f"{name}.qk", apart[0])], *parts, axis=2, num_outputs=2)
    a, b = (nodes.linear(f"{name}.{part}", inputs) for part in ("a", "b"))
    decay, step, gain = (nodes.stored(nodes.layout.tensors[f"{name}.{part}"].weight) for part in _VECTORS)
    found = nodes.contrib(
        "GatedDeltaNet",
        [*parts, apart[1], "", a, b, PAST.format("delta", layer), decay, step],
        f"{name}.found",
        PRESENT.format("delta", layer),
        gate_activation="softplus",
        beta_activation="sigmoid",
        scale=kind.key_dim**-0.5,
    )
    flat = nodes.add("Reshape", [found, nodes.integers("flat", 0, 0, -1)], f"{name}.flat")
    z = nodes.linear(f"{name}.z", inputs)
    gated = nodes.contrib("GatedRMSNorm", [flat, gain, z], f"{name}.gated", epsilon=decoder.norm_eps, activation="silu")
    return nodes.linear(f"{name}.out", gated)


def _unit(nodes: Nodes, name: str, inputs: str) -> str:
    """Add the division of each head by its length. The operator's own (``qk_l2_norm``) adds nothing to the squares."""
    squares = nodes.add("ReduceSumSquare", [inputs, nodes.integers("last_axis", -1)], f"{name}.squares", keepdims=1)
    more = nodes.add("Add", [squares, nodes.number("delta.epsilon", 1e-6)], f"{name}.more")
    return nodes.add("Div", [inputs, nodes.add("Sqrt", [more], f"{name}.length")], f"{name}.unit")


_VECTORS = ("decay", "step", "head_norm")


def _convolved(
    nodes: Nodes, name: str, layer: int, inputs: str, shape: tuple[int, ...], bias: str = "", activation: str = "none"
) -> str:
    kernel = nodes.stored(nodes.layout.tensors[f"{name}.kernel"].weight, shape=shape)
    return nodes.contrib(
        "CausalConvWithState",
        [inputs, kernel, bias, PAST.format("conv", layer)],
        f"{name}.mixed",
        PRESENT.format("conv", layer),
        ndim=1,
        channels_last=1,
        activation=activation,
    )
