"""The reference: a decoder in numpy float32. This is what "the same model" means for every target and every engine.

It reads the weights in blocks of rows and holds one block at a time; what a layer computes is in ``blocks``. Names of
shapes: r readings, n positions, h hidden size, d head dimension. Products go through BLAS in one thread: OpenBLAS's
others spin between them, and on two cores 320 tokens of a model of 135 M parameters took 14 processor seconds with two
threads and 4 with one, beside other work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
from threadpoolctl import threadpool_limits

from edgepack.errors import UsageError
from edgepack_packager.arithmetic import FASTEST, Arithmetic
from edgepack_packager.blocks import MIXERS, Model, end, mlp, scaled, softcap, token_inputs
from edgepack_packager.blocks import Reading as Reading
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.targets.kv_cache import Cache, Part

HEADROOM = 1.6
"""What a key or value may exceed those that were measured by, before it is cut. On the text of the proof's probe
SmolLM2 loses 5.2, 4.1 and 5.0 thousandths of a nat with 1.25, 1.6 and 2."""
_TINY = np.float32(1e-30)

EXACT = Reading()


def logits(
    weights: Weights, ids: Sequence[int], progress: Callable[[], None] | None = None, *, cache: Cache | None = None
) -> Float32:
    """Return the logits after each of the token ids, which take the positions from 0: float32 [n, n_vocab].

    Arguments and errors as in ``hidden``.
    """
    return head(weights, hidden(weights, ids, progress, readings=[Reading(cache)])[0])


def hidden(
    weights: Weights,
    ids: Sequence[int],
    progress: Callable[[], None] | None = None,
    *,
    readings: Sequence[Reading] = (EXACT,),
) -> Float32:
    """Return the normed states after the last layer, from which ``head`` makes logits: float32 [r, n, h].

    ``progress`` is called after each layer. Memory: a block of weights, some [r n, intermediate] and [n, n] arrays.
    Raises ``UsageError`` for ids outside the embedding.
    """
    return _states(weights, [ids] * len(readings), readings, progress)


def each(weights: Weights, texts: Sequence[Sequence[int]], progress: Callable[[], None] | None = None) -> Float32:
    """Return ``hidden`` of several texts of as many ids, in one pass over the weights: float32 [texts, n, h]."""
    return _states(weights, texts, [EXACT] * len(texts), progress)


def observe(
    weights: Weights,
    texts: Sequence[Sequence[int]],
    see: Callable[[str, Float32], None],
    progress: Callable[[], None] | None = None,
    arithmetic: Arithmetic = FASTEST,
    together: int | None = None,
) -> None:
    """Show ``see`` what every matrix is multiplied with: its name, and float32 [n, columns] for each text in turn.

    ``texts`` are token ids, as many in each. So many of them, ``together``, pass a layer at a time (None: all), and all
    have passed it before any enters the next. ``arithmetic`` computes all of it. Other arguments, memory and errors as
    in ``hidden``; ``progress`` is called whenever some have passed a layer.
    """

    def shown(name: str, inputs: Float32) -> Float32:
        see(name, inputs)
        return inputs

    readings = [Reading(rounding=shown)] * len(texts)
    for states in _states(weights, texts, readings, progress, arithmetic, together):
        see("embedding" if weights.decoder.tied else "head", states)


def _states(
    weights: Weights,
    texts: Sequence[Sequence[int]],
    readings: Sequence[Reading],
    progress: Callable[[], None] | None,
    arithmetic: Arithmetic = FASTEST,
    together: int | None = None,
) -> Float32:
    """Return the normed states of each text in its reading: float32 [r, n, h]."""
    decoder = weights.decoder
    for ids in texts:
        if not len(ids) or min(ids) < 0 or max(ids) >= decoder.n_vocab:
            raise UsageError(f"The reference needs token ids from 0 to {decoder.n_vocab - 1}, and at least one.")
    report = progress or (lambda: None)
    step = together or len(texts)
    runs = [slice(start, start + step) for start in range(0, len(texts), step)]
    models = [Model(weights, readings[run], arithmetic) for run in runs]
    x = _rows(weights, "embedding", texts) * np.float32(decoder.embedding_scale)
    with threadpool_limits(limits=1, user_api="blas"):
        if decoder.inputs:
            own = _rows(weights, "inputs.embedding", texts)
            for model, run in zip(models, runs, strict=True):
                model.inputs = token_inputs(model, own[run], x[run])
        for layer, (model, run) in product(range(decoder.n_layers), zip(models, runs, strict=True)):
            MIXERS[type(decoder.layer(layer).mixer)](model, layer, x[run])
            mlp(model, layer, x[run])
            end(model, layer, x[run])
            report()
    return models[0].norm("norm", x)


def _rows(weights: Weights, name: str, texts: Sequence[Sequence[int]]) -> Float32:
    """Return each token's row of an embedding: float32 [texts, n, columns]."""
    rows = {i: weights.rows(name, i, i + 1)[0] for i in {i for ids in texts for i in ids}}
    return np.array([[rows[i] for i in ids] for ids in texts], np.float32)


def head(weights: Weights, states: Float32) -> Float32:
    """Return the logits of states, float32 [n, h]: float32 [n, n_vocab]. It reads the whole head for any number.

    Of a model without a head they are the states themselves.
    """
    return np.concatenate([found[0] for _, found in columns(weights, states[None])], axis=1)


def columns(weights: Weights, states: Float32, readings: Sequence[Reading] = (EXACT,)) -> Iterator[tuple[int, Float32]]:
    """Yield the logits of states, float32 [r, n, h], for some tokens of the vocabulary at a time.

    With the first of these tokens: float32 [r, n, tokens]. It reads the head once. Without a head: the states.
    """
    model = Model(weights, readings)
    if model.decoder.headless:
        yield 0, states
        return
    with threadpool_limits(limits=1, user_api="blas"):
        for start, products in model.products("embedding" if model.decoder.tied else "head", states):
            logits = scaled(products, model.decoder.logits_scale)
            yield start, softcap(model.by, logits, model.decoder.logits_softcap)


def cache_scales(
    weights: Weights,
    ids: Sequence[int],
    progress: Callable[[], None] | None = None,
    arithmetic: Arithmetic = FASTEST,
) -> dict[str, Float32]:
    """Return a scale for each channel of the keys and values, by ``layers.0.attention.k``: float32 [KV heads, d].

    It is ``HEADROOM`` times the largest magnitude over the ids, by 127. Two numbers of a key that a rope turns into
    each other share the length of their pair, which no position changes: a few hundred ids stand for a long context.
    Arguments and errors as in ``observe``.
    """
    decoder = weights.decoder
    scales: dict[str, Float32] = {}

    def measure(layer: int, part: Part, x: Float32) -> Float32:
        if part in ("k", "v"):
            rope = decoder.attention(layer).rope if part == "k" else None
            largest = _lengths(x, rope.dim // 2 if rope else 0).max(axis=0)
            scales[f"layers.{layer}.attention.{part}"] = np.maximum(largest * np.float32(HEADROOM / 127), _TINY)
        return x

    _states(weights, [ids], [Reading(measure)], progress, arithmetic)
    return scales


def _lengths(x: Float32, half: int) -> Float32:
    """Return magnitudes [n, heads, d]: that of the pair for each element below ``2 * half``, which is turned."""
    first, second, rest = np.split(np.abs(x), [half, 2 * half], axis=-1)
    pairs = np.sqrt(np.square(first) + np.square(second))
    return np.concatenate([pairs, pairs, rest], axis=-1)
