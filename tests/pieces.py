"""A byte-level tokenizer with any tokens: for texts that are cut at any byte."""

from __future__ import annotations

import json
from collections.abc import Mapping

from edgepack.text.tokenizer import BYTE_OF, Tokenizer


def tokenizer_of(pieces: Mapping[bytes, int], special: Mapping[int, str]) -> Tokenizer:
    """Return a tokenizer with these tokens and these names of special ones beside the 256 bytes."""
    character_of = {byte: character for character, byte in BYTE_OF.items()}
    words = {bytes([byte]): byte for byte in range(256)} | {**pieces}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocab = {"".join(character_of[byte] for byte in data): token for data, token in words.items()}
    vocab |= {name: token for token, name in special.items()}
    document = {
        "version": "1.0",
        "added_tokens": [{"id": token, "content": name, **plain} for token, name in special.items()],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    return Tokenizer.from_json(json.dumps(document).encode(), None, False)
