"""Makes small random checkpoints in Hugging Face layout, with numpy only; the same arguments give the same bytes.

The weights have a variance that keeps every block of the model audible in the logits: a model that echoes its input
would hide a fault.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from text_side import write_json, write_text_side

Shape = tuple[int, ...]

LINEAR: Mapping[str, object] = {"rope_type": "linear", "factor": 4.0}
LLAMA3: Mapping[str, object] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def make_llama(
    folder: Path,
    *,
    seed: int = 0,
    dtype: Literal["f32", "f16", "bf16"] = "bf16",
    shards: int = 1,
    tied: bool = True,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate: int = 160,
    n_vocab: int = 384,
    context: int = 512,
    norm_eps: float = 1e-5,
    theta: float = 10000.0,
    rope: Mapping[str, object] | None = None,
    spelling: Literal["v4", "v5"] = "v4",
    attention_bias: bool = False,
    mlp_bias: bool = False,
    gain: float = 1.0,
    tokenizer: bool = True,
    add_bos: bool = False,
    config: Mapping[str, object] | None = None,
) -> Path:
    """Write a checkpoint into ``folder`` (made if needed) and return the folder.

    ``gain`` scales the deviation of all matrices: with less of it a deep model forgives more quantisation noise.
    ``rope`` is the scaling in the v4 spelling (``LINEAR``, ``LLAMA3`` or None); ``config`` overrides or adds fields of
    config.json after the weights were made, so that a test can make the two disagree. ``tokenizer`` also writes a
    byte-level BPE of at most 384 entries, its configuration and a ChatML template.
    """
    torch_dtype = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]
    fields: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": n_vocab,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "rms_norm_eps": norm_eps,
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if head_dim is not None:
        fields["head_dim"] = head_dim
    if spelling == "v4":
        fields |= {"rope_theta": theta, "rope_scaling": dict(rope) if rope else None, "torch_dtype": torch_dtype}
    else:
        fields |= {"rope_parameters": {"rope_type": "default", **(rope or {}), "rope_theta": theta}}
        fields |= {"dtype": torch_dtype}
    return make_model(
        folder,
        fields,
        seed=seed,
        dtype=dtype,
        shards=shards,
        gain=gain,
        tokenizer=tokenizer,
        add_bos=add_bos,
        config=config,
    )


def make_model(
    folder: Path,
    fields: Mapping[str, Any],
    *,
    seed: int = 0,
    dtype: str = "f32",
    shards: int = 1,
    gain: float = 1.0,
    tokenizer: bool = True,
    add_bos: bool = False,
    config: Mapping[str, object] | None = None,
) -> Path:
    """Write a checkpoint of any family: the tensors that transformers makes for a config.json of ``fields``.

    Arguments as of ``make_llama``; a model with a ``text_config`` gets the names of the hub, and two tensors that see.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: draw(name, shape, seed, gain, fields) for name, shape in shapes(fields).items()}
    if "text_config" in fields:
        tensors = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
        tensors["vision_tower.vision_model.post_layernorm.weight"] = np.ones(32, np.float32)
        tensors["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(32, np.float32)
    write_safetensors(folder, tensors, dtype, shards)
    write_json(folder / "config.json", {**fields, **(config or {})})
    if tokenizer:
        write_text_side(folder, text_of(fields)["vocab_size"], add_bos)
    return folder


def write_safetensors(folder: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str, shards: int = 1) -> None:
    """Write tensors as model.safetensors, or as that many shards and their index."""
    names = list(tensors)
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, dtype))
        return
    weight_map: dict[str, str] = {}
    for shard, part in enumerate(np.array_split(np.arange(len(names)), shards), start=1):
        file = f"model-{shard:05}-of-{shards:05}.safetensors"
        chosen = {names[i]: tensors[names[i]] for i in part}
        (folder / file).write_bytes(safetensors_bytes(chosen, dtype))
        weight_map |= dict.fromkeys(chosen, file)
    total = sum(tensor.size for tensor in tensors.values()) * (4 if dtype == "f32" else 2)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def safetensors_bytes(tensors: Mapping[str, NDArray[np.float32]], dtype: str) -> bytes:
    """Return one safetensors file: an 8-byte little-endian header length, the JSON header, the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, tensor in tensors.items():
        start = len(data)
        data += encode(tensor, dtype)
        header[name] = {"dtype": dtype.upper(), "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def encode(tensor: NDArray[np.float32], dtype: str) -> bytes:
    """Return the little-endian bytes of a tensor rounded to "f32", "f16" or "bf16" (to nearest, ties to even)."""
    if dtype == "f32":
        return tensor.astype("<f4").tobytes()
    if dtype == "f16":
        return tensor.astype("<f2").tobytes()
    bits = np.ascontiguousarray(tensor, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def shapes(fields: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the names and shapes of the tensors of a model with these fields of config.json, its text part only."""
    found = dict(_weights(fields))
    text, architecture = text_of(fields), _architecture(fields)
    patterns = {
        r"self_attn\.[qkv]_proj\.weight$": architecture in ("Qwen2ForCausalLM", "SeedOssForCausalLM")
        or text.get("use_qkv_bias"),
        r"self_attn\..*_proj\.weight$": text.get("attention_bias") and architecture != "SeedOssForCausalLM",
        r"mlp\..*_proj\.weight$": text.get("mlp_bias"),
        r"_proj\.weight$": text.get("use_bias"),
        r"norm\.weight$": architecture == "StableLmForCausalLM",
    }
    biased = [name for pattern, asked in patterns.items() if asked for name in found if re.search(pattern, name)]
    return found | {name.removesuffix("weight") + "bias": found[name][:1] for name in biased}


