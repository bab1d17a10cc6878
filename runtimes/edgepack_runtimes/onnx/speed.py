"""How fast onnxruntime multiplies here: its products of quantised matrices, and layers of them.

The bytes of a graph are written here, field by field, because no device needs the package that writes them otherwise.
Their numbers are those of onnx/onnx.proto. What the weights are does not matter to the time: one byte over and over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from edgepack.device.engine import Rate, Speed
from edgepack.device.memory import CHUNK
from edgepack_runtimes import rounds
from edgepack_runtimes.onnx import engine
from edgepack_runtimes.rates import FAR, LEAST_S, Times, attention, beside, mixed
from edgepack_runtimes.rounds import Watch
from edgepack_runtimes.scratch import held, repeated, uncached

Pieces = tuple[bytes, ...]
"""Bytes that are not yet put together: most of a matrix is one piece over and over."""

_COLUMNS: Final = 1024
_ROWS: Final = 4096
"""Of the matrix that a prompt is multiplied with. That of an answer is larger than the processor's caches, and so each
step reads it from memory."""


class Kind(NamedTuple):
    """What a matrix is made of: bits of a weight, how many share a scale, and whether they share a zero point."""

    bits: int
    block: int = 32
    asymmetric: bool = False


_FLOATS: Final = Kind(32)
_NAME: Final = re.compile(r"int(2|4|8)(?:_b(64|128))?(_asym)?")

_FLOAT: Final = 1  # TensorProto.DataType
_UINT8: Final = 2
_INT32: Final = 6
_INPUT: Final = 11  # GraphProto's fields
_OUTPUT: Final = 12
_INTEGER: Final = 2  # AttributeProto.AttributeType
_CONTRIB: Final = "com.microsoft"
_PROMPT_RUNS: Final = 3
_ANSWER_RUNS: Final = 15
_WIDTH: Final = 512
_INTERMEDIATE: Final = 1536
"""Of the layer of a small model, and of its MLP."""

_HEADS: Final = _WIDTH // 64
_KV_HEADS: Final = _HEADS // 4
_WEIGHTS: Final = 2 * _WIDTH * _WIDTH + 2 * _WIDTH * 64 * _KV_HEADS + 3 * _WIDTH * _INTERMEDIATE
"""Of such a layer."""

_FEW: Final = 8
"""Layers whose weights the caches may hold, as a prompt's chunk does not wait for them."""

_MORE_BITS: Final = 1 / 8
"""The part of a mixture's layers that has 8 bits: value projections, and of a small model down projections too."""


def measure(threads: int, schemes: Collection[str], limit_s: float) -> Speed | None:
    """Return the speed of these schemes and of attention; None where none of them can be measured.

    Begins with no other type after ``limit_s``. Raises ``EngineError``, or ``OSError`` where there is no place for a
    graph.
    """
    types = {name: kind for scheme in sorted(schemes) for name, kind in _types(scheme).items()}
    if not types:
        return None
    of_layers, kind = next(iter(types.items()))
    many = uncached() // (_WEIGHTS * kind.bits // 8) + 1
    found, settled = rounds.measure(
        {name: partial(_times, each, threads) for name, each in types.items()},
        {
            "attention": partial(_layer_times, kind, threads, (_FEW, _FEW), (0, FAR)),
            "layer": partial(_layer_times, kind, threads, (_FEW, many), (0,)),
        },
        threads,
        limit_s,
    )
    if not found:
        return Speed(threads, {}, Rate(LEAST_S, LEAST_S), settled)
    rates = {name: _rate(each, *found[name]) for name, each in types.items() if name in found}
    chunk, far_chunk, step, far_step = found["attention"]
    rates["attention"] = attention(Times(chunk, step), Times(far_chunk, far_step), _WIDTH)
    # Steps are those of more layers than a cache holds: what small matrices lose as they are read counts too.
    layer = beside(Times(*found["layer"]), _WEIGHTS, rates[of_layers], rates["attention"], _WIDTH, before=0)
    if {"int4", "int8"} <= rates.keys():
        rates["int4_mixed.head"] = rates["int8"]
        rates["int4_mixed"] = mixed(rates["int4"], rates["int8"], _MORE_BITS)
    return Speed(threads, rates, layer, settled)


def _types(scheme: str) -> dict[str, Kind]:
    """Return what a scheme is made of, by name; nothing of one that is not known."""
    if scheme == "int4_mixed":
        return {"int4": Kind(4), "int8": Kind(8)}
    if scheme == "f32":
        return {scheme: _FLOATS}
    found = _NAME.fullmatch(scheme)
    return {scheme: Kind(int(found[1]), int(found[2] or 32), bool(found[3]))} if found else {}


