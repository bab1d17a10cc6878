"""How each layer sees positions by a file's keys: its rope and its window, with what llama.cpp assumes of them."""

from __future__ import annotations

from typing import Final, NamedTuple

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import LinearScaling, Rope, YarnScaling
from edgepack_runtimes.gguf.graphs import Graph
from edgepack_runtimes.gguf.header import Array
from edgepack_runtimes.gguf.keys import Keys, float32


class _Yarn(NamedTuple):
    """How a rope is scaled by yarn: the factor, the original context, and between how many turns in it the ramp is."""

    factor: float | None
    original: int | None
    fast: float | None
    slow: float | None

    def __str__(self) -> str:
        return f"by {self.factor} from {self.original}, between {self.fast} and {self.slow} turns"


class _Position(NamedTuple):
    """How a layer sees positions: base, dimension and linear factor of its rope (None: no rope), yarn, and window."""

    base: float | None
    dim: int | None
    factor: float | None
    yarn: _Yarn | None
    window: int | None


_SILENT: Final = _Position(None, None, None, None, None)


def check_positions(keys: Keys, graph: Graph, decoder: Decoder) -> None:
    found = _positions(keys, graph, decoder)
    for layer, attention in decoder.attending.items():
        has, rope = found[layer], attention.rope
        wanted = _Position(
            float32(rope.theta) if rope else None,
            rope.dim if rope else None,
            float32(rope.scaling.factor if isinstance(rope.scaling, LinearScaling) else 1.0) if rope else None,
            _yarn_of(rope),
            attention.window,
        )
        for what, one, other in zip(
            ("rope's base", "rope's dimension", "rope's linear factor", "rope's yarn", "window"),
            _seen(has, decoder),
            _seen(wanted, decoder),
            strict=True,
        ):
            if one != other:
                raise keys.fail(f"the {what} of layer {layer} is {one}, the model's is {other}")


def _yarn_of(rope: Rope | None) -> _Yarn | None:
    if not rope or not isinstance(yarn := rope.scaling, YarnScaling):
        return None
    return _Yarn(float32(yarn.factor), yarn.original_context, float32(yarn.beta_fast), float32(yarn.beta_slow))


def _seen(position: _Position, decoder: Decoder) -> _Position:
    """A window hides nothing from a context that it covers."""
    covered = position.window is not None and position.window >= decoder.context
    return position._replace(window=None) if covered else position


def _positions(keys: Keys, graph: Graph, decoder: Decoder) -> list[_Position]:
    base, factor = keys.number("rope.freq_base", 10000.0), keys.number("rope.scaling.factor", 1.0)
    kind, yarn = keys.get("rope.scaling.type") or "linear", None
    original = keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))
    _check_temperature(keys, graph, decoder, original)
    if graph.yarn and kind == "yarn":
        fast = keys.number("rope.scaling.yarn_beta_fast", 32.0) if graph.turns else 32.0
        slow = keys.number("rope.scaling.yarn_beta_slow", 1.0) if graph.turns else 1.0
        factor, yarn = 1.0, _Yarn(factor, original, fast, slow)
    else:
        keys.check("rope.scaling.type", kind, "linear")
    full = next((each for each in decoder.attentions if not each.window), decoder.attentions[0])
    dim = keys.integer("rope.dimension_count", full.head_dim)
    local_dim = keys.integer("rope.dimension_count_swa", dim) if graph.by_layer else dim
    local = position = _Position(base, dim, factor, yarn, None)
    window = keys.integer("attention.sliding_window", graph.window) if graph.period else None
    if window is not None and graph.both_sides:
        window = window // 2 + 1
    if window:
        local_base = keys.number("rope.freq_base_swa", graph.local_base or base)
        local = _Position(
            base if graph.one_base else local_base, local_dim, factor if graph.local_scaling else 1.0, None, window
        )
    is_local = _local_layers(keys, graph, decoder)
    if graph.window and not (window and any(is_local)):
        # The engine ends the process.
        raise keys.fail("no layer has a window, and its architecture needs one")
    if graph.both_sides and len(set(is_local)) < 2:  # nor does it survive a mask that no layer uses
        raise keys.fail("its architecture has layers with a window and layers without, the file one kind")
    positions = [local if one else position for one in is_local]
    if graph.fourth_without_rope:
        positions[3::4] = [_SILENT] * len(positions[3::4])
    if graph.full_without_rope:
        positions = [position if one else _SILENT for position, one in zip(positions, is_local, strict=True)]
    return positions


def _check_temperature(keys: Keys, graph: Graph, decoder: Decoder, original: int | None) -> None:
    temperature = decoder.attentions[0].temperature
    beta = keys.number("attention.temperature_scale") if graph.temperature else None
    keys.check("attention.temperature_scale", beta, float32(temperature.beta if temperature else None))
    if temperature:
        keys.check("rope.scaling.original_context_length", original, temperature.length)


def _local_layers(keys: Keys, graph: Graph, decoder: Decoder) -> list[bool]:
    if not graph.period:
        return [False] * decoder.n_layers
    pattern = keys.get("attention.sliding_window_pattern")
    if pattern is None:
        return [(layer + 1) % graph.period != 0 for layer in range(decoder.n_layers)]
    if not isinstance(pattern, Array) or len(pattern.values) != decoder.n_layers:
        raise keys.wrong("attention.sliding_window_pattern", pattern, f"{decoder.n_layers} numbers")
    return [bool(value) for value in pattern.values]
