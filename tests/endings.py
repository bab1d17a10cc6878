"""What the end does to a text: a stop string cuts it, and a character that lacks bytes is left out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache


def cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The definition, character by character: the first end of a stop string; of those that end there, the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def whole(data: bytes) -> str:
    """Return the text of bytes without the beginning of a character at their end."""
    held = next((size for size in (3, 2, 1) if data[-size:] in beginnings() and len(data) >= size), 0)
    return data[: len(data) - held].decode(errors="replace")


@cache
def beginnings() -> frozenset[bytes]:
    """Return what any character begins with, less than the whole; halves of surrogate pairs are none, but begin so."""
    codes = range(0x80, sys.maxunicode + 1, 64)  # 64 neighbours differ in their last byte alone
    encoded = (chr(code).encode(errors="surrogatepass") for code in codes)
    return frozenset(each[:size] for each in encoded for size in range(1, len(each)))