def _rows(kind: Kind) -> int:
    """Return the rows of a matrix that no cache holds."""
    return uncached() // (_COLUMNS * kind.bits // 8 + (_COLUMNS // kind.block * 4 if kind.bits < 32 else 0))


def _rate(kind: Kind, chunk: float, step: float) -> Rate:
    return Rate(chunk / (CHUNK * _ROWS * _COLUMNS), step / (_rows(kind) * _COLUMNS))


def _times(kind: Kind, threads: int, watch: Watch) -> list[float]:
    """Return the least seconds of a chunk of a prompt and of a step of an answer, each with its matrix."""
    found = []
    for rows, tokens, runs in ((_ROWS, CHUNK, _PROMPT_RUNS), (_rows(kind), 1, _ANSWER_RUNS)):
        with held(_graph(kind, rows, _COLUMNS, 1)) as path:
            session = engine.start(path, threads, "cpu", spin=True)
            run = partial(session.run, None, {"x0": np.full((1, tokens, _COLUMNS), 0.01, np.float32)})
            found.append(_least(run, runs, watch))
    return found


def _layer_times(
    kind: Kind, threads: int, counts: tuple[int, int], befores: Sequence[int], watch: Watch
) -> list[float]:
    """Return the least seconds of a layer, after each number of tokens: with a chunk of a prompt, and then with one.

    ``counts`` are the layers that there are, for the two.
    """
    return [
        seconds
        for tokens, count in zip((CHUNK, 1), counts, strict=True)
        for seconds in _layer_seconds(kind, count, threads, tokens, befores, watch)
    ]


def _layer_seconds(
    kind: Kind, count: int, threads: int, tokens: int, befores: Sequence[int], watch: Watch
) -> Iterator[float]:
    capacity = max(befores) + tokens
    with held(_layers(kind, count, capacity)) as path:
        session = engine.start(path, threads, "cpu", spin=True)
        binding = session.io_binding()
        binding.bind_cpu_input("x0", np.full((1, tokens, _WIDTH), 0.01, np.float32))
        binding.bind_output(f"x{count}")
        for name in (f"{part}{index}" for index in range(count) for part in ("keys", "values")):
            cache = np.full((1, _KV_HEADS, capacity, 64), 0.01, np.float32)
            value = engine.load().OrtValue.ortvalue_from_numpy(cache)
            binding.bind_ortvalue_input(f"past.{name}", value)
            binding.bind_ortvalue_output(name, value)
        for total in (before + tokens for before in befores):
            binding.bind_cpu_input("last", np.array([total - 1], np.int32))
            binding.bind_cpu_input("total", np.array([total], np.int32))
            runs = _ANSWER_RUNS if tokens == 1 else _PROMPT_RUNS
            yield _least(partial(session.run_with_iobinding, binding), runs, watch) / count


def _least(run: Callable[[], object], runs: int, watch: Watch) -> float:
    """Return the least seconds of so many runs after the first, which allocates."""
    _seconds(run)
    return watch.least(partial(_seconds, run), runs)


