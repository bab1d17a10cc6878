"""How fast llama.cpp multiplies here, for each element type that is asked for: a layer and a head, in and out.

What the weights are does not matter to the time, so they are one byte over and over. The head is larger than the
processor's caches, and so a step of an answer reads it from memory, as it does the weights of a real model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Final, NamedTuple

from edgepack.bundle.decoder import Decoder
from edgepack.device.engine import Rate, Speed
from edgepack.device.memory import CHUNK
from edgepack.runtime import Options, Session
from edgepack_runtimes import rounds
from edgepack_runtimes.gguf import made
from edgepack_runtimes.gguf.library import Library
from edgepack_runtimes.gguf.load import open_session
from edgepack_runtimes.rates import FAR, LEAST_S, Times, attention, beside, mixed
from edgepack_runtimes.rounds import Watch
from edgepack_runtimes.scratch import held, repeated, uncached


class Kind(NamedTuple):
    """An element type of ggml: its number, elements and bytes of a block, and a byte that makes finite numbers."""

    number: int
    block: int
    size: int
    filling: int


# ggml.h (enum ggml_type) and ggml-common.h (the block structures)
_KINDS: Final[Mapping[str, Kind]] = {
    "q4_K": Kind(12, 256, 144, 0x11),
    "q6_K": Kind(14, 256, 210, 0x11),
    "f16": Kind(1, 1, 2, 0x11),
    "bf16": Kind(30, 1, 2, 0x11),
    "q8_0": Kind(8, 32, 34, 0x11),
    "q4_0": Kind(2, 32, 18, 0x11),
    "q4_1": Kind(3, 32, 20, 0x11),
    "q5_0": Kind(6, 32, 22, 0x11),
    "f32": Kind(0, 1, 4, 0x3C),
    "q5_K": Kind(13, 256, 176, 0x11),
    "q5_1": Kind(7, 32, 24, 0x11),
    "q3_K": Kind(11, 256, 110, 0x11),
    "q2_K": Kind(10, 256, 84, 0x11),
    "iq4_nl": Kind(20, 32, 18, 0x11),
    "iq4_xs": Kind(23, 256, 136, 0x11),
    "iq3_s": Kind(21, 256, 110, 0x11),
    "q2_0": Kind(42, 64, 18, 0x11),
    "q1_0": Kind(41, 128, 18, 0x11),
}
_K_BLOCK: Final = 256
_MIXTURES: Final = {
    "q5_k_m": ("q5_K", "q6_K", 1 / 7),
    "q4_k_m": ("q4_K", "q6_K", 1 / 7),
    "q3_k_m": ("q3_K", "q4_K", 3 / 8),
    "q2_k": ("q2_K", "q3_K", 3 / 8),
}
"""Of what a mixture's layers are made, and the part that the second type has: half of the value and down projections
of a Llama, or all of them and those of the attention's result."""

_NAMES_OF: Final = {"q6_k": "q6_K"}
_TYPES: Final = {
    **{scheme: (most, more, "q6_K") for scheme, (most, more, _) in _MIXTURES.items()},
    **{scheme: (scheme, "q6_K") for scheme in ("q4_0", "q4_1", "iq4_nl", "iq4_xs", "iq3_s", "q2_0", "q1_0")},
    "q6_k": ("q6_K",),
}
"""What the schemes are made of that are no element types, or have a head of another: q6_K."""

_WIDE: Final = 1024, 2048, 1
_NARROW: Final = 512, 1536
_PROMPT_RUNS: Final = 2
_ANSWER_RUNS: Final = 4


