"""The keys of an architecture in a file's metadata: each is compared with what the model has, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path

import numpy as np

from edgepack.errors import EngineError
from edgepack_runtimes.gguf.header import Array, Scalar, damaged


class Keys:
    """The keys of an architecture. What is asked for is compared; what nobody asked for is refused."""

    def __init__(self, metadata: Mapping[str, Scalar | Array], architecture: str, path: Path) -> None:
        self._prefix, self._path = f"{architecture}.", path
        self._found = {key: value for key, value in metadata.items() if key.startswith(self._prefix)}
        self._read: set[str] = set()
        self.metadata = metadata

    def get(self, key: str) -> Scalar | Array | None:
        self._read.add(self._prefix + key)
        return self._found.get(self._prefix + key)

    def integer(self, key: str, default: int | None = None) -> int | None:
        found = self.get(key)
        if found is None:
            return default
        if type(found) is not int:
            raise self.wrong(key, found, "an integer")
        return found

    def number(self, key: str, default: float | None = None) -> float | None:
        # The engine asserts on some numbers instead of failing, and an assertion ends the process.
        found = self.get(key)
        if found is None:
            return default
        if type(found) is not float or not 0 < found < inf:
            raise self.wrong(key, found, "a positive number")
        return found

    def check_integers(self, key: str, wanted: list[int]) -> None:
        found = self.get(key)
        self.check(key, [*map(int, found.values)] if isinstance(found, Array) else found, wanted)

    def each(self, key: str, layers: int, default: int | None = None) -> list[int | None]:
        """Return the number that each layer has: the one of all, or its own of a list."""
        found = self.get(key)
        if not isinstance(found, Array):
            return [self.integer(key, default)] * layers
        if len(found.values) != layers or any(type(value) is not int for value in found.values):
            raise self.wrong(key, found, f"{layers} integers")
        return [*map(int, found.values)]

    def wrong(self, key: str, found: object, wanted: str) -> EngineError:
        return damaged(self._path, f"{self._prefix}{key} is {found}, not {wanted}")

    def check(self, key: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise damaged(self._path, f"{self._prefix}{key} is {found}, the model's is {wanted}")

    def fail(self, what: str) -> EngineError:
        return damaged(self._path, what)

    def check_all_read(self) -> None:
        for key in self._found.keys() - self._read:
            raise damaged(self._path, f"the key {key} is not one that edgepack writes")


def float32(value: float | None) -> float | None:
    """The number that a key of 32 bits holds."""
    return None if value is None else float(np.float32(value))
