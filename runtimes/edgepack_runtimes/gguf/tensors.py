"""The tensors of a file that llama.cpp does without where they are absent, and the tables of a rope."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import Llama3Scaling, LongRopeScaling, ProportionalScaling, Rope
from edgepack_runtimes.gguf.graphs import Graph
from edgepack_runtimes.gguf.header import Header, Tensor, damaged

_TABLES: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

# The names of an architecture whose layers differ.
_ROOT: Final = ("token_embd", "output_norm", "rope_freqs")
_ROOT_INPUTS: Final = ("per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm")
_LAYER: Final = (
    *("attn_norm", "attn_q", "attn_q_norm", "attn_output", "post_attention_norm"),
    *("ffn_norm", "ffn_gate", "ffn_up", "ffn_down", "post_ffw_norm"),
)
_KEYS: Final = ("attn_k", "attn_v", "attn_k_norm")
_INPUTS: Final = ("inp_gate", "proj", "post_norm")
_SCALE: Final = ("layer_output_scale",)


def check_tensors(header: Header, graph: Graph, decoder: Decoder, path: Path) -> None:
    """Check those that llama.cpp does without where they are absent; it looks for all others itself."""
    tensors = {tensor.name: tensor for tensor in header.tensors}
    if graph.by_layer or graph.layer_norms:
        _check_names(tensors, _of_layer_norms(decoder) if graph.layer_norms else _by_layer(decoder), path)
    embedding = tensors.get("token_embd.weight")
    if embedding is None or embedding.shape != (decoder.hidden_size, decoder.n_vocab):
        raise damaged(path, f"token_embd.weight has shape {embedding and embedding.shape}")
    if ("output.weight" in tensors) == decoder.tied:
        raise damaged(path, f"it has {'a' if decoder.tied else 'no'} head of its own, unlike the model")
    found = Counter(name.rpartition(".")[0].rpartition(".")[2] for name in tensors if name.endswith(".bias"))
    qkv = ("attn_qkv",) if "blk.0.attn_qkv.weight" in tensors else ("attn_q", "attn_k", "attn_v")
    attention, mlp = decoder.attentions[0], decoder.layer(0).mlp
    biases = qkv * attention.qkv_bias + ("attn_output",) * attention.output_bias
    biases += ("ffn_gate", "ffn_up", "ffn_down") * mlp.bias + ("attn_norm", "ffn_norm") * graph.layer_norms
    once = Counter({"ssm_dt": len(decoder.correcting), "output_norm": int(graph.layer_norms)})
    wanted = Counter(biases * decoder.n_layers) + once
    if found != wanted:
        raise damaged(path, f"it has biases on {', '.join(sorted(found)) or 'nothing'}, unlike the model")
    expected = _pairs(decoder) if graph.by_layer else _tables(decoder)
    for name in _TABLES:
        if (name in tensors) != (name in expected):
            raise damaged(path, f"it has {'a' if name in tensors else 'no'} tensor {name}, unlike the model")
        if name in expected:
            _check_table(tensors[name], expected[name])


def _check_table(tensor: Tensor, expected: NDArray[np.float32]) -> None:
    path = tensor.file
    if tensor.type_name != "f32" or tensor.shape != expected.shape:
        raise damaged(path, f"{tensor.name} is {tensor.type_name} of shape {tensor.shape}, not f32 of {expected.shape}")
    values = np.fromfile(path, "<f4", len(expected), offset=tensor.offset)
    if not np.allclose(values, expected, rtol=1e-5):
        raise damaged(path, f"{tensor.name} holds other factors than the model's rope")


def _check_names(tensors: Collection[str], wanted: set[str], path: Path) -> None:
    """Check that there are the tensors of each layer and no others, which would make another layer of it."""
    for name in sorted((wanted ^ {*tensors}) - {"output.weight"}):
        raise damaged(path, f"it has {'no' if name in wanted else 'a'} tensor {name}, unlike the model")


def _of_layer_norms(decoder: Decoder) -> set[str]:
    """Without a norm before the MLP llama.cpp adds both blocks to the stream at once; norms of heads it does if any."""
    layers = [f"blk.{index}." for index in range(decoder.n_layers)]
    norms = ["output_norm", *(f"{layer}{norm}" for layer in layers for norm in ("attn_norm", "ffn_norm"))]
    qkv = [f"{layer}{part}" for layer in layers for part in ("attn_q", "attn_k", "attn_v")]
    others = [f"{layer}{part}" for layer in layers for part in ("attn_output", "ffn_gate", "ffn_up", "ffn_down")]
    biased = norms + qkv * decoder.attentions[0].qkv_bias
    weights = (f"{name}.weight" for name in ("token_embd", *norms, *qkv, *others))
    return {*weights, *(f"{name}.bias" for name in biased)}


def _by_layer(decoder: Decoder) -> set[str]:
    wanted = {f"{name}.weight" for name in _ROOT + _ROOT_INPUTS * bool(decoder.inputs)}
    for index, layer in enumerate(decoder.layers):
        names = _LAYER + _KEYS * (index in decoder.keeping) + _INPUTS * bool(layer.inputs) + _SCALE * bool(layer.scaled)
        wanted |= {f"blk.{index}.{name}.weight" for name in names}
    return wanted


def _pairs(decoder: Decoder) -> dict[str, NDArray[np.float32]]:
    """Return by what the angles of layers without window are divided, so that nothing is left of those that stay."""
    rope = next(each.rope for each in decoder.attentions if each.rope and not each.window)
    turned = rope.scaling.turned if isinstance(rope.scaling, ProportionalScaling) else rope.dim // 2
    return {_TABLES[0]: np.where(np.arange(rope.dim // 2) < turned, 1, 1e30).astype(np.float32)}


def _tables(decoder: Decoder) -> dict[str, NDArray[np.float32]]:
    rope = decoder.ropes[0]
    match rope.scaling:
        case Llama3Scaling():
            return {_TABLES[0]: Rope(theta=rope.theta, dim=rope.dim).frequencies() / rope.frequencies()}
        case LongRopeScaling(factors):
            return dict.fromkeys(_TABLES[1:], np.array(factors, np.float32))
    return {}
