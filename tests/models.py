"""Makes small random Llama checkpoints in Hugging Face layout, with numpy only; the same arguments give the same bytes.

The weights have a variance that keeps every block of the model audible in the logits: a model that echoes its input
would hide a fault.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]

LINEAR: Mapping[str, object] = {"rope_type": "linear", "factor": 4.0}
LLAMA3: Mapping[str, object] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# The random models that the reference is held to transformers with: arguments of make_llama.
ORACLE_MODELS: Mapping[str, Mapping[str, Any]] = {
    "sharded-llama3": {
        "seed": 1,
        "dtype": "f16",
        "shards": 2,
        "tied": False,
        "hidden": 256,
        "intermediate": 512,
        "layers": 4,
        "heads": 8,
        "theta": 500000.0,
        "rope": LLAMA3,
    },
    "tied-linear": {"seed": 2, "rope": LINEAR, "layers": 3},
    "explicit-head-dim": {
        "seed": 3,
        "dtype": "f32",
        "tied": False,
        "hidden": 96,
        "heads": 6,
        "kv_heads": 3,
        "head_dim": 32,
    },
    "biases": {"seed": 4, "tied": False, "attention_bias": True, "mlp_bias": True},
    "v5-spelling": {"seed": 5, "theta": 500000.0, "rope": LLAMA3, "spelling": "v5"},
}

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_CORPUS = """\
Once upon a time there was a small model that lived in a box. The box had no network, and the model had few words, so
it said each of them with care. One day a child asked the model how many apples are in three baskets of four apples.
The model counted them, one basket after the other, and answered: twelve apples. Then the child asked for a story about
the river, the bridge and the old clock, and the model told it, and the clock struck seven, and the day was done.
"""


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
    folder.mkdir(parents=True, exist_ok=True)
    size = head_dim or hidden // heads
    shapes = dict(_shapes(hidden, layers, heads * size, kv_heads * size, intermediate, n_vocab, tied))
    if attention_bias:
        shapes |= _biases(shapes, r"self_attn\..*_proj\.weight$")
    if mlp_bias:
        shapes |= _biases(shapes, r"mlp\..*_proj\.weight$")
    write_safetensors(
        folder, {name: _draw(name, shape, seed, tied, gain) for name, shape in shapes.items()}, dtype, shards
    )

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
    _write_json(folder / "config.json", fields | dict(config or {}))
    if tokenizer:
        _write_text_side(folder, n_vocab, add_bos)
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
    _write_json(folder / "model.safetensors.index.json", index)


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


def _shapes(
    hidden: int, layers: int, q: int, kv: int, inter: int, vocab: int, tied: bool
) -> Iterator[tuple[str, Shape]]:
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (q, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (kv, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (kv, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, q)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (inter, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inter, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inter)
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocab, hidden)


def _biases(shapes: Mapping[str, Shape], pattern: str) -> dict[str, Shape]:
    return {
        name.removesuffix("weight") + "bias": shape[:1] for name, shape in shapes.items() if re.search(pattern, name)
    }


def _draw(name: str, shape: Shape, seed: int, tied: bool, scale: float) -> NDArray[np.float32]:
    normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if "norm" in name:
        return 1 + np.float32(0.2) * normal
    if name.endswith(".bias"):
        return np.float32(0.5) * normal
    if name == "model.embed_tokens.weight" and not tied:
        return normal
    # Logits get a deviation of 3; the scores of attention one of 2; a block's output is as large as the stream.
    vocabulary = name in ("model.embed_tokens.weight", "lm_head.weight")
    gain = 3.0 if vocabulary else 1.4 if ".q_proj" in name or ".k_proj" in name else 1.2
    return np.float32(scale * gain / np.sqrt(shape[1])) * normal


def _write_text_side(folder: Path, n_vocab: int, add_bos: bool) -> None:
    _write_json(folder / "tokenizer.json", _byte_level_bpe(min(384, n_vocab), add_bos))
    names = {"bos_token": SPECIAL_TOKENS[1], "eos_token": SPECIAL_TOKENS[2]}
    _write_json(folder / "tokenizer_config.json", names | {"tokenizer_class": "PreTrainedTokenizerFast"})
    _write_json(folder / "special_tokens_map.json", names)
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 0], "do_sample": False})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _byte_level_bpe(rows: int, add_bos: bool) -> dict[str, Any]:
    """A tokenizer in SmolLM2's structure: three special tokens, 256 bytes, and merges learnt from the corpus."""
    alphabet = _byte_alphabet()
    merges = _learn_merges(rows - len(SPECIAL_TOKENS) - len(alphabet))
    entries = [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in merges)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bos = SPECIAL_TOKENS[1]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}},
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": text, **flags} for id, text in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": template if add_bos else None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: id for id, text in enumerate(entries)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins of the 256 bytes: a byte that prints stands for itself, the others follow U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _learn_merges(count: int) -> list[tuple[str, str]]:
    words = Counter(re.findall(r" ?[A-Za-z]+", _CORPUS.replace("\n", " ")))
    split = {word: list(word.replace(" ", "Ġ")) for word in words}
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in split.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = {word: _merge(pieces, best) for word, pieces in split.items()}
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
