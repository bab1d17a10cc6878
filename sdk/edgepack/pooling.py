"""From the states of a text's tokens to its vector: sentence-transformers' Pooling, Dense and Normalize in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.embedding import DENSE_FILE, Embedding
from edgepack.bundle.files import Bundle
from edgepack.errors import BundleDamagedError

Float32 = NDArray[np.float32]

_SHORTEST = np.float32(1e-12)
"""What a shorter vector is divided by, as torch.nn.functional.normalize has it."""


def first_needed(embedding: Embedding, n: int) -> int:
    """Return the index of the first of n tokens whose state is pooled."""
    return n - 1 if embedding.pooling == "last" else 0


def matrices(embedding: Embedding, data: bytes) -> list[Float32]:
    """Return the matrices of ``DENSE_FILE``: float32 [rows, columns] each. Raises ``BundleDamagedError``."""
    sizes = [each.rows * each.columns for each in embedding.dense]
    if len(data) != embedding.dense_bytes:
        raise BundleDamagedError(f"{DENSE_FILE} of the bundle has {len(data)} bytes, not {embedding.dense_bytes}.")
    parts = np.split(np.frombuffer(data, "<f4"), np.cumsum(sizes, dtype=int))  # and nothing behind the last
    return [part.reshape(each.rows, each.columns) for part, each in zip(parts, embedding.dense, strict=False)]


def dense_of(bundle: Bundle) -> list[Float32]:
    """Return the matrices of a bundle, none where it has none. Raises ``BundleDamagedError``."""
    embedding = bundle.manifest.embedding
    return matrices(embedding, bundle.read(DENSE_FILE)) if embedding is not None and embedding.dense else []


def pooled(embedding: Embedding, states: Float32, dense: Sequence[Float32] = ()) -> Float32:
    """Return the vector of a text, float32 [size], from the states of its tokens, float32 [n, hidden size].

    For "last" the last state is enough. ``dense`` are the ``matrices`` of one that has any.
    """
    match embedding.pooling:
        case "last":
            vector = states[-1]
        case "first":
            vector = states[0]
        case "mean":
            vector = states.mean(axis=0, dtype=np.float32)
    for matrix in dense:
        vector = matrix @ vector
    result: Float32 = vector / np.maximum(np.linalg.norm(vector), _SHORTEST) if embedding.normalized else vector
    return result.astype(np.float32, copy=True)


def cosine(one: Float32, other: Float32) -> float:
    """Return the cosine between two vectors; 0 where one has no direction, or is not finite."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    found = float(a @ b) / length if length else 0.0
    return found if np.isfinite(found) else 0.0
