"""How fast onnxruntime multiplies here: its products of quantised matrices, each in a graph of one operator.

The bytes of a graph are written here, field by field, because no device needs the package that writes them otherwise.
Their numbers are those of onnx/onnx.proto. What the weights are does not matter to the time: one byte over and over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np

from edgepack.device.engine import Rate, Speed
from edgepack.device.memory import CHUNK
from edgepack_runtimes.onnx import engine
from edgepack_runtimes.scratch import held, repeated, uncached

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Pieces = tuple[bytes, ...]
"""Bytes that are not yet put together: most of a matrix is one piece over and over."""

_COLUMNS: Final = 1024
_ROWS: Final = 4096
"""Of the matrix that a prompt is multiplied with. That of an answer is larger than the processor's caches, and so each
step reads it from memory."""

_TYPES: Final[Mapping[str, Mapping[str, int]]] = {
    "int4": {"int4": 4},
    "int4_mixed": {"int4": 4, "int8": 8},
    "int8": {"int8": 8},
    "f32": {},
}
"""Bits of what the schemes are made of, besides the plain numbers of attention."""

_FLOAT: Final = 1  # TensorProto.DataType
_UINT8: Final = 2
_INTEGER: Final = 2  # AttributeProto.AttributeType
_PROMPT_ROUNDS: Final = 3
_ANSWER_ROUNDS: Final = 5
_OPERATORS: Final = 12
"""Of a layer: the products, two norms, attention, the gate's activation and its product."""

_MORE_BITS: Final = 1 / 8
"""The part of a mixture's layers that has 8 bits: value projections, and of a small model down projections too."""


def measure(threads: int, schemes: Collection[str], limit_s: float) -> Speed | None:
    """Return the speed of these schemes and of plain numbers; None where none of them can be measured.

    Begins with no other type after ``limit_s``. Raises ``EngineError``, or ``OSError`` where there is no place for a
    graph.
    """
    end = perf_counter() + limit_s
    asked = [_TYPES[scheme] for scheme in sorted(schemes) if scheme in _TYPES]
    if not asked:
        return None
    layer = _layer(threads)
    rates: dict[str, Rate] = {}
    for name, bits in {name: bits for types in (*asked, {"f32": 32}) for name, bits in types.items()}.items():
        if perf_counter() < end:
            rates[name] = _rate(bits, threads)
    if {"int4", "int8"} <= rates.keys():
        four, eight = rates["int4"], rates["int8"]
        rates["int4_mixed.head"] = eight
        rates["int4_mixed"] = Rate(
            four.prefill + _MORE_BITS * (eight.prefill - four.prefill),
            four.decode + _MORE_BITS * (eight.decode - four.decode),
        )
    return Speed(threads, rates, layer)


def _rate(bits: int, threads: int) -> Rate:
    row = _COLUMNS * bits // 8 + (_COLUMNS // 32 * 4 if bits < 32 else 0)
    rows = uncached() // row
    chunk = _time(_graph(bits, _ROWS, _COLUMNS, 1), _COLUMNS, threads, CHUNK, _PROMPT_ROUNDS)
    step = _time(_graph(bits, rows, _COLUMNS, 1), _COLUMNS, threads, 1, _ANSWER_ROUNDS)
    return Rate(chunk / (CHUNK * _ROWS * _COLUMNS), step / (rows * _COLUMNS))


def _layer(threads: int) -> Rate:
    """Return what a layer's operators cost whose matrices are next to nothing."""
    count = 4 * _OPERATORS
    graph = _graph(4, 64, 64, count)
    chunk, step = (_time(graph, 64, threads, tokens, _ANSWER_ROUNDS) for tokens in (CHUNK, 1))
    return Rate(chunk / CHUNK / count * _OPERATORS, step / count * _OPERATORS)


def _time(graph: Pieces, columns: int, threads: int, tokens: int, rounds: int) -> float:
    """Return the least seconds of a run with so many tokens, the first of which is not counted."""
    given = np.full((tokens, columns), 0.01, np.float32)
    with held(graph) as path:
        session = engine.start(path, threads, "cpu", spin=True)
        _seconds(session, given)
        return min(_seconds(session, given) for _ in range(rounds))


def _seconds(session: InferenceSession, given: np.ndarray) -> float:
    started = perf_counter()
    session.run(None, {"x0": given})
    return perf_counter() - started


def _graph(bits: int, rows: int, columns: int, count: int) -> Pieces:
    """Return a model of ``count`` products in a row, each with a matrix of its own of ``rows`` times ``columns``."""
    body: Pieces = ()
    tensors: Pieces = ()
    for index in range(count):
        if bits == 32:
            tensors += _tensor(f"w{index}", _FLOAT, (columns, rows), repeated(0x3C, 4 * rows * columns))
            body += _node("MatMul", (f"x{index}", f"w{index}"), f"x{index + 1}", {})
            continue
        codes = rows, columns // 32, 32 * bits // 8
        tensors += _tensor(f"w{index}", _UINT8, codes, repeated(0x11, rows * columns * bits // 8))
        scales = rows * columns // 32
        tensors += _tensor(f"s{index}", _FLOAT, (scales,), repeated(0x3C, 4 * scales))
        attributes = {"K": columns, "N": rows, "bits": bits, "block_size": 32, "accuracy_level": 4}
        names = f"x{index}", f"w{index}", f"s{index}"
        body += _node("MatMulNBits", names, f"x{index + 1}", attributes, "com.microsoft")
    body += _field(2, b"speed") + tensors
    body += _field(11, *_value("x0", columns)) + _field(12, *_value(f"x{count}", rows))
    opsets = _field(8, _number(2, 22)) + _field(8, *_field(1, b"com.microsoft"), _number(2, 1))
    return (_number(1, 10), *_field(7, *body), *opsets)


def _node(operator: str, inputs: Sequence[str], output: str, attributes: Mapping[str, int], domain: str = "") -> Pieces:
    parts = [piece for name in inputs for piece in _field(1, name.encode())]
    parts += [*_field(2, output.encode()), *_field(3, output.encode()), *_field(4, operator.encode())]
    for name, value in attributes.items():
        parts += _field(5, *_field(1, name.encode()), _number(3, value), _number(20, _INTEGER))
    return _field(1, *parts, *_field(7, domain.encode()))


def _tensor(name: str, element: int, shape: tuple[int, ...], data: Sequence[bytes]) -> Pieces:
    extents = (_number(1, extent) for extent in shape)
    return _field(5, *extents, _number(2, element), *_field(8, name.encode()), *_field(9, *data))


def _value(name: str, columns: int) -> Pieces:
    shape = *_field(1, *_field(2, b"n")), *_field(1, _number(1, columns))
    return *_field(1, name.encode()), *_field(2, *_field(1, _number(1, _FLOAT), *_field(2, *shape)))


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
