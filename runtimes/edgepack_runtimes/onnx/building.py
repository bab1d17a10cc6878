"""What every part of an expected graph is made of: operators, initialisers, and operations with weights.

It knows how a tensor may be stored, and asks the graph that was found which of these ways it is.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgepack.bundle.decoder import Decoder
from edgepack_runtimes.onnx.operators import F16, F32, I64, U8, Attribute, Graph, Node, Tensor

_CONTRIB: Final = "com.microsoft"
_CONTRIBUTED: Final = frozenset({"CausalConvWithState", "FusedMatMul", "GatedDeltaNet", "GatedRMSNorm",
                                 "GatherBlockQuantized", "GroupQueryAttention", "MatMulNBits", "RotaryEmbedding",
                                 "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})  # fmt: skip
_FORMS: Final = frozenset({(bits, size) for bits in (2, 4, 8) for size in (32, 64, 128)})
_ASYMMETRIC_BITS: Final = 4
_ACCURACY_LEVELS: Final = range(5)


class Building:
    """A graph under construction. What adds an operator returns the name of its first output."""

    def __init__(self, decoder: Decoder, found: Graph) -> None:
        self.graph = Graph()
        self._decoder, self._found = decoder, found
        self._made_by = {name: node for node in found.nodes for name in node.outputs}
        self._shapes = dict(decoder.tensors())

    def _norm(self, name: str, inputs: str, gain: str = "") -> str:
        weights = [gain] if gain else self._norm_weights(name)
        return self._add(
            "LayerNormalization" if len(weights) > 1 else "SimplifiedLayerNormalization",
            [inputs, *weights],
            f"{name}.output",
            epsilon=self._decoder.norm_eps,
            axis=-1,
            stash_type=1,
        )

    def _head_norm(self, name: str, inputs: str, heads: int, size: int, gain: str = "") -> str:
        split = self._add("Reshape", [inputs, self._integers(f"{heads}x{size}", 0, 0, heads, size)], f"{name}.heads")
        return self._add("Reshape", [self._norm(name, split, gain), self._integers("flat", 0, 0, -1)], f"{name}.flat")

    def _ones(self, size: int) -> str:
        name = f"ones.{size}"
        if all(name not in node.outputs for node in self.graph.nodes):
            self._add("Expand", [self._number("unit", 1.0), self._integers(f"{name}.shape", size)], name)
        return name

    def _norm_of_sum(self, name: str, inputs: str, residual: str) -> tuple[str, str]:
        weights = self._norm_weights(name)
        operator = "SkipLayerNormalization" if len(weights) > 1 else "SkipSimplifiedLayerNormalization"
        output, total = f"{name}.output", f"{name}.residual"
        outputs = (output, "", "", total)
        self._add(operator, [inputs, residual, *weights], *outputs, epsilon=self._decoder.norm_eps)
        return output, total

    def _norm_weights(self, name: str) -> list[str]:
        """The gain of a norm, and the bias that only a LayerNorm has."""
        bias, weights = f"{name}.bias", [self._stored(f"{name}.weight", F32, *self._shapes[name])]
        return [*weights, self._stored(bias, F32, *self._shapes[bias])] if bias in self._shapes else weights

    def _scaled(self, name: str, inputs: str, scale: float) -> str:
        return self._add("Mul", [inputs, self._number(f"{name}.scale", scale)], f"{name}.scaled")

    def _gathered(self, name: str) -> str:
        """The rows of a table that the tokens name, without what fills their last blocks."""
        shape = rows, columns = self._shapes[name]
        weight, gathered = f"{name}.weight", f"{name}.rows"
        if not (form := self._form(gathered)):
            kind = self._float_type(weight)
            output = self._add("Gather", [self._stored(weight, kind, *shape), "input_ids"], gathered)
            return output if kind == F32 else self._cast(output, f"{name}.output", F32)
        bits, size = form
        count = -(-columns // size)
        self._stored(weight, U8, rows, count * size * bits // 8)
        inputs = [weight, "input_ids", *self._steps(name, rows, count, bits)]
        output = self._add(
            "GatherBlockQuantized", inputs, gathered, block_size=size, bits=bits, gather_axis=0, quantize_axis=1
        )
        if columns % size == 0:
            return output
        end = "hidden_size" if name == "embedding" else f"{name}.columns"
        bounds = [self._integers("zero", 0), self._integers(end, columns)]
        return self._add("Slice", [output, *bounds, self._integers("hidden_axis", 2)], f"{name}.output")

    def _linear(self, name: str, inputs: str) -> str:
        bias = f"{name}.bias"
        if bias not in self._shapes:
            return self._product(name, name, inputs, f"{name}.output")
        product = self._product(name, name, inputs, f"{name}.product")
        return self._add("Add", [product, self._stored(bias, F32, *self._shapes[bias])], f"{name}.output")

    def _product(self, name: str, stored: str, inputs: str, output: str) -> str:
        """Inputs times a stored matrix, whose bytes a quantised head has under a name and a shape of its own."""
        rows, columns = self._shapes[stored]
        if form := self._form(output):
            bits, size = form
            count = -(-columns // size)
            weight = self._stored(f"{name}.weight", U8, rows, count, size * bits // 8)
            steps = self._steps(stored, rows, count, bits)
            level = self._made_by[output].attributes.get("accuracy_level")
            level = level if isinstance(level, int) and level in _ACCURACY_LEVELS else 4
            return self._add(
                "MatMulNBits",
                [inputs, weight, *steps],
                output,
                K=columns,
                N=rows,
                bits=bits,
                block_size=size,
                accuracy_level=level,
            )
        weight = f"{stored}.weight"
        kind = self._float_type(weight)
        self._stored(weight, kind, rows, columns)
        if kind == F16:
            weight = self._cast(weight, f"{name}.weight.f32", F32)
        return self._add("FusedMatMul", [inputs, weight], output, transB=1)

    def _steps(self, stored: str, rows: int, count: int, bits: int) -> list[str]:
        """The scales of a matrix's blocks, and of asymmetric ones the zero points, two in a byte."""
        scales, zeros = self._stored(f"{stored}.scales", F32, rows, count), f"{stored}.zeros"
        if bits != _ASYMMETRIC_BITS or zeros not in self._found.tensors:
            return [scales]
        return [scales, self._stored(zeros, U8, rows, -(-count * bits // 8))]

    def _form(self, output: str) -> tuple[int, int] | None:
        """Return the bits of a code and the columns of a block that the operator of an output reads, None for none."""
        node = self._made_by.get(output)
        sizes = (node.attributes.get("bits"), node.attributes.get("block_size")) if node else ()
        return next((form for form in _FORMS if form == sizes), None)

    def _float_type(self, weight: str) -> int:
        tensor = self._found.tensors.get(weight)
        return F16 if tensor and tensor.type == F16 else F32

    def _stored(self, name: str, type: int, *dims: int) -> str:
        self.graph.tensors[name] = Tensor(type, dims)
        return name

    def _integers(self, name: str, *values: int) -> str:
        self.graph.tensors[name] = Tensor(I64, (len(values),), values)
        return name

    def _end(self) -> str:
        return self._integers("end", 2**63 - 1)

    def _number(self, name: str, value: float) -> str:
        self.graph.tensors[name] = Tensor(F32, (), (float(np.float32(value)),))
        return name

    def _cast(self, inputs: str, output: str, type: int) -> str:
        return self._add("Cast", [inputs], output, to=type)

    def _add(self, operator: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Attribute) -> str:
        rounded = {
            name: float(np.float32(value)) if isinstance(value, float) else value for name, value in attributes.items()
        }
        self.graph.nodes.append(
            Node(operator, _CONTRIB if operator in _CONTRIBUTED else "", tuple(inputs), outputs, rounded)
        )
        return outputs[0]
