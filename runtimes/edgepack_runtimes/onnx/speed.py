"""How fast onnxruntime multiplies here: its products of quantised matrices, each in a graph of one operator.

The bytes of a graph are written here, field by field, because no device needs the package that writes them otherwise.
Their numbers are those of onnx/onnx.proto. What the weights are does not matter to the time: one byte over and over.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np

from edgepack.device.engine import Rate, Speed
from edgepack.device.memory import CHUNK
from edgepack_runtimes.onnx import engine
from edgepack_runtimes.scratch import held

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_COLUMNS: Final = 1024
_BYTES: Final = 48 << 20
"""Of a matrix: more than the processor's caches hold, so that a step of an answer reads it from memory."""

_ENOUGH_S: Final = 4.0
"""Beside busy programs a measurement takes many times as long: then so many seconds must do."""

_FLOAT: Final = 1  # TensorProto.DataType
_UINT8: Final = 2
_INTEGER: Final = 2  # AttributeProto.AttributeType
_PROMPT_ROUNDS: Final = 3
_ANSWER_ROUNDS: Final = 8
_OPERATORS: Final = 12
"""Of a layer: the products, two norms, attention, the gate's activation and its product."""

_MORE_BITS: Final = 1 / 8
"""The part of a mixture's layers that has 8 bits: value projections, and of a small model down projections too."""


def measure(threads: int) -> Speed:
    """Return the speed of every scheme for which there is time.

    Raises ``EngineError``, or ``OSError`` where there is no place for a graph.
    """
    end = perf_counter() + _ENOUGH_S
    layer = _layer(threads)
    rates: dict[str, Rate] = {}
    for name, bits in (("int4", 4), ("int8", 8), ("f32", 32)):
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
    rows = _BYTES // row
    if bits == 32:  # as many products would take long
        rows //= 2
    chunk, step = _times(_graph(bits, rows, _COLUMNS, 1), _COLUMNS, threads)
    return Rate(chunk / (CHUNK * rows * _COLUMNS), step / (rows * _COLUMNS))


def _layer(threads: int) -> Rate:
    """Return what a layer's operators cost whose matrices are next to nothing."""
    count = 4 * _OPERATORS
    chunk, step = _times(_graph(4, 64, 64, count), 64, threads)
    return Rate(chunk / CHUNK / count * _OPERATORS, step / count * _OPERATORS)


def _times(graph: bytes, columns: int, threads: int) -> tuple[float, float]:
    """Return the least seconds of a run with a chunk of rows, and with one."""
    with held(graph) as path:
        session = engine.start(path, threads, "cpu", spin=True)
        many, one = np.full((CHUNK, columns), 0.01, np.float32), np.full((1, columns), 0.01, np.float32)
        _seconds(session, many)
        chunk = min(_seconds(session, many) for _ in range(_PROMPT_ROUNDS))
        _seconds(session, one)
        return chunk, min(_seconds(session, one) for _ in range(_ANSWER_ROUNDS))


def _seconds(session: InferenceSession, given: np.ndarray) -> float:
    started = perf_counter()
    session.run(None, {"x0": given})
    return perf_counter() - started


def _graph(bits: int, rows: int, columns: int, count: int) -> bytes:
    """Return a model of ``count`` products in a row, each with a matrix of its own of ``rows`` times ``columns``."""
    nodes, tensors = [], []
    for index in range(count):
        if bits == 32:
            tensors.append(_tensor(f"w{index}", _FLOAT, (columns, rows), b"\x3c" * (4 * rows * columns)))
            nodes.append(_node("MatMul", (f"x{index}", f"w{index}"), f"x{index + 1}", {}))
            continue
        codes = rows, columns // 32, 32 * bits // 8
        tensors.append(_tensor(f"w{index}", _UINT8, codes, b"\x11" * (rows * columns * bits // 8)))
        scales = struct.pack("<f", 0.01) * (rows * columns // 32)
        tensors.append(_tensor(f"s{index}", _FLOAT, (rows * columns // 32,), scales))
        attributes = {"K": columns, "N": rows, "bits": bits, "block_size": 32, "accuracy_level": 4}
        names = f"x{index}", f"w{index}", f"s{index}"
        nodes.append(_node("MatMulNBits", names, f"x{index + 1}", attributes, "com.microsoft"))
    body = b"".join(_field(1, node) for node in nodes) + _field(2, b"speed")
    body += b"".join(_field(5, tensor) for tensor in tensors)
    body += _field(11, _value("x0", columns)) + _field(12, _value(f"x{count}", rows))
    opsets = _field(8, _number(2, 22)) + _field(8, _field(1, b"com.microsoft") + _number(2, 1))
    return _number(1, 10) + _field(7, body) + opsets


def _node(operator: str, inputs: Sequence[str], output: str, attributes: Mapping[str, int], domain: str = "") -> bytes:
    parts = [_field(1, name.encode()) for name in inputs] + [_field(2, output.encode()), _field(3, output.encode())]
    parts.append(_field(4, operator.encode()))
    for name, value in attributes.items():
        parts.append(_field(5, _field(1, name.encode()) + _number(3, value) + _number(20, _INTEGER)))
    return b"".join(parts) + _field(7, domain.encode())


def _tensor(name: str, element: int, shape: tuple[int, ...], data: bytes) -> bytes:
    return b"".join(_number(1, extent) for extent in shape) + (
        _number(2, element) + _field(8, name.encode()) + _field(9, data)
    )


def _value(name: str, columns: int) -> bytes:
    shape = _field(1, _field(2, b"n")) + _field(1, _number(1, columns))
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, _FLOAT) + _field(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])
