"""The graph: a decoder in operators of ONNX opset 22, or 23 for attention to both sides, and of onnxruntime's
com.microsoft domain.

Inputs and outputs are those that onnxruntime-genai expects. One input more, ``logits_start``, has a default: logits
are computed from that position of ``input_ids`` on (0: all of them; n - 1: the last only; n: none). A model without a
head gives ``states``, float32 [batch, positions, hidden size], from ``states_start`` on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.bundle.decoder import Attention, Convolution, Decoder, Delta, Layer, Mlp
from edgepack.runtime import KvCache
from edgepack_packager.targets.onnx import stateful
from edgepack_packager.targets.onnx.attention import PAST, PRESENT, attention, head_norm, lengths
from edgepack_packager.targets.onnx.layout import Layout
from edgepack_packager.targets.onnx.nodes import Nodes, onnx_type

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto


def serialize(decoder: Decoder, layout: Layout, kv_cache: KvCache) -> bytes:
    """Return the bytes of ``model.onnx``, a function of the arguments alone; the weights are by reference into
    ``model.onnx.data``. ``kv_cache`` is the element type of the cache, and in f16 of the attention."""
    data: bytes = _model(decoder, layout, kv_cache).SerializeToString(deterministic=True)
    return data


def _model(decoder: Decoder, layout: Layout, kv_cache: KvCache) -> ModelProto:
    from onnx import helper

    nodes = Nodes(layout, decoder.norm_eps, kv_cache)
    _decode(nodes, decoder)
    inputs, outputs = _inputs(decoder, kv_cache), _outputs(decoder, kv_cache)
    opset, version = (23, 11) if decoder.at_once else (22, 10)
    return helper.make_model(
        helper.make_graph(nodes.nodes, "decoder", inputs, outputs, list(nodes.initializers.values())),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=version,
        producer_name="edgepack",
    )


def _inputs(decoder: Decoder, kv_cache: KvCache) -> list[ValueInfoProto]:
    from onnx import TensorProto, helper

    return [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        *_caches(decoder, PAST, "past", kv_cache),
        *_states(decoder, stateful.PAST),
        helper.make_tensor_value_info(f"{_output_name(decoder)}_start", TensorProto.INT64, [1]),
    ]


def _outputs(decoder: Decoder, kv_cache: KvCache) -> list[ValueInfoProto]:
    from onnx import TensorProto, helper

    shape = ["batch", "positions", decoder.outputs]
    output = helper.make_tensor_value_info(_output_name(decoder), TensorProto.FLOAT, shape)
    return [output, *_caches(decoder, PRESENT, "present", kv_cache), *_states(decoder, stateful.PRESENT)]


def _caches(decoder: Decoder, pattern: str, length: str, kv_cache: KvCache) -> list[ValueInfoProto]:
    from onnx import helper

    def shape(attention: Attention) -> list[Any]:
        return ["batch", attention.n_kv_heads, length, attention.head_dim]

    return [
        helper.make_tensor_value_info(pattern.format(layer, part), onnx_type(kv_cache), shape(attention))
        for layer, attention in decoder.cached.items()
        for part in ("key", "value")
    ]


def _states(decoder: Decoder, pattern: str) -> list[ValueInfoProto]:
    from onnx import TensorProto, helper

    return [
        helper.make_tensor_value_info(pattern.format(*key), TensorProto.FLOAT, ["batch", *shape])
        for key, shape in decoder.states.items()
    ]


def _decode(nodes: Nodes, decoder: Decoder) -> None:
    """Add the nodes from token ids to logits. A block's output is added to the residual stream by the next norm."""
    lengths(nodes, decoder)
    residual, output = _embed(nodes, decoder), ""
    if decoder.inputs:
        _token_inputs(nodes, decoder, residual)
    for index, layer in enumerate(decoder.layers):
        mixes, feeds = f"layers.{index}.{layer.mixer.room}", f"layers.{index}.mlp"
        inputs, residual = _entered(nodes, layer, mixes, output, residual)
        output = _left(nodes, layer, mixes, _MIXERS[type(layer.mixer)](nodes, decoder, index, inputs))
        inputs, residual = _entered(nodes, layer, feeds, output, residual)
        output = _left(nodes, layer, feeds, _mlp(nodes, layer.mlp, feeds, inputs))
        output, residual = _finished(nodes, layer, index, output, residual)
    _head(nodes, decoder, nodes.norm_of_sum("norm", output, residual)[0] if output else nodes.norm("norm", residual))


_MIXERS = {Attention: attention, Convolution: stateful.convolution, Delta: stateful.delta}


def _entered(nodes: Nodes, layer: Layer, block: str, output: str, residual: str) -> tuple[str, str]:
    """Add the output of the block before, if any, to the stream; return what this block reads, and the stream."""
    if layer.pre_norms and output:
        return nodes.norm_of_sum(f"{block}.norm", output, residual)
    if output:
        residual = nodes.add("Add", [output, residual], f"{block}.residual")
    return nodes.norm(f"{block}.norm", residual) if layer.pre_norms else residual, residual


def _left(nodes: Nodes, layer: Layer, block: str, output: str) -> str:
    """Add what a layer makes of a block's output before it joins the stream."""
    if layer.post_norms:
        output = nodes.norm(f"{block}.post_norm", output)
    return output if layer.residual_scale == 1 else _scaled(nodes, block, output, layer.residual_scale)