def _seconds(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started


def _graph(kind: Kind, rows: int, columns: int, count: int) -> Pieces:
    """Return a model of ``count`` products in a row, each with a matrix of its own of ``rows`` times ``columns``."""
    parts = [_product(f"w{index}", kind, rows, columns, f"x{index}", f"x{index + 1}") for index in range(count)]
    parts += [_value(_INPUT, "x0", _FLOAT, (1, None, columns)), _value(_OUTPUT, f"x{count}", _FLOAT, (1, None, rows))]
    return _model(parts)


def _layers(kind: Kind, count: int, capacity: int) -> Pieces:
    """Return a model of ``count`` layers in a row, each with a KV cache of its own of ``capacity`` positions."""
    square, cache = (1, None, _WIDTH), (1, _KV_HEADS, capacity, 64)
    parts = [_tensor("ones", _FLOAT, (_WIDTH,), repeated(0x3C, 4 * _WIDTH))]
    parts += [_tensor("angles", _FLOAT, (capacity, 32), repeated(0x3C, 4 * 32 * capacity))]
    parts += [_value(_INPUT, "x0", _FLOAT, square), _value(_OUTPUT, f"x{count}", _FLOAT, square)]
    parts += [_value(_INPUT, name, _INT32, (1,)) for name in ("last", "total")]
    for index in range(count):
        for name in (f"keys{index}", f"values{index}"):
            parts += [_value(_INPUT, f"past.{name}", _FLOAT, cache), _value(_OUTPUT, name, _FLOAT, cache)]
        parts += _one_layer(kind, str(index), f"x{index}", f"x{index + 1}")
    return _model(parts)


def _one_layer(kind: Kind, end: str, given: str, output: str) -> Iterator[Pieces]:
    rows_of = {"k": 64 * _KV_HEADS, "v": 64 * _KV_HEADS, "gate": _INTERMEDIATE, "up": _INTERMEDIATE}

    def product(part: str, source: str) -> Pieces:
        columns = _INTERMEDIATE if part == "down" else _WIDTH
        return _product(f"w.{part}{end}", kind, rows_of.get(part, _WIDTH), columns, source, part + end)

    def node(operator: str, inputs: str, *outputs: str, **attributes: int) -> Pieces:
        domain = _CONTRIB if attributes else ""
        return _node(operator, inputs.format(end=end).split(), [name + end for name in outputs], attributes, domain)

    yield from (product(part, given) for part in "qkv")
    attended = "q{end} k{end} v{end} past.keys{end} past.values{end} last total angles angles"
    heads = {"num_heads": _HEADS, "kv_num_heads": _KV_HEADS, "do_rotary": 1}
    yield node("GroupQueryAttention", attended, "mixed", "keys", "values", **heads)
    yield product("o", f"mixed{end}")
    yield _sum_and_norm(f"o{end}", given, f"normed{end}")
    yield from (product(part, f"normed{end}") for part in ("gate", "up"))
    yield node("Sigmoid", "gate{end}", "sigmoid")
    yield node("Mul", "gate{end} sigmoid{end}", "gated")
    yield node("Mul", "gated{end} up{end}", "product")
    yield product("down", f"product{end}")
    yield _sum_and_norm(f"down{end}", f"normed{end}", output)


def _sum_and_norm(given: str, residual: str, output: str) -> Pieces:
    return _node("SkipSimplifiedLayerNormalization", (given, residual, "ones"), (output,), domain=_CONTRIB)


def _model(parts: Sequence[Pieces]) -> Pieces:
    body = _field(2, b"speed") + tuple(piece for part in parts for piece in part)
    opsets = _field(8, _number(2, 22)) + _field(8, *_field(1, _CONTRIB.encode()), _number(2, 1))
    return (_number(1, 10), *_field(7, *body), *opsets)


def _product(name: str, kind: Kind, rows: int, columns: int, given: str, output: str) -> Pieces:
    if kind == _FLOATS:
        weights = _tensor(name, _FLOAT, (columns, rows), repeated(0x3C, 4 * rows * columns))
        return weights + _node("MatMul", (given, name), (output,))
    codes, scales = (rows, columns // kind.block, kind.block * kind.bits // 8), rows * columns // kind.block
    tensors = _tensor(name, _UINT8, codes, repeated(0x11, rows * columns * kind.bits // 8))
    tensors += _tensor(f"{name}.scales", _FLOAT, (scales,), repeated(0x3C, 4 * scales))
    inputs = [given, name, f"{name}.scales"]
    if kind.asymmetric:
        inputs.append(f"{name}.zeros")
        tensors += _tensor(inputs[-1], _UINT8, (scales * kind.bits // 8,), repeated(0x77, scales * kind.bits // 8))
    attributes = {"K": columns, "N": rows, "bits": kind.bits, "block_size": kind.block, "accuracy_level": 4}
    return tensors + _node("MatMulNBits", inputs, (output,), attributes, _CONTRIB)


def _node(
    operator: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Mapping[str, int] = MappingProxyType({}),
    domain: str = "",
) -> Pieces:
    parts = [piece for name in inputs for piece in _field(1, name.encode())]
    parts += [piece for name in outputs for piece in _field(2, name.encode())]
    parts += [*_field(3, outputs[0].encode()), *_field(4, operator.encode())]
    for name, value in attributes.items():
        parts += _field(5, *_field(1, name.encode()), _number(3, value), _number(20, _INTEGER))
    return _field(1, *parts, *_field(7, domain.encode()))


def _tensor(name: str, element: int, shape: tuple[int, ...], data: Sequence[bytes]) -> Pieces:
    extents = (_number(1, extent) for extent in shape)
    return _field(5, *extents, _number(2, element), *_field(8, name.encode()), *_field(9, *data))


def _value(field: int, name: str, element: int, shape: Sequence[int | None]) -> Pieces:
    extents = [_field(1, *(_field(2, b"n") if extent is None else (_number(1, extent),))) for extent in shape]
    dimensions = _field(2, *(piece for extent in extents for piece in extent))
    return _field(field, *_field(1, name.encode()), *_field(2, *_field(1, _number(1, element), *dimensions)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, *data: bytes) -> Pieces:
    return _varint(field << 3 | 2) + _varint(sum(map(len, data))), *data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])
