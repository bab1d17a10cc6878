"""What a token of a GGUF file's vocabulary is."""

from __future__ import annotations

from enum import IntEnum


class TokenType(IntEnum):
    """llama_token_type of llama.h."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6
