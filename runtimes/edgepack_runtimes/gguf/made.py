"""A GGUF file of a small Llama that is made here, to ask an engine what it computes and how fast."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack.bundle.rope import Rope

_ALIGNMENT: Final = 32
_NAMES: Final = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "attention.norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "mlp.norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


def llama(
    *, n_heads: int, n_kv_heads: int, head_dim: int, mlp: int, n_layers: int = 1, n_vocab: int = 256, context: int = 64
) -> Decoder:
    """Return a Llama whose head is its embedding, and whose heads are as wide together as its states."""
    rope = Rope(theta=10000.0, dim=head_dim)
    attention = Attention(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, rope=rope)
    return Decoder(
        family="llama",
        architecture="LlamaForCausalLM",
        n_layers=n_layers,
        hidden_size=n_heads * head_dim,
        n_vocab=n_vocab,
        context=context,
        trained_context=context,
        norm_eps=1e-5,
        kinds=(Layer(mixer=attention, mlp=Mlp(size=mlp)),),
        tied=True,
    )


def model(decoder: Decoder, filled: Callable[[str, Sequence[int]], tuple[int, list[bytes]]]) -> list[bytes]:
    """Return the pieces of a file of the decoder, a Llama whose head is its embedding and which has no tokenizer.

    ``filled`` says of each tensor, by the decoder's name and shape, its ggml_type and the pieces of its data.
    """
    keys = [_text("general.architecture") + struct.pack("<I", 8) + _text("llama")]
    keys += [_text("tokenizer.ggml.model") + struct.pack("<I", 8) + _text("no_vocab")]
    numbers = {
        "context_length": decoder.context,
        "embedding_length": decoder.hidden_size,
        "block_count": decoder.n_layers,
        "feed_forward_length": decoder.layer(0).mlp.size,
        "attention.head_count": decoder.attentions[0].n_heads,
        "attention.head_count_kv": decoder.attentions[0].n_kv_heads,
        "vocab_size": decoder.n_vocab,
    }
    keys += [_text(f"llama.{name}") + struct.pack("<II", 4, value) for name, value in numbers.items()]
    keys += [_text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, decoder.norm_eps)]
    rows, data, place = [], list[bytes](), 0
    for name, shape in decoder.tensors():
        kind, pieces = filled(name, shape)
        extents = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        rows.append(_text(_name(name)) + extents + struct.pack("<IQ", kind, place))
        length = sum(map(len, pieces))
        data += [*pieces, bytes(-length % _ALIGNMENT)]
        place += length + -length % _ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(rows), len(keys)) + b"".join(keys + rows)
    return [head + bytes(-len(head) % _ALIGNMENT), *data]


def _name(canonical: str) -> str:
    if not canonical.startswith("layers."):
        return f"{_NAMES[canonical]}.weight"
    _, layer, rest = canonical.split(".", 2)
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()
