"""Makes small random checkpoints that embed, as sentence-transformers saves them.

The same arguments give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from models import draw, shapes, write_safetensors
from text_side import write_json, write_text_side

QWEN3: Mapping[str, Any] = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 160,
    "vocab_size": 384,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}

# A window of 24, so that a token sees 12 on both sides, and all of it inside a text of some words.
GEMMA: Mapping[str, Any] = {
    "architectures": ["Gemma3TextModel"],
    "model_type": "gemma3_text",
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 192,
    "vocab_size": 384,
    "max_position_embeddings": 512,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 32,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": True,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}

PROMPTS: Mapping[str, str] = {"query": "Instruct: Given a question, find what answers it\nQuery:", "document": ""}

TEXTS = (
    "Once upon a time there was a small model that lived in a box.",
    "how many apples are in three baskets?",
    "The old clock struck seven, and the day was done.",
    "Größe, Łódź, 東京、中文字符。 🦙",
    "a",
    "The model counted them, one basket after the other, and answered: twelve apples. Then the day was done.",
)


def make_embedding(
    folder: Path,
    *,
    pooling: str = "lasttoken",
    normalize: bool = True,
    begins: bool = False,
    ends: bool = True,
    prompts: Mapping[str, str] = PROMPTS,
    default: str | None = None,
    fields: Mapping[str, Any] = QWEN3,
    seed: int = 7,
    dense: Sequence[int] = (),
    dtype: str = "f32",
) -> Path:
    """Write a checkpoint into ``folder`` and return the folder.

    Its tensors are called as ``architectures`` has them, without a head; ``begins``: each text begins with
    <|im_start|>; ``ends``: it ends with <|endoftext|>.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bare = not str(fields["architectures"][0]).endswith("ForCausalLM")
    tensors = {
        name.removeprefix("model.") if bare else name: draw(name, shape, seed, 1.0, fields)
        for name, shape in shapes(fields).items()
        if not name.startswith("lm_head")
    }
    write_safetensors(folder, tensors, dtype)
    write_json(folder / "config.json", fields)
    write_text_side(folder, fields["vocab_size"], add_bos=False)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", names)
    if begins:
        write_json(folder / "tokenizer_config.json", {**names, "bos_token": "<|im_start|>"})
    if ends:
        _mark_texts(folder, begins)
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), *(["Normalize"] if normalize else [])]
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pools = {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    settings = {"word_embedding_dimension": fields["hidden_size"], **pools, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", settings)
    for path, rows, columns in zip(paths[2:], dense, [fields["hidden_size"], *dense], strict=False):
        _write_dense(folder / path, rows, columns, seed)
    said = {"prompts": dict(prompts), "default_prompt_name": default, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", said)
    return folder


def hidden_size(folder: Path) -> int:
    """Return the elements of a state of a checkpoint."""
    return int(json.loads((folder / "config.json").read_text("utf-8"))["hidden_size"])


def _write_dense(folder: Path, rows: int, columns: int, seed: int) -> None:
    folder.mkdir(exist_ok=True)
    matrix = np.random.default_rng([seed, rows]).standard_normal((rows, columns), dtype=np.float32)
    write_safetensors(folder, {"linear.weight": matrix / np.float32(np.sqrt(columns))}, "f32")
    activation = "torch.nn.modules.linear.Identity"
    said = {"in_features": columns, "out_features": rows, "bias": False, "activation_function": activation}
    write_json(folder / "config.json", said)


def _mark_texts(folder: Path, begins: bool) -> None:
    """Have each text end with <|endoftext|>, as Qwen3-Embedding's tokenizer.json has it, and begin with <|im_start|>
    where it ``begins``: embeddinggemma's has both."""
    path = folder / "tokenizer.json"
    said = json.loads(path.read_text("utf-8"))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    begin, end = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("<|im_start|>", "<|endoftext|>"))
    first, second = ([*([begin] if begins else []), {"Sequence": {"id": each, "type_id": 0}}, end] for each in "AB")
    ids = {"<|endoftext|>": 0, **({"<|im_start|>": 1} if begins else {})}
    template = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]} for name, id in ids.items()},
    }
    said["post_processor"] = {"type": "Sequence", "processors": [byte_level, template]}
    write_json(path, said)


MODELS: Mapping[str, Callable[[Path], Path]] = {
    "last": make_embedding,
    "mean": partial(
        make_embedding,
        pooling="mean_tokens",
        normalize=False,
        default="query",
        fields={**QWEN3, "architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True},
        seed=8,
    ),
    "first": partial(make_embedding, pooling="cls_token", ends=False, prompts={}, seed=9),
    "gemma": partial(make_embedding, pooling="mean_tokens", fields=GEMMA, seed=10, dense=(160, 64)),
}
"""A model for each way of pooling, by a name."""

LIMITS: Mapping[str, float] = {"gguf": 1e-9, "mlx": 1e-10, "onnx": 1e-10}
"""Of vectors that are not far apart: ggml rounds its angles, and reads gelu from a table, see GgufTarget.nmse."""

WITH_GELU: Mapping[str, float] = {**LIMITS, "gguf": 1e-6}
