"""``genai_config.json``: what onnxruntime-genai needs to know beside the graph and the tokenizer's files."""

from __future__ import annotations

import json
from typing import Any

from edgepack.bundle.decoder import Decoder
from edgepack_packager.targets.onnx.attention import PAST, PRESENT
from edgepack_packager.targets.onnx.layout import GRAPH_FILE
from edgepack_packager.text.side import Text

FILE = "genai_config.json"
# Without tokenizer.json, which lies once in a bundle and is large.
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)

# The engine reads from it only that this is a text model: what is special in a model is in its graph. "phi3" would make
# it compute a prompt again at 4097 tokens, for graphs that change their rope there; these have one rope for all.
_TYPE = "llama"
# The cache is allocated for the whole search length at once: 4096 positions unless the application asks for more.
_SEARCH_LENGTH = 4096


def runs(decoder: Decoder) -> bool:
    """Whether onnxruntime-genai runs such a graph: it gives every layer a cache of one size, and nothing else."""
    sizes = {(attention.n_kv_heads, attention.head_dim) for attention in decoder.keeping.values()}
    return len(decoder.keeping) == decoder.n_layers and len(sizes) == 1


def config(decoder: Decoder, text: Text) -> bytes:
    """Return the file's bytes: JSON, two-space indent, a final newline."""
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": PAST.format("%d", "key"),
        "past_value_names": PAST.format("%d", "value"),
    }
    outputs = {
        "logits": "logits",
        "present_key_names": PRESENT.format("%d", "key"),
        "present_value_names": PRESENT.format("%d", "value"),
    }
    attention = decoder.attentions[0]
    model: dict[str, Any] = {
        "type": _TYPE,
        **_special_tokens(text),
        "context_length": decoder.context,
        "vocab_size": decoder.n_vocab,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": GRAPH_FILE,
            "head_size": attention.head_dim,
            "hidden_size": decoder.hidden_size,
            "num_attention_heads": attention.n_heads,
            "num_hidden_layers": decoder.n_layers,
            "num_key_value_heads": attention.n_kv_heads,
            "inputs": inputs,
            "outputs": outputs,
        },
    }
    search = {
        "do_sample": False,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": min(decoder.context, _SEARCH_LENGTH),
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 1.0,
    }
    return json.dumps({"model": model, "search": search}, indent=2).encode() + b"\n"


def _special_tokens(text: Text) -> dict[str, int | list[int]]:
    """Padding is never fed here, but the engine wants an id for it: a stop token's, as its own builder does."""
    tokens: dict[str, int | list[int]] = {}
    if text.bos is not None:
        tokens["bos_token_id"] = text.bos
    if text.stops:
        tokens["eos_token_id"] = list(text.stops)
        tokens["pad_token_id"] = text.stops[0]
    return tokens
