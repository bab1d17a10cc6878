"""A slice of a model that is small enough to prove in f32: its first layers, and the vocabulary rows of a probe.

Half of the rows speak softly: they are scaled by a power of two, so that their mean square, or the variance that a
LayerNorm takes, is close to the epsilon of the norms. A wrong epsilon changes the logits of an ordinary row by 1e-10
only, which no limit could tell from rounding; it changes those of a quiet row by percents. Windows longer than
``WINDOW`` are cut to it, so that a probe crosses them: a window's length is a number in the payload, and which layers
have one, and what it means, is in the code under test.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from msgspec import UNSET
from msgspec.structs import replace

from edgepack.bundle.decoder import Attention, Decoder, Layer, arranged
from edgepack_packager.checkpoint.weights import Float32, Weights

LAYERS = 2  # at least, so that an index can be wrong
WINDOW = 96


class Slice:
    """``Weights`` over first layers of others, enough for all kinds, with the vocabulary rows that are asked."""

    def __init__(self, weights: Weights, vocabulary: Sequence[int]) -> None:
        self._weights = weights
        whole = weights.decoder
        self._layers = _chosen(whole)
        layers = [_near(_renumbered(whole.layer(layer), self._layers), whole.context) for layer in self._layers]
        self.decoder: Decoder = replace(whole, n_layers=len(layers), n_vocab=len(vocabulary), **arranged(layers))
        self.dtype = "f32"
        vocabularies = {"embedding", "inputs.embedding", "head"} & {name for name, _ in self.decoder.tensors()}
        self._own = {name: _picked(weights, name, vocabulary) for name in vocabularies}
        if size := whole.inputs:
            parts = [row for layer in self._layers for row in range(layer * size, (layer + 1) * size)]
            self._own["inputs.embedding"] = self._own["inputs.embedding"][:, parts]
            self._own["inputs.projection"] = _picked(weights, "inputs.projection", parts)
        embedding = self._own["embedding"]
        heard = embedding - embedding.mean(axis=1, keepdims=True) if whole.norm else embedding
        embedding[1::2] *= _quiet(heard * np.float32(whole.embedding_scale), whole.norm_eps)

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows of a canonical tensor of the slice: float32."""
        if name in self._own:
            return self._own[name][start:stop]
        if name.startswith("layers."):
            _, layer, part = name.split(".", 2)
            name = f"layers.{self._layers[int(layer)]}.{part}"
        return self._weights.rows(name, start, stop)


def cut(weights: Weights, ids: Sequence[int]) -> tuple[Slice, list[int]]:
    """Return the slice that ids need, and the ids in the slice's own numbering."""
    vocabulary = sorted(set(ids))
    position = {row: index for index, row in enumerate(vocabulary)}
    return Slice(weights, vocabulary), [position[i] for i in ids]


def _chosen(whole: Decoder) -> list[int]:
    """Return the layers that show all that layers are and what follows what.

    They are the first ones, as an engine may tell a layer's kind by its number; but where layers read the keys of
    others, those that show something new, and the layers that are read.
    """
    sources = {each.kv_layer for each in whole.attentions}
    if sources == {UNSET}:
        return list(range(_enough(whole)))
    kinds = [whole.kinds.index(layer) for layer in whole.layers]
    unseen, chosen = {*pairwise(kinds)}, [0]
    for layer in range(1, whole.n_layers):
        pair = kinds[chosen[-1]], kinds[layer]
        if pair in unseen or layer in sources:
            unseen.discard(pair)
            chosen.append(layer)
    return chosen


def _renumbered(layer: Layer, chosen: Sequence[int]) -> Layer:
    mixer = layer.mixer
    if not isinstance(mixer, Attention) or not isinstance(mixer.kv_layer, int):
        return layer
    return replace(layer, mixer=replace(mixer, kv_layer=chosen.index(mixer.kv_layer)))


def _enough(whole: Decoder) -> int:
    """Return how many first layers show all that layers are and what follows what: one whole pattern at most."""
    kinds = [*whole.pattern, whole.pattern[0]]
    unseen = {*pairwise(kinds)}
    for index, pair in enumerate(pairwise(kinds)):
        unseen.discard(pair)
        if not unseen:
            return min(max(LAYERS, min(index + 2, len(whole.pattern))), whole.n_layers)
    raise AssertionError("the last pair ends the search")


def _near(layer: Layer, context: int) -> Layer:
    mixer = layer.mixer
    if not isinstance(mixer, Attention) or mixer.window is None or mixer.window >= context:
        return layer
    return replace(layer, mixer=replace(mixer, window=min(mixer.window, WINDOW)))


def _picked(weights: Weights, name: str, rows: Sequence[int]) -> Float32:
    return np.concatenate([weights.rows(name, row, row + 1) for row in rows])


def _quiet(rows: Float32, epsilon: float) -> np.float32:
    """Return the power of two that brings the rows' mean square closest to epsilon."""
    power = float(np.mean(np.square(rows, dtype=np.float64)))
    return np.float32(2.0 ** round(np.log2(epsilon / power) / 2)) if power else np.float32(1)