def _finished(nodes: Nodes, layer: Layer, index: int, output: str, residual: str) -> tuple[str, str]:
    """Add what follows a layer's blocks: what it makes of its inputs, and its scale; return as ``_entered`` takes it.

    Both are of the whole stream, with the output of the block before.
    """
    name = f"layers.{index}"
    if layer.inputs:
        residual = nodes.add("Add", [output, residual], f"{name}.inputs.residual")
        gate = _activated(nodes, layer.mlp, f"{name}.inputs", nodes.linear(f"{name}.inputs.gate", residual))
        product = nodes.add("Mul", [gate, _inputs_of(index)], f"{name}.inputs.product")
        output = nodes.norm(f"{name}.inputs.post_norm", nodes.linear(f"{name}.inputs.out", product))
    if not layer.scaled:
        return output, residual
    total = nodes.add("Add", [output, residual], f"{name}.residual")
    scale = nodes.stored(nodes.layout.tensors[f"{name}.scale"].weight)
    return "", nodes.add("Mul", [total, scale], f"{name}.scaled")


def _token_inputs(nodes: Nodes, decoder: Decoder, embedded: str) -> None:
    """Add what each layer gets of the tokens: of their rows of a table, and of their scaled embeddings."""
    n, size = decoder.n_layers, decoder.inputs
    rows = _scaled(nodes, "inputs.embedding", _gather(nodes, "inputs.embedding"), size**0.5)
    projected = nodes.linear("inputs.projection", embedded)
    projected = _scaled(nodes, "inputs.projection", projected, decoder.hidden_size**-0.5)
    total = nodes.add("Add", [head_norm(nodes, "inputs.norm", projected, n, size), rows], "inputs.sum")
    parts = map(_inputs_of, range(n))
    nodes.add("Split", [_scaled(nodes, "inputs", total, 2**-0.5)], *parts, axis=-1, num_outputs=n)


def _inputs_of(layer: int) -> str:
    return f"layers.{layer}.inputs"


def _scaled(nodes: Nodes, name: str, inputs: str, scale: float) -> str:
    return nodes.add("Mul", [inputs, nodes.number(f"{name}.scale", scale)], f"{name}.scaled")


def _embed(nodes: Nodes, decoder: Decoder) -> str:
    """Add the rows of the embedding that the tokens name, times the embedding's scale."""
    rows = _gather(nodes, "embedding")
    return rows if decoder.embedding_scale == 1.0 else _scaled(nodes, "embedding", rows, decoder.embedding_scale)


def _gather(nodes: Nodes, name: str) -> str:
    """Add the rows of a table that the tokens name."""
    stored, output = nodes.layout.tensors[name], f"{name}.output"
    weight = stored.weight
    if stored.blocks is None or stored.scales is None:
        rows = nodes.add("Gather", [nodes.stored(weight), "input_ids"], f"{name}.rows")
        return rows if weight.element == "f32" else nodes.cast(rows, output, "f32")
    rows = nodes.contrib(
        "GatherBlockQuantized",
        [nodes.stored(weight, shape=(weight.shape[0], weight.row_bytes)), "input_ids", *nodes.steps(stored)],
        f"{name}.rows",
        block_size=stored.blocks.size,
        bits=stored.blocks.bits,
        gather_axis=0,
        quantize_axis=1,
    )
    if stored.columns % stored.blocks.size == 0:
        return rows
    end = "hidden_size" if name == "embedding" else f"{name}.columns"
    bounds = [nodes.integers("zero", 0), nodes.integers(end, stored.columns)]
    return nodes.add("Slice", [rows, *bounds, nodes.integers("hidden_axis", 2)], output)


def _mlp(nodes: Nodes, mlp: Mlp, name: str, inputs: str) -> str:
    gate, up = nodes.linear(f"{name}.gate", inputs), nodes.linear(f"{name}.up", inputs)
    activated = _activated(nodes, mlp, name, gate)
    return nodes.linear(f"{name}.down", nodes.add("Mul", [activated, up], f"{name}.product"))


def _activated(nodes: Nodes, mlp: Mlp, name: str, inputs: str) -> str:
    if mlp.activation == "silu":
        return nodes.add("Mul", [inputs, nodes.add("Sigmoid", [inputs], f"{name}.sigmoid")], f"{name}.activated")
    return nodes.add("Gelu", [inputs], f"{name}.activated", approximate="tanh")


def _head(nodes: Nodes, decoder: Decoder, inputs: str) -> None:
    """Add the logits from ``logits_start`` on, scaled and softcapped where the decoder says so; or the states."""
    name = _output_name(decoder)
    start, axis = nodes.integers(f"{name}_start", 0), nodes.integers("position_axis", 1)
    last = nodes.add("Slice", [inputs, start, nodes.end(), axis], name if decoder.headless else "head.input")
    if decoder.headless:
        return
    stored = nodes.layout.tensors["embedding" if decoder.tied else "head"]
    # A tied embedding's bytes again, in the shape that MatMulNBits wants where they are quantised: stored once.
    again = decoder.tied and stored.scales is not None
    weight = nodes.stored(stored.weight, name="head.weight" if again else None)
    capped, scaled = decoder.logits_softcap is not None, decoder.logits_scale != 1
    product = nodes.product("head", stored, weight, last, "head.output" if capped or scaled else "logits")
    if scaled:
        scale = nodes.number("logits.scale", decoder.logits_scale)
        product = nodes.add("Mul", [product, scale], "head.scaled" if capped else "logits")
    if decoder.logits_softcap is None:
        return
    cap = nodes.number("logits.softcap", decoder.logits_softcap)
    parts = nodes.add("Div", [product, cap], "head.parts")
    nodes.add("Mul", [nodes.add("Tanh", [parts], "head.tanh"), cap], "logits")


def _output_name(decoder: Decoder) -> str:
    return "states" if decoder.headless else "logits"
