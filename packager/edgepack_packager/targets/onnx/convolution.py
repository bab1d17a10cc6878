"""A gated short convolution: one CausalConvWithState a layer, which keeps the last positions of its input.

With its channels last it reads and writes the states as [batch, positions, channels], without a transposition.
"""

from __future__ import annotations

from edgepack.bundle.decoder import Decoder
from edgepack_packager.targets.onnx.nodes import Nodes

PAST = "past_conv.{}"
PRESENT = "present_conv.{}"


def convolution(nodes: Nodes, decoder: Decoder, layer: int, inputs: str) -> str:
    """Add a layer's convolution from its normed input to its output projection."""
    name, kind = f"layers.{layer}.convolution", decoder.convolving[layer]
    joined = nodes.linear(f"{name}.in", inputs)
    opening, closing, values = (f"{name}.{part}" for part in ("opening", "closing", "values"))
    nodes.add("Split", [joined], opening, closing, values, axis=-1, num_outputs=3)
    gated = nodes.add("Mul", [opening, values], f"{name}.gated")
    shape = (decoder.hidden_size, 1, kind.length)
    kernel = nodes.stored(nodes.layout.tensors[f"{name}.kernel"].weight, shape=shape)
    bias = nodes.stored(nodes.layout.tensors[f"{name}.kernel.bias"].weight) if kind.bias else ""
    mixed = nodes.contrib(
        "CausalConvWithState",
        [gated, kernel, bias, PAST.format(layer)],
        f"{name}.mixed",
        PRESENT.format(layer),
        ndim=1,
        channels_last=1,
    )
    return nodes.linear(f"{name}.out", nodes.add("Mul", [closing, mixed], f"{name}.closed"))
