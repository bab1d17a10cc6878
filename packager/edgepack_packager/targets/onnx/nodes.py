"""What a graph is made of: nodes and initialisers, in the order in which they are added, and operations with weights.

It knows how a tensor is stored and which operator reads it so. It does not know what a decoder does with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.runtime import KvCache
from edgepack_packager.targets.onnx.layout import DATA_FILE, Element, Layout, Region, Stored

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

# Activations are quantised to int8 in blocks too, so that the products are integer dot products.
_ACCURACY_LEVEL = 4


class Nodes:
    """Nodes and initialisers under construction. What adds a node returns the name of its first output.

    ``kv_cache`` is the element type of the cache, and in f16 of the attention; everything else computes in float32.
    """

    def __init__(self, layout: Layout, epsilon: float, kv_cache: KvCache) -> None:
        self.layout = layout
        self.kv_cache = kv_cache
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._epsilon = epsilon

    def add(self, operator: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of ONNX's own domain."""
        from onnx import helper

        self.nodes.append(
            helper.make_node(operator, inputs, list(outputs), name=outputs[0], domain=domain, **attributes)
        )
        return outputs[0]

    def contrib(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Add a node of onnxruntime's domain com.microsoft."""
        return self.add(operator, inputs, *outputs, domain="com.microsoft", **attributes)

    def cast(self, inputs: str, output: str, element: Element) -> str:
        """Add a conversion to another element type."""
        return self.add("Cast", [inputs], output, to=onnx_type(element))

    def integers(self, name: str, *values: int) -> str:
        """Add a vector of int64, unless it is there."""
        from onnx import TensorProto, helper

        self.initializers.setdefault(name, helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    def end(self) -> str:
        """Add the end of a Slice that goes to the end."""
        return self.integers("end", 2**63 - 1)

    def number(self, name: str, value: float) -> str:
        """Add a float32 without dimensions."""
        from onnx import TensorProto, helper

        self.initializers[name] = helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        return name

    def stored(self, region: Region, *, name: str | None = None, shape: tuple[int, ...] | None = None) -> str:
        """Add a region of the data file, under another name or shape where its reader wants that."""
        name = name or region.name
        self.initializers[name] = _external(region, name, shape or region.shape)
        return name

    def steps(self, stored: Stored) -> list[str]:
        """Add the scales of quantised blocks, and the zero points of asymmetric ones."""
        return [self.stored(region) for region in stored.regions[1:]]

    def nothing(self, width: int) -> str:
        """Add the keys, or values, of no position: of the element type that attention takes, [1, 0, width]."""
        from onnx import helper

        name, element = f"nothing.{width}", onnx_type("f16" if self.kv_cache == "f16" else "f32")
        self.initializers[name] = helper.make_tensor(name, element, [1, 0, width], [])
        return name

    def ones(self, size: int) -> str:
        """Add a gain that changes nothing, unless it is there; the engine makes it once, when it loads the graph."""
        name = f"ones.{size}"
        if all(node.output[0] != name for node in self.nodes):
            self.add("Expand", [self.number("unit", 1.0), self.integers(f"{name}.shape", size)], name)
        return name

    def norm(self, name: str, inputs: str, gain: str = "") -> str:
        """Add a norm over the last axis, by the gain of its name or by another: a LayerNorm where it has a bias."""
        node, output = [inputs, *([gain] if gain else self._norm_weights(name))], f"{name}.output"
        operator = "LayerNormalization" if len(node) > 2 else "SimplifiedLayerNormalization"
        return self.add(operator, node, output, epsilon=self._epsilon, axis=-1, stash_type=1)

    def norm_of_sum(self, name: str, inputs: str, residual: str) -> tuple[str, str]:
        """Add the norm of a sum; return its output and the sum."""
        node, output, total = [inputs, residual, *self._norm_weights(name)], f"{name}.output", f"{name}.residual"
        operator = "SkipLayerNormalization" if len(node) > 3 else "SkipSimplifiedLayerNormalization"
        self.contrib(operator, node, output, "", "", total, epsilon=self._epsilon)
        return output, total

    def _norm_weights(self, name: str) -> list[str]:
        """Add the gain of a norm, and its bias where it has one."""
        tensors = self.layout.tensors
        return [self.stored(tensors[each].weight) for each in (name, f"{name}.bias") if each in tensors]

    def linear(self, name: str, inputs: str) -> str:
        """Add inputs @ weight.T, and its bias where the layout has one."""
        stored = self.layout.tensors[name]
        bias = self.layout.tensors.get(f"{name}.bias")
        output = f"{name}.output"
        weight = self.stored(stored.weight)
        product = self.product(name, stored, weight, inputs, output if bias is None else f"{name}.product")
        return product if bias is None else self.add("Add", [product, self.stored(bias.weight)], output)

    def product(self, name: str, stored: Stored, weight: str, inputs: str, output: str) -> str:
        """Add inputs @ weight.T, the weight as [output rows, input columns], for any way of storing it."""
        if stored.blocks is not None and stored.scales is not None:
            return self.contrib(
                "MatMulNBits",
                [inputs, weight, *self.steps(stored)],
                output,
                K=stored.columns,
                N=stored.weight.shape[0],
                bits=stored.blocks.bits,
                block_size=stored.blocks.size,
                accuracy_level=_ACCURACY_LEVEL,
            )
        if stored.weight.element == "f16":
            weight = self.cast(weight, f"{name}.weight.f32", "f32")
        return self.contrib("FusedMatMul", [inputs, weight], output, transB=1)


def onnx_type(element: Element | KvCache) -> int:
    """Return ONNX's number of an element type, or of that of a KV cache."""
    from onnx import TensorProto

    types: dict[Element | KvCache, int] = {
        "f32": TensorProto.FLOAT,
        "f16": TensorProto.FLOAT16,
        "u8": TensorProto.UINT8,
        "q8": TensorProto.INT8,
    }
    return types[element]


def _external(region: Region, name: str, shape: tuple[int, ...]) -> TensorProto:
    from onnx import TensorProto

    tensor = TensorProto(name=name, dims=shape, data_type=onnx_type(region.element))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", region.offset), ("length", region.size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
