"""A small decoder as an exporter might write it: a checkpoint, its graph in ONNX, and its logits in numpy.

Learned positions, attention without a bias, no norm and no MLP: what is there serves to be run, and to be heard where
it is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder

Float32 = NDArray[np.float32]

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 384, 32, 2, 4, 96
SIZE = WIDTH // HEADS
CONFIG: Mapping[str, object] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_positions": CONTEXT,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def weights(seed: int = 0) -> dict[str, Float32]:
    """Return the tensors of a checkpoint, loud enough that each is heard in the logits."""
    random = np.random.default_rng(seed)
    shapes = {"wte": (VOCABULARY, WIDTH), "wpe": (CONTEXT, WIDTH), "head": (WIDTH, VOCABULARY)}
    for layer in range(LAYERS):
        shapes |= {f"{layer}.{part}": (WIDTH, WIDTH) for part in "qkvo"}
    return {
        name: (random.standard_normal(shape) * (1 if name[0] == "w" else 1.3 / WIDTH**0.5)).astype(np.float32)
        for name, shape in shapes.items()
    }


def logits(tensors: Mapping[str, Float32], ids: Sequence[int]) -> Float32:
    """Return the logits after each id, computed in float64: float32 [n, VOCABULARY]."""
    exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    n = len(ids)
    x = exact["wte"][list(ids)] + exact["wpe"][:n]
    for layer in range(LAYERS):
        q, k, v = ((x @ exact[f"{layer}.{part}"]).reshape(n, HEADS, SIZE).transpose(1, 0, 2) for part in "qkv")
        scores = q @ k.transpose(0, 2, 1) / SIZE**0.5
        scores[:, np.triu(np.ones((n, n), bool), 1)] = -1e9
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + mixed.transpose(1, 0, 2).reshape(n, WIDTH) @ exact[f"{layer}.o"]
    found: Float32 = (x @ exact["head"]).astype(np.float32)
    return found


def write_checkpoint(folder: Path, **changes: object) -> Path:
    """Write config.json, with ``changes``, and model.safetensors; return the folder."""
    from models import write_safetensors

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    write_safetensors(folder, weights(), "f32")
    return folder


def write_graph(folder: Path, tensors: Mapping[str, Float32], ahead: int = 0) -> None:
    """Write model.onnx and model.onnx.data as optimum names and shapes them; positions are ``ahead`` of those given."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    step, past, total = "sequence_length", "past_sequence_length", "past_sequence_length + sequence_length"
    one = "batch_size"
    inputs = {"input_ids": (one, step), "attention_mask": (one, total), "position_ids": (one, step)}
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (one, step, VOCABULARY))]
    for layer in range(LAYERS):
        for part in ("key", "value"):
            given, made = (one, HEADS, past, SIZE), (one, HEADS, total, SIZE)
            values.append(helper.make_tensor_value_info(f"past_key_values.{layer}.{part}", TensorProto.FLOAT, given))
            outputs.append(helper.make_tensor_value_info(f"present.{layer}.{part}", TensorProto.FLOAT, made))
    numbers = {
        "ahead": np.int64(ahead),
        "zero": np.int64(0),
        "one": np.int64(1),
        "ones": np.array([1]),
        "twos": np.array([2]),
        "split": np.array([0, -1, HEADS, SIZE]),
        "joined": np.array([0, -1, WIDTH]),
        "scale": np.float32(SIZE**0.5),
        "hidden": np.float32(-1e9),
    }
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in {**tensors, **numbers}.items()]
    graph = helper.make_graph(list(_nodes()), "decoder", values, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save_model(
        model,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=1024,
        convert_attribute=False,
    )


def decoder(folder: Path) -> Decoder:
    """Return the decoder of a graph in a folder, as a build has it."""
    from edgepack_packager.exporting import config, graph

    return graph.OnnxPayload().described(
        folder, config.describe(CONFIG, reads=4), "fake 1", sum(map(np.size, weights().values()))
    )


def write_mlx(folder: Path) -> Decoder:
    """Write a GPT-2 as mlx-lm spells it, with random weights, and return its decoder."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import gpt2

    from edgepack_packager.exporting import config, spelled

    fields = {**CONFIG, "n_ctx": CONTEXT, "layer_norm_epsilon": 1e-5}
    (folder / "config.json").write_text(json.dumps(fields))
    model = gpt2.Model(gpt2.ModelArgs.from_dict(fields))
    random = np.random.default_rng(0)
    tensors = {
        name: mx.array(random.standard_normal(array.shape).astype(np.float32) / array.shape[-1] ** 0.5)
        for name, array in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    described = config.describe(fields, reads=5)
    return spelled.MlxPayload().described(folder, described, "fake 1", sum(array.size for array in tensors.values()))


def _nodes() -> Iterator[object]:
    from onnx import helper

    def node(operator: str, inputs: str, output: str, **attributes: object) -> object:
        return helper.make_node(operator, inputs.split(), [output], **attributes)

    yield node("Add", "position_ids ahead", "positions")
    yield node("Gather", "wte input_ids", "tokens")
    yield node("Gather", "wpe positions", "places")
    yield node("Add", "tokens places", "x0")
    yield node("Shape", "attention_mask", "shape")
    yield node("Gather", "shape one", "total")
    yield node("Range", "zero total one", "columns")
    yield node("Unsqueeze", "position_ids twos", "rows")
    yield node("LessOrEqual", "columns rows", "seen0")
    yield node("Unsqueeze", "seen0 ones", "seen")
    for layer in range(LAYERS):
        for part in "qkv":
            yield node("MatMul", f"x{layer} {layer}.{part}", f"{part}{layer}.flat")
            yield node("Reshape", f"{part}{layer}.flat split", f"{part}{layer}.split")
            yield node("Transpose", f"{part}{layer}.split", f"{part}{layer}", perm=[0, 2, 1, 3])
        for part, kind in (("k", "key"), ("v", "value")):
            yield node("Concat", f"past_key_values.{layer}.{kind} {part}{layer}", f"present.{layer}.{kind}", axis=2)
        yield node("Transpose", f"present.{layer}.key", f"keys{layer}", perm=[0, 1, 3, 2])
        yield node("MatMul", f"q{layer} keys{layer}", f"raw{layer}")
        yield node("Div", f"raw{layer} scale", f"scores{layer}")
        yield node("Where", f"seen scores{layer} hidden", f"masked{layer}")
        yield node("Softmax", f"masked{layer}", f"weights{layer}", axis=-1)
        yield node("MatMul", f"weights{layer} present.{layer}.value", f"mixed{layer}")
        yield node("Transpose", f"mixed{layer}", f"turned{layer}", perm=[0, 2, 1, 3])
        yield node("Reshape", f"turned{layer} joined", f"flat{layer}")
        yield node("MatMul", f"flat{layer} {layer}.o", f"out{layer}")
        yield node("Add", f"x{layer} out{layer}", f"x{layer + 1}")
    yield node("MatMul", f"x{LAYERS} head", "logits")
