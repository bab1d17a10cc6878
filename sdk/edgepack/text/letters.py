"""The characters by which a byte-level tokenizer writes bytes (GPT-2)."""

from __future__ import annotations


def _byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for.

    Printable Latin-1 stands for itself; the other 68 bytes, in order, are written as U+0100 and up (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_of_character()
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}
