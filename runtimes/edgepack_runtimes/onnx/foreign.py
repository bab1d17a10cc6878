"""A strict look at a ``model.onnx`` that another program wrote, before onnxruntime sees it.

Nobody here knows what it computes: the proof of its build does, and the digests that a bundle's files are held to. What
is looked for is what a graph could do beside computing: read another file, run code that is no operator of ONNX's own,
keep a state, or bring graphs within the graph. What it may ask of the memory is not bounded.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Final

from edgepack.errors import EngineError
from edgepack_runtimes.onnx.wire import (
    DATA_FILE,
    ENTRY,
    EXTERNAL,
    GRAPH_FILE,
    MalformedError,
    add_entry,
    check_place,
    fields,
    integers,
    message,
    signed,
    text,
)

OPERATORS: Final = frozenset({
    "Abs", "Add", "And", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Cos", "CumSum", "Div",
    "Equal", "Erf", "Exp", "Expand", "Flatten", "Gather", "Gemm", "Greater", "GreaterOrEqual", "Identity",
    "IsNaN", "LayerNormalization", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not",
    "Or", "Pow", "Range", "Reciprocal", "ReduceMean", "ReduceSum", "Relu", "Reshape", "ScatterND", "Shape",
    "Sigmoid", "Sin", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile",
    "Transpose", "Trilu", "Unsqueeze", "Where",
})  # fmt: skip
"""Those of ONNX's own domain that make their outputs of their inputs alone, the same each time."""

OPSETS: Final = range(13, 24)
_MOST_BYTES: Final = 64 << 20  # of the graph, whose weights lie in the data file

# The fields that each message of onnx.proto may carry here, by number.
_MODEL = frozenset({1, 2, 3, 7, 8})  # ir_version, producer_name, producer_version, graph, opset_import
_GRAPH = frozenset({1, 2, 5, 11, 12, 13})  # node, name, initializer, input, output, value_info
_NODE = frozenset({1, 2, 3, 4, 5, 7})  # input, output, name, op_type, attribute, domain
_ATTRIBUTE = frozenset({1, 2, 3, 4, 5, 7, 8, 20})  # name, f, i, s, t, floats, ints, type
_TENSOR = frozenset({1, 2, 8, 9, 13, 14})  # dims, data_type, name, raw_data, external data and its mark
_BYTES = {1: 4, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}  # of float, int32, int64, bool, float16 and double
_MOST_DIMENSIONS = 8


def check(variant: Path) -> None:
    """Check the files of a variant. Raises ``EngineError`` where one is missing, or the graph has what it must not."""
    path, data = variant / GRAPH_FILE, variant / DATA_FILE
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
        size = data.stat().st_size
    except OSError as error:
        raise EngineError(f"{error.filename} could not be read: {error.strerror}.") from error
    try:
        if len(content) > _MOST_BYTES:
            raise MalformedError(f"it has more than {_MOST_BYTES} bytes")
        _model(memoryview(content), size)
    except MalformedError as error:
        raise EngineError(
            f"{path} is not a graph that an exporter's bundle may hold: {error}.", hint="Build it again."
        ) from None


def _model(model: memoryview, size: int) -> None:
    graphs, opsets = [], []
    for number, value in fields(model, "model", _MODEL):
        if number == 7:
            graphs.append(message(value))
        elif number == 8:
            entry = dict(fields(message(value), "opset", ENTRY))
            opsets.append((text(entry.get(1, memoryview(b""))), entry.get(2)))
    if len(graphs) != 1:
        raise MalformedError(f"it has {len(graphs)} graphs")
    if len(opsets) != 1 or opsets[0][0] or opsets[0][1] not in OPSETS:
        raise MalformedError(f"it asks for the operators of {opsets}")
    for number, value in fields(graphs[0], "graph", _GRAPH):
        if number == 1:
            _node(message(value), size)
        elif number == 5:
            _tensor(message(value), size)


def _node(node: memoryview, size: int) -> None:
    operator = domain = ""
    for number, value in fields(node, "node", _NODE):
        if number == 4:
            operator = text(value)
        elif number == 7:
            domain = text(value)
        elif number == 5:
            for part, inner in fields(message(value), "attribute", _ATTRIBUTE):
                if part == 5:
                    _tensor(message(inner), size)
    if domain or operator not in OPERATORS:
        raise MalformedError(f"it has the operator {domain[:40] or 'ai.onnx'}.{operator[:40]}")


def _tensor(tensor: memoryview, size: int) -> None:
    name, kind, location, raw = "", 0, 0, 0
    dims: list[int] = []
    entries: dict[str, bytes] = {}
    for number, value in fields(tensor, "tensor", _TENSOR):
        if number == 1:
            dims += integers(value, _MOST_DIMENSIONS)
        elif number == 2:
            kind = signed(value)
        elif number == 8:
            name = text(value)
        elif number == 9:
            raw += len(message(value))
        elif number == 13:
            add_entry(entries, name, message(value))
        else:
            location = signed(value)
    if kind not in _BYTES or len(dims) > _MOST_DIMENSIONS or min(dims, default=0) < 0:
        raise MalformedError(f"the tensor {name[:40]!r} has the type {kind} and {len(dims)} dimensions")
    length = _BYTES[kind] * prod(dims)
    if location == EXTERNAL and not raw:
        check_place(name, entries, length, size)
    elif location or entries or raw != length:
        raise MalformedError(f"the tensor {name[:40]!r} has {raw} bytes, its dimensions {length}")
