"""The tensors of a file that llama.cpp does without where they are absent, and the tables of a rope."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import Llama3Scaling, LongRopeScaling, Rope
from edgepack_runtimes.gguf.header import Header, Tensor, damaged

_TABLES: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def check_tensors(header: Header, decoder: Decoder, path: Path) -> None:
    """Check those that llama.cpp does without where they are absent; it looks for all others itself."""
    tensors = {tensor.name: tensor for tensor in header.tensors}
    embedding = tensors.get("token_embd.weight")
    if embedding is None or embedding.shape != (decoder.hidden_size, decoder.n_vocab):
        raise damaged(path, f"token_embd.weight has shape {embedding and embedding.shape}")
    if ("output.weight" in tensors) == decoder.tied:
        raise damaged(path, f"it has {'a' if decoder.tied else 'no'} head of its own, unlike the model")
    found = Counter(name.rpartition(".")[0].rpartition(".")[2] for name in tensors if name.endswith(".bias"))
    qkv = ("attn_qkv",) if "blk.0.attn_qkv.weight" in tensors else ("attn_q", "attn_k", "attn_v")
    attention, mlp = decoder.attentions[0], decoder.layer(0).mlp
    biases = qkv * attention.qkv_bias + ("attn_output",) * attention.output_bias
    biases += ("ffn_gate", "ffn_up", "ffn_down") * mlp.bias
    wanted = Counter(biases * decoder.n_layers) + Counter({"ssm_dt": len(decoder.correcting)})
    if found != wanted:
        raise damaged(path, f"it has biases on {', '.join(sorted(found)) or 'nothing'}, unlike the model")
    expected = _tables(decoder)
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


def _tables(decoder: Decoder) -> dict[str, NDArray[np.float32]]:
    rope = decoder.ropes[0]
    match rope.scaling:
        case Llama3Scaling():
            return {_TABLES[0]: Rope(theta=rope.theta, dim=rope.dim).frequencies() / rope.frequencies()}
        case LongRopeScaling(factors):
            return dict.fromkeys(_TABLES[1:], np.array(factors, np.float32))
    return {}