def _weights(fields: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    text, architecture = text_of(fields), _architecture(fields)
    if architecture.startswith("Lfm2"):
        yield from _lfm2_weights(fields)
        return
    if architecture.startswith("Lfm3"):
        yield from _lfm3_weights(fields)
        return
    if architecture.startswith("Qwen3_5"):
        yield from _qwen3_5_weights(fields)
        return
    if architecture.startswith("Gemma4"):
        yield from _gemma4_weights(fields)
        return
    hidden, inter = text["hidden_size"], text["intermediate_size"]
    # The heads, the size of one and the vocabulary are those of Gemma3TextConfig where nothing is said.
    vocab, heads = text.get("vocab_size", 262208), text.get("num_attention_heads", 8)
    size = text.get("head_dim") or (256 if "text_config" in fields else hidden // heads)
    q, kv = heads * size, text.get("num_key_value_heads", 4) * size
    after = architecture.startswith(("Olmo", "Exaone4"))
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(text["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        if not after:
            yield f"{prefix}.input_layernorm.weight", (hidden,)
        if architecture.startswith("Phi3"):
            yield f"{prefix}.self_attn.qkv_proj.weight", (q + 2 * kv, hidden)
        else:
            yield f"{prefix}.self_attn.q_proj.weight", (q, hidden)
            yield f"{prefix}.self_attn.k_proj.weight", (kv, hidden)
            yield f"{prefix}.self_attn.v_proj.weight", (kv, hidden)
        if architecture.startswith(("Gemma3", "Qwen3", "Exaone4")):
            yield f"{prefix}.self_attn.q_norm.weight", (size,)
            yield f"{prefix}.self_attn.k_norm.weight", (size,)
        if architecture.startswith("Olmo"):
            yield f"{prefix}.self_attn.q_norm.weight", (q,)
            yield f"{prefix}.self_attn.k_norm.weight", (kv,)
        if architecture.startswith("HunYuan"):
            yield f"{prefix}.self_attn.query_layernorm.weight", (size,)
            yield f"{prefix}.self_attn.key_layernorm.weight", (size,)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, q)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        if architecture.startswith(("Gemma2", "Gemma3")):
            yield f"{prefix}.pre_feedforward_layernorm.weight", (hidden,)
        if architecture.startswith(("Gemma2", "Gemma3")) or after:
            yield f"{prefix}.post_feedforward_layernorm.weight", (hidden,)
        if architecture.startswith("GraniteMoe"):
            yield f"{prefix}.shared_mlp.input_linear.weight", (2 * text["shared_intermediate_size"], hidden)
            yield f"{prefix}.shared_mlp.output_linear.weight", (hidden, text["shared_intermediate_size"])
            continue
        if architecture.startswith("Phi3"):
            yield f"{prefix}.mlp.gate_up_proj.weight", (2 * inter, hidden)
        else:
            yield f"{prefix}.mlp.gate_proj.weight", (inter, hidden)
            yield f"{prefix}.mlp.up_proj.weight", (inter, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inter)
    yield "model.norm.weight", (hidden,)
    if not _tied(fields):
        yield "lm_head.weight", (vocab, hidden)


def _lfm2_weights(fields: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    hidden, inter, multiple = fields["hidden_size"], fields["block_ff_dim"], fields["block_multiple_of"]
    if fields["block_auto_adjust_ff_dim"]:
        inter = -(-int(2 * inter / 3) // multiple) * multiple
    size = hidden // fields["num_attention_heads"]
    yield "model.embed_tokens.weight", (fields["vocab_size"], hidden)
    for layer in range(fields["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        if _attends(fields, layer):
            for part, rows in (("q", hidden), ("k", fields["num_key_value_heads"] * size)):
                yield f"{prefix}.self_attn.{part}_proj.weight", (rows, hidden)
                yield f"{prefix}.self_attn.{part}_layernorm.weight", (size,)
            yield f"{prefix}.self_attn.v_proj.weight", (fields["num_key_value_heads"] * size, hidden)
            yield f"{prefix}.self_attn.out_proj.weight", (hidden, hidden)
        else:
            tensors = {"in_proj": (3 * hidden, hidden), "conv": (hidden, 1, fields["conv_L_cache"])}
            for part, shape in (tensors | {"out_proj": (hidden, hidden)}).items():
                yield f"{prefix}.conv.{part}.weight", shape
                if fields["conv_bias"]:
                    yield f"{prefix}.conv.{part}.bias", shape[:1]
        yield f"{prefix}.operator_norm.weight", (hidden,)
        yield f"{prefix}.ffn_norm.weight", (hidden,)
        yield f"{prefix}.feed_forward.w1.weight", (inter, hidden)
        yield f"{prefix}.feed_forward.w3.weight", (inter, hidden)
        yield f"{prefix}.feed_forward.w2.weight", (hidden, inter)
    yield "model.embedding_norm.weight", (hidden,)
    if not _tied(fields):
        yield "lm_head.weight", (fields["vocab_size"], hidden)


def _lfm3_weights(fields: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    hidden, inter, size, heads = (
        fields[name] for name in ("hidden_size", "intermediate_size", "head_dim", "num_attention_heads")
    )
    kv = fields["num_key_value_heads"] * size
    yield "model.embed_tokens.weight", (fields["vocab_size"], hidden)
    for layer, kind in enumerate(fields["layer_types"]):
        prefix = f"model.layers.{layer}"
        if kind == "conv":
            tensors = {"in_proj": (3 * hidden, hidden), "conv": (hidden, 1, fields["conv_L_cache"])}
            for part, shape in (tensors | {"out_proj": (hidden, hidden)}).items():
                yield f"{prefix}.conv.{part}.weight", shape
        else:
            for part, rows in (("q", heads * size), ("k", kv), ("v", kv), ("g", heads)):
                yield f"{prefix}.self_attn.{part}_proj.weight", (rows, hidden)
            yield f"{prefix}.self_attn.o_proj.weight", (hidden, heads * size)
            yield f"{prefix}.self_attn.q_norm.weight", (size,)
            yield f"{prefix}.self_attn.k_norm.weight", (size,)
        for norm in ("operator", "post_operator", "ffn", "post_ffn"):
            yield f"{prefix}.{norm}_norm.weight", (hidden,)
        yield f"{prefix}.feed_forward.w1.weight", (inter, hidden)
        yield f"{prefix}.feed_forward.w3.weight", (inter, hidden)
        yield f"{prefix}.feed_forward.w2.weight", (hidden, inter)
    yield "model.embedding_norm.weight", (hidden,)


def _qwen3_5_weights(fields: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    text = text_of(fields)
    hidden, inter, size = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    q, kv = text["num_attention_heads"] * size, text["num_key_value_heads"] * size
    heads, value = text["linear_num_value_heads"], text["linear_num_value_heads"] * text["linear_value_head_dim"]
    channels = 2 * text["linear_num_key_heads"] * text["linear_key_head_dim"] + value
    yield "model.embed_tokens.weight", (text["vocab_size"], hidden)
    for layer, kind in enumerate(text["layer_types"]):
        prefix = f"model.layers.{layer}"
        if kind == "full_attention":
            for part, rows in (("q", 2 * q), ("k", kv), ("v", kv)):
                yield f"{prefix}.self_attn.{part}_proj.weight", (rows, hidden)
            yield f"{prefix}.self_attn.o_proj.weight", (hidden, q)
            yield f"{prefix}.self_attn.q_norm.weight", (size,)
            yield f"{prefix}.self_attn.k_norm.weight", (size,)
        else:
            for part, rows in (("qkv", channels), ("z", value), ("b", heads), ("a", heads)):
                yield f"{prefix}.linear_attn.in_proj_{part}.weight", (rows, hidden)
            yield f"{prefix}.linear_attn.conv1d.weight", (channels, 1, text["linear_conv_kernel_dim"])
            yield f"{prefix}.linear_attn.dt_bias", (heads,)
            yield f"{prefix}.linear_attn.A_log", (heads,)
            yield f"{prefix}.linear_attn.norm.weight", (text["linear_value_head_dim"],)
            yield f"{prefix}.linear_attn.out_proj.weight", (hidden, value)
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (inter, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inter, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inter)
    yield "model.norm.weight", (hidden,)
    if not _tied(fields):
        yield "lm_head.weight", (text["vocab_size"], hidden)


def _gemma4_weights(fields: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Layers that share keys have some of their own too, as on the hub."""
    text = text_of(fields)
    hidden, part, n_layers = text["hidden_size"], text["hidden_size_per_layer_input"], text["num_hidden_layers"]
    yield "model.embed_tokens.weight", (text["vocab_size"], hidden)
    if part:
        yield "model.embed_tokens_per_layer.weight", (text["vocab_size"], n_layers * part)
        yield "model.per_layer_model_projection.weight", (n_layers * part, hidden)
        yield "model.per_layer_projection_norm.weight", (part,)
    for layer, kind in enumerate(text["layer_types"]):
        prefix = f"model.layers.{layer}"
        size = text["global_head_dim" if kind == "full_attention" else "head_dim"]
        q, kv = text["num_attention_heads"] * size, text["num_key_value_heads"] * size
        inter = text["intermediate_size"]
        if text["use_double_wide_mlp"] and layer >= n_layers - text["num_kv_shared_layers"]:
            inter *= 2
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{prefix}.self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, q)
        for name in ("q", "k"):
            yield f"{prefix}.self_attn.{name}_norm.weight", (size,)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{prefix}.{name}_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (inter, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inter, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inter)
        if part:
            yield f"{prefix}.per_layer_input_gate.weight", (part, hidden)
            yield f"{prefix}.per_layer_projection.weight", (hidden, part)
            yield f"{prefix}.post_per_layer_input_norm.weight", (hidden,)
        yield f"{prefix}.layer_scalar", (1,)
    yield "model.norm.weight", (hidden,)
    if not _tied(fields):
        yield "lm_head.weight", (text["vocab_size"], hidden)


def _attends(fields: Mapping[str, Any], layer: int) -> bool:
    types, listed = fields.get("layer_types"), fields.get("full_attn_idxs", ())
    return types[layer] == "full_attention" if types else layer in listed


def draw(name: str, shape: Shape, seed: int, scale: float, fields: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the values of one tensor, which follow from the seed, its name and its shape."""
    normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    gemma, gemma4 = (_architecture(fields).startswith(name) for name in ("Gemma", "Gemma4"))
    if gemma4 and name.endswith("q_norm.weight"):  # nothing else keeps its scores small
        return _gain(name, normal, gemma) * np.float32(0.5 * shape[0] ** -0.5)
    if "norm" in name and not name.endswith(".bias"):
        return _gain(name, normal, gemma) - np.float32(less_one(name, fields))
    if name.endswith(("A_log", "dt_bias")):  # what is kept from one position to the next: a half, or nearly all
        return normal - np.float32(1)
    if name.endswith(".bias"):
        return np.float32(0.5) * normal
    if name.endswith("layer_scalar"):
        return np.float32(0.8) + np.float32(0.1) * normal
    if name == "model.embed_tokens.weight" and not _tied(fields):
        return normal
    # Logits get a deviation of 3; the scores of attention one of 2; a block's output is as large as the stream.
    vocabulary = name in ("model.embed_tokens.weight", "lm_head.weight")
    gain = 3.0 if vocabulary else 1.4 if re.search(r"\.(q|k|qkv)_proj", name) else 1.2
    if name.endswith(("conv.conv.weight", "conv1d.weight")):
        return np.float32(scale * gain / np.sqrt(shape[2])) * normal
    if gemma and vocabulary:
        # Gemma multiplies its embeddings by sqrt(hidden): this much less, and none of them drowns the blocks.
        gain = 0.3
    return np.float32(scale * gain / np.sqrt(shape[1])) * normal


def less_one(name: str, fields: Mapping[str, Any]) -> bool:
    """Say whether a norm's tensor is its gain less one."""
    architecture = _architecture(fields)
    if architecture.startswith("Qwen3_5"):
        return "linear_attn" not in name
    return architecture.startswith("Gemma") and not architecture.startswith("Gemma4")


def _gain(name: str, normal: NDArray[np.float32], gemma: bool) -> NDArray[np.float32]:
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        # Far apart, so that a rotation before the norm is another one than after it.
        return np.float32(1.4) + np.float32(0.5) * normal
    # Gemma's small embeddings make small logits, unless the last norm makes up for it.
    mean = 8 if gemma and name == "model.norm.weight" else 1
    return mean + np.float32(0.2) * normal


def text_of(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of the text part: config.json's own, or its text_config."""
    text: Mapping[str, Any] = fields.get("text_config", fields)
    return text


def _architecture(fields: Mapping[str, Any]) -> str:
    return str(fields["architectures"][0])


def _tied(fields: Mapping[str, Any]) -> bool:
    ties = _architecture(fields).startswith(("Gemma", "Lfm"))
    default = text_of(fields).get("tie_word_embeddings", ties)
    return bool(fields.get("tie_word_embeddings", default))
