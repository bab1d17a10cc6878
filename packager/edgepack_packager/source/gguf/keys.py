"""Reads single keys of a GGUF file's metadata, each with its type and range checked; an error names file and key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.checkpoint.gguf.file import GgufFile
from edgepack_packager.checkpoint.gguf.parse import Scalar

MAX_ITEMS = 1 << 22
MAX_BYTES = 48 * 1024 * 1024
"""Of an array: eight times the merges of the largest vocabulary that is known, and four times its bytes."""

ORIGINAL = "Build the checkpoint that it was made from, in Hugging Face layout."


def damaged(path: Path, what: str) -> SourceError:
    """Return the error of a file that is no sound GGUF file, from the end of a sentence."""
    return SourceError(f"{path} {what}.", hint="Fetch the file again, whole, in a version of after October 2023.")


def unsupported(path: Path, what: str) -> UnsupportedModelError:
    """Return the error of a sound file that edgepack does not build, from the end of a sentence."""
    return UnsupportedModelError(f"{path} {what}.", hint=ORIGINAL)


class Keys:
    """The metadata of a file; names without a general or a tokenizer's beginning are its architecture's."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.architecture = self.text("general.architecture") or ""

    def name(self, key: str) -> str:
        """Return a key's whole name."""
        return key if key.startswith(("general.", "tokenizer.", "split.")) else f"{self.architecture}.{key}"

    def text(self, key: str) -> str | None:
        """Return a text, None where the file has none."""
        value = self.file.keys.get(self.name(key))
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, "a text", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value."""
        value = self.file.keys.get(self.name(key), default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number from 0 on, also where an array says the same one of every layer."""
        value = self._value(key, default)
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise self._wrong(key, "a whole number", value)
        return value

    def id(self, role: str) -> int | None:
        """Return the token that the file names for a role ("bos"), None where it names none."""
        key = f"tokenizer.ggml.{role}_token_id"
        return self.count(key) if key in self.file.keys else None

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number, a float32 as it was written down: 1e-05 for 9.999999747378752e-06."""
        value = self._value(key, default)
        if value is None or isinstance(value, bool | str) or not math.isfinite(value):
            raise self._wrong(key, "a finite number", value)
        return float(str(np.float32(value)))

    def has(self, key: str) -> bool:
        """Whether the file has a key, be it an array."""
        return self.name(key) in self.file.keys or self.name(key) in self.file.arrays

    def array(self, key: str, items: int = MAX_ITEMS) -> Sequence[Scalar]:
        """Return an array of at most so many items. Raises ``SourceError`` where there is none, or a longer one."""
        array = self.file.arrays.get(self.name(key))
        if array is None:
            raise damaged(self.file.path, f"lacks the list {self.name(key)}")
        if array.length > items or array.end - array.start > MAX_BYTES:
            raise damaged(self.file.path, f"has a list of {array.length} items as {self.name(key)}")
        return self.file.array(self.name(key))

    def texts(self, key: str) -> list[str]:
        """Return an array of texts."""
        values = self.array(key)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(key, "a list of texts", values[0])
        return [str(value) for value in values]

    def _value(self, key: str, default: float | None) -> float | str | None:
        name = self.name(key)
        if name in self.file.arrays:
            values = set(self.array(key, 512))
            if len(values) != 1:
                raise unsupported(self.file.path, f"has layers of several kinds: {name} is not the same in all")
            return values.pop()
        value = self.file.keys.get(name, default)
        if value is None:
            raise damaged(self.file.path, f"lacks the key {name}")
        return value

    def _wrong(self, key: str, what: str, value: object) -> SourceError:
        return damaged(self.file.path, f"must have {what} as {self.name(key)}, not {str(value)[:60]!r}")