def measure(library: Library, threads: int, schemes: Collection[str], limit_s: float) -> Speed | None:
    """Return the speed of the types of these schemes and of attention; None where none of them can be measured.

    Begins with no other type after ``limit_s``. Raises ``EngineError``, or ``OSError`` where there is no place for a
    model.
    """
    asked = [name for scheme in sorted(schemes) for name in _TYPES.get(scheme, (scheme,)) if name in _KINDS]
    if not asked:
        return None
    # Models whose rows do not fill K-quants' blocks are the small ones, of which layers take most beside their weights.
    of_layers = next((name for name in asked if _KINDS[name].block < _K_BLOCK), asked[0])
    kind = _KINDS[of_layers]
    wide = {name: _wide(_KINDS[name]) for name in dict.fromkeys((of_layers, *asked))}
    one, four, many = (_decoder(*_NARROW, layers, 64) for layers in (1, 4, _uncached_layers(kind)))
    found, settled = rounds.measure(
        {name: partial(_times, library, _KINDS[name], model, threads, (0,)) for name, model in wide.items()},
        {
            "attention": partial(_times, library, kind, four, threads, (0, FAR)),
            "layer": partial(_times, library, kind, many, threads, (0,)),
        },
        threads,
        limit_s,
    )
    if not found:
        return Speed(threads, {}, Rate(LEAST_S, LEAST_S), settled)
    rates = {name: _rate(wide[name], *found[name]) for name in wide if name in found}
    near, far = (_of_layer(times, four) for times in (found["attention"][:2], found["attention"][2:]))
    width = one.attentions[0].q_size
    rates["attention"] = attention(near, far, width)
    layer = beside(_of_layer(found["layer"], many), _weights(one), rates[of_layers], rates["attention"], width, CHUNK)
    for scheme, (most, more, share) in _MIXTURES.items():
        if {most, more} <= rates.keys():
            rates[scheme] = mixed(rates[most], rates[more], share)
    heads = {f"{scheme}.head": "q6_K" for scheme in _TYPES}
    for scheme, name in (_NAMES_OF | heads).items():
        if name in rates:
            rates[scheme] = rates[name]
    return Speed(threads, rates, layer, settled)


def _wide(kind: Kind) -> Decoder:
    hidden, intermediate, layers = _WIDE
    return _decoder(hidden, intermediate, layers, uncached() // (hidden // kind.block * kind.size))


def _uncached_layers(kind: Kind) -> int:
    """Return how many layers of a small model's width no cache holds together: what a matrix of less than a cache loses
    to its edges, and to its small size as it is read, counts as the layer's."""
    return uncached() // (_weights(_decoder(*_NARROW, 1, 64)) // kind.block * kind.size) + 1


def _rate(decoder: Decoder, chunk: float, step: float) -> Rate:
    weights, head = decoder.n_layers * _weights(decoder), decoder.hidden_size * decoder.n_vocab
    decode = step / (weights + head)
    # Of a prompt, the head is one token's. A neighbour may have slowed only the steps: never more than half of it.
    return Rate((chunk - min(head * decode, chunk / 2)) / (CHUNK * weights), decode)


def _of_layer(times: Sequence[float], decoder: Decoder) -> Times:
    chunk, step = times
    return Times(chunk / decoder.n_layers, step / decoder.n_layers)


def _weights(decoder: Decoder) -> int:
    return sum(math.prod(shape) for _, shape in decoder.layer(0).tensors(decoder.hidden_size) if len(shape) > 1)


def _decoder(hidden: int, intermediate: int, layers: int, rows: int) -> Decoder:
    heads = hidden // 64
    return made.llama(
        n_heads=heads,
        n_kv_heads=max(1, heads // 4),
        head_dim=64,
        mlp=intermediate,
        n_layers=layers,
        n_vocab=rows,
        context=10 * CHUNK,
    )


def _times(
    library: Library, kind: Kind, decoder: Decoder, threads: int, befores: Sequence[int], watch: Watch
) -> list[float]:
    """Return, after each number of tokens, the least seconds of a prompt's chunk and of an answer's step after that."""
    options, found = Options(decoder.context, threads, "f16", CHUNK), list[float]()
    with held(_model(kind, decoder)) as path:
        session = open_session(library, path, decoder, options)
        try:
            # The first step reads the weights, and where other programs hold the cores the threads give way to them:
            # that costs little with one token, and seconds with a chunk.
            session.forward([1])
            for before in befores:
                while session.length < before:
                    session.forward([1] * CHUNK)
                found.append(watch.least(partial(_seconds, session, CHUNK, before), _PROMPT_RUNS))
                _seconds(session, 1, before + CHUNK)
                found.append(watch.least(partial(_seconds, session, 1, before + CHUNK), _ANSWER_RUNS))
        finally:
            session.close()
    return found


def _seconds(session: Session, tokens: int, length: int) -> float:
    session.rewind(length)
    started = perf_counter()
    session.forward([1] * tokens)
    return perf_counter() - started


def _model(kind: Kind, decoder: Decoder) -> list[bytes]:
    """Return the pieces of a GGUF file of the decoder, its matrices of one kind."""

    def filled(_: str, shape: Sequence[int]) -> tuple[int, list[bytes]]:
        number, block, size, filling = kind if len(shape) > 1 else _KINDS["f32"]
        return number, repeated(filling, math.prod(shape) // block * size)

    return made.model(decoder, filled)
