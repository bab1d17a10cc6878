"""The graph: a Llama decoder in operators of ONNX opset 22 and of onnxruntime's com.microsoft domain.

Inputs and outputs are those that onnxruntime-genai expects. One input more, ``logits_start``, has a default: logits
are computed from that position of ``input_ids`` on (0: all of them; n - 1: the last only; n: none).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.decoder import Decoder
from edgepack_packager.targets.onnx.layout import BLOCK, DATA_FILE, SCHEMES, Layout, Region, Stored

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

PAST = "past_key_values.{}.{}"
PRESENT = "present.{}.{}"

_TO_THE_END = 2**63 - 1
# Activations are quantised to int8 in blocks too, so that the products are integer dot products.
_ACCURACY_LEVEL = 4


def build(decoder: Decoder, layout: Layout) -> ModelProto:
    """Return the model, its weights by reference into ``model.onnx.data``. The same arguments give the same model."""
    from onnx import helper

    graph = _Graph(decoder, layout)
    graph.decode()
    return helper.make_model(
        helper.make_graph(graph.nodes, "decoder", graph.inputs(), graph.outputs(), graph.initializers),
        opset_imports=[helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
        producer_name="edgepack",
    )


class _Graph:
    def __init__(self, decoder: Decoder, layout: Layout) -> None:
        self.decoder = decoder
        self.layout = layout
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.rotary_in_attention = decoder.head_dim % 16 == 0 and decoder.ropes[0].dim % 16 == 0

    def inputs(self) -> list[Any]:
        from onnx import TensorProto, helper

        cache = ["batch", self.decoder.n_kv_heads, "past", self.decoder.head_dim]
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
            *self._cache(PAST, cache),
            helper.make_tensor_value_info("logits_start", TensorProto.INT64, [1]),
        ]

    def outputs(self) -> list[Any]:
        from onnx import TensorProto, helper

        cache = ["batch", self.decoder.n_kv_heads, "present", self.decoder.head_dim]
        shape = ["batch", "positions", self.decoder.n_vocab]
        return [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape), *self._cache(PRESENT, cache)]

    def _cache(self, pattern: str, shape: list[Any]) -> list[Any]:
        from onnx import TensorProto, helper

        return [
            helper.make_tensor_value_info(pattern.format(layer, part), TensorProto.FLOAT, shape)
            for layer in range(self.decoder.n_layers)
            for part in ("key", "value")
        ]

    def decode(self) -> None:
        """Add the nodes from token ids to logits."""
        self._lengths()
        self._tables()
        hidden = self._embed()
        residual, skip = "", hidden
        for layer in range(self.decoder.n_layers):
            name = f"layers.{layer}"
            normed, residual = self._norm(f"{name}.attention.norm", skip, residual)
            skip = self._attention(layer, normed)
            normed, residual = self._norm(f"{name}.mlp.norm", skip, residual)
            skip = self._mlp(f"{name}.mlp", normed)
        normed, _ = self._norm("norm", skip, residual)
        ends, axis = self._constant("end", [_TO_THE_END]), self._constant("position_axis", [1])
        self._constant("logits_start", [0])
        last = self._node("Slice", [normed, "logits_start", ends, axis], "head.input")
        self._head(last)

    def _lengths(self) -> None:
        """From the attention mask: each row's last position, and the length of the whole."""
        from onnx import TensorProto

        one = self._constant("one", [1])
        count = self._node("ReduceSum", ["attention_mask", one], "mask.count", keepdims=0)
        last = self._node("Sub", [count, one], "mask.last")
        self._node("Cast", [last], "seqlens_k", to=TensorProto.INT32)
        total = self._node("Shape", ["attention_mask"], "mask.total", start=1, end=2)
        self._node("Cast", [total], "total_sequence_length", to=TensorProto.INT32)

    def _tables(self) -> None:
        for region in (self.layout.cosine, self.layout.sine):
            self._initializer(region)
        if self.rotary_in_attention:
            return
        one, zero, ends = self._constant("one", [1]), self._constant("zero", [0]), self._constant("end", [_TO_THE_END])
        counts = self._node("CumSum", ["attention_mask", one], "mask.counts")
        numbers = self._node("Sub", [counts, one], "mask.numbers")
        positions = self._node("Max", [numbers, zero], "mask.positions")
        length = self._node("Shape", ["input_ids"], "input.length", start=1, end=2)
        start = self._node("Neg", [length], "input.start")
        self._node("Slice", [positions, start, ends, one], "position_ids")

    def _embed(self) -> str:
        from onnx import TensorProto

        stored = self.layout.tensors["embedding"]
        weight, output = stored.weight, "embedding.output"
        if stored.scales is None:
            self._initializer(weight)
            if stored.scheme == "f32":
                return self._node("Gather", [weight.name, "input_ids"], output)
            gathered = self._node("Gather", [weight.name, "input_ids"], "embedding.gathered")
            return self._node("Cast", [gathered], output, to=TensorProto.FLOAT)
        self._initializer(weight, shape=(weight.shape[0], weight.row_bytes))
        self._initializer(stored.scales)
        padded = stored.columns % BLOCK != 0
        gathered = self._contrib(
            "GatherBlockQuantized",
            [weight.name, "input_ids", stored.scales.name],
            "embedding.padded" if padded else output,
            block_size=BLOCK,
            bits=SCHEMES[stored.scheme],
            gather_axis=0,
            quantize_axis=1,
        )
        if not padded:
            return gathered
        bounds = [self._constant(name, [value]) for name, value in (("zero", 0), ("hidden_size", stored.columns))]
        return self._node("Slice", [gathered, *bounds, self._constant("hidden_axis", [2])], output)

    def _norm(self, name: str, inputs: str, residual: str) -> tuple[str, str]:
        """Add a norm of ``inputs`` plus ``residual`` (if there is one); return its output and the sum."""
        gain = self.layout.tensors[name].weight
        self._initializer(gain)
        output, total = f"{name}.output", f"{name}.residual"
        epsilon = self.decoder.norm_eps
        if not residual:
            node = [inputs, gain.name]
            self._node("SimplifiedLayerNormalization", node, output, epsilon=epsilon, axis=-1, stash_type=1)
            return output, inputs
        outputs = [output, "", "", total]
        node = [inputs, residual, gain.name]
        self._contrib("SkipSimplifiedLayerNormalization", node, *outputs, epsilon=epsilon)
        return output, total

    def _attention(self, layer: int, inputs: str) -> str:
        decoder, name = self.decoder, f"layers.{layer}.attention"
        q, k, v = (self._linear(f"{name}.{part}", inputs) for part in ("q", "k", "v"))
        tables = [self.layout.cosine.name, self.layout.sine.name]
        if not self.rotary_in_attention:
            q = self._rotate(q, decoder.n_heads, tables)
            k = self._rotate(k, decoder.n_kv_heads, tables)
            tables = []
        caches = [PAST.format(layer, part) for part in ("key", "value")]
        output = self._contrib(
            "GroupQueryAttention",
            [q, k, v, *caches, "seqlens_k", "total_sequence_length", *tables],
            f"{name}.output",
            *(PRESENT.format(layer, part) for part in ("key", "value")),
            num_heads=decoder.n_heads,
            kv_num_heads=decoder.n_kv_heads,
            do_rotary=int(self.rotary_in_attention),
        )
        return self._linear(f"{name}.o", output)

    def _rotate(self, inputs: str, heads: int, tables: list[str]) -> str:
        partial = self.decoder.ropes[0].dim != self.decoder.head_dim
        attributes = {"num_heads": heads, "rotary_embedding_dim": self.decoder.ropes[0].dim} if partial else {}
        rotated = inputs.removesuffix(".output") + ".rotated"
        return self._contrib("RotaryEmbedding", [inputs, "position_ids", *tables], rotated, **attributes)

    def _mlp(self, name: str, inputs: str) -> str:
        gate, up = self._linear(f"{name}.gate", inputs), self._linear(f"{name}.up", inputs)
        sigmoid = self._node("Sigmoid", [gate], f"{name}.sigmoid")
        activated = self._node("Mul", [gate, sigmoid], f"{name}.activated")
        return self._linear(f"{name}.down", self._node("Mul", [activated, up], f"{name}.product"))

    def _linear(self, name: str, inputs: str) -> str:
        stored = self.layout.tensors[name]
        for region in stored.regions:
            self._initializer(region)
        bias = self.layout.tensors.get(f"{name}.bias")
        output = f"{name}.output"
        product = self._product(name, stored, stored.weight.name, inputs, output if bias is None else f"{name}.product")
        if bias is None:
            return product
        self._initializer(bias.weight)
        return self._node("Add", [product, bias.weight.name], output)

    def _head(self, inputs: str) -> str:
        name = "embedding" if self.decoder.tied else "head"
        stored = self.layout.tensors[name]
        weight = stored.weight.name
        if not self.decoder.tied:
            for region in stored.regions:
                self._initializer(region)
        elif stored.scales is not None:
            # The embedding's bytes again, in the shape that MatMulNBits wants: stored once, named twice.
            weight = "head.weight"
            self._initializer(stored.weight, name=weight)
        return self._product("head", stored, weight, inputs, "logits")

    def _product(self, name: str, stored: Stored, weight: str, inputs: str, output: str) -> str:
        """Add inputs @ weight.T, the weight as [output rows, input columns]."""
        from onnx import TensorProto

        if stored.scales is not None:
            return self._contrib(
                "MatMulNBits",
                [inputs, weight, stored.scales.name],
                output,
                K=stored.columns,
                N=stored.weight.shape[0],
                bits=SCHEMES[stored.scheme],
                block_size=BLOCK,
                accuracy_level=_ACCURACY_LEVEL,
            )
        if stored.scheme == "f16":
            weight = self._node("Cast", [weight], f"{name}.weight.f32", to=TensorProto.FLOAT)
        return self._contrib("FusedMatMul", [inputs, weight], output, transB=1)

    def _node(self, operator: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(
            helper.make_node(operator, inputs, list(outputs), name=outputs[0], domain=domain, **attributes)
        )
        return outputs[0]

    def _contrib(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        return self._node(operator, inputs, *outputs, domain="com.microsoft", **attributes)

    def _constant(self, name: str, values: list[int]) -> str:
        from onnx import TensorProto, helper

        if all(known.name != name for known in self.initializers):
            self.initializers.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    def _initializer(self, region: Region, *, name: str | None = None, shape: tuple[int, ...] | None = None) -> None:
        self.initializers.append(_external(region, name or region.name, shape or region.shape))


def _external(region: Region, name: str, shape: tuple[int, ...]) -> TensorProto:
    from onnx import TensorProto

    elements = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "u8": TensorProto.UINT8}
    tensor = TensorProto(name=name, dims=shape, data_type=elements[region.element])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", region.offset), ("length", region.size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
