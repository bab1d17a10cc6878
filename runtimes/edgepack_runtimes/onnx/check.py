"""A strict look at ``model.onnx`` before onnxruntime sees it: the only file it may name is its data file.

It reads protobuf's wire format itself, so that a device needs no onnx package. A field that an edgepack graph does not
have (subgraphs, functions, sparse tensors: each could name a file as well) is refused rather than searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgepack.errors import EngineError

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

# The fields that each message of onnx.proto carries here, by number.
_MODEL = frozenset({1, 2, 7, 8})  # ir_version, producer_name, graph, opset_import
_GRAPH = frozenset({1, 2, 5, 11, 12})  # node, name, initializer, input, output
_NODE = frozenset({1, 2, 3, 4, 5, 7})  # input, output, name, op_type, attribute, domain
_ATTRIBUTE = frozenset({1, 2, 3, 4, 20})  # name, f, i, s, type
_TENSOR = frozenset({1, 2, 4, 7, 8, 13, 14})  # dims, data_type, float and int64 data, name, external data and its mark
_ENTRY = frozenset({1, 2})

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_ATTRIBUTE = 5
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA = 8, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

Value = int | memoryview


def check(variant: Path) -> None:
    """Check the files of a variant. Raises ``EngineError`` where one is missing or names what it must not."""
    graph, data = variant / GRAPH_FILE, variant / DATA_FILE
    try:
        content, size = graph.read_bytes(), data.stat().st_size
    except OSError as error:
        raise EngineError(f"{error.filename} could not be read: {error.strerror}.") from error
    try:
        for tensor in _initializers(memoryview(content)):
            _check_tensor(tensor, size)
    except _MalformedError as error:
        raise EngineError(f"{graph} is not a model that edgepack wrote: {error}.", hint="Build it again.") from None


class _MalformedError(Exception):
    pass


def _initializers(model: memoryview) -> Iterator[memoryview]:
    graphs = [_message(value) for number, value in _fields(model, "model", _MODEL) if number == _MODEL_GRAPH]
    if not graphs:
        raise _MalformedError("it has no graph")
    for graph in graphs:
        for number, value in _fields(graph, "graph", _GRAPH):
            if number == _GRAPH_INITIALIZER:
                yield _message(value)
            elif number == _GRAPH_NODE:
                _check_node(_message(value))


def _check_node(node: memoryview) -> None:
    for number, value in _fields(node, "node", _NODE):
        if number == _NODE_ATTRIBUTE:
            for _ in _fields(_message(value), "attribute", _ATTRIBUTE):
                pass


def _check_tensor(tensor: memoryview, size: int) -> None:
    name, entries = "", {}
    for number, value in _fields(tensor, "tensor", _TENSOR):
        if number == _TENSOR_NAME:
            name = bytes(_message(value)).decode(errors="replace")
        elif number == _TENSOR_EXTERNAL_DATA:
            entry = {part: bytes(_message(text)) for part, text in _fields(_message(value), "entry", _ENTRY)}
            key = entry.get(_ENTRY_KEY, b"").decode(errors="replace")
            if key in entries or key not in ("location", "offset", "length"):
                raise _MalformedError(f"the tensor {name!r} has an unexpected entry {key!r}")
            entries[key] = entry.get(_ENTRY_VALUE, b"")
    if not entries:
        return
    location = entries.get("location", b"")
    if location != DATA_FILE.encode():
        raise _MalformedError(
            f"the tensor {name!r} lies in {location.decode(errors='replace')!r} instead of {DATA_FILE}"
        )
    offset, length = (_count(entries.get(key, b""), name, key) for key in ("offset", "length"))
    if offset + length > size:
        raise _MalformedError(f"the tensor {name!r} ends at byte {offset + length}, {DATA_FILE} at byte {size}")


def _count(text: bytes, name: str, key: str) -> int:
    if not (text.isdigit() and len(text) < 20):
        raise _MalformedError(f"the tensor {name!r} has no valid {key}")
    return int(text)


def _fields(message: memoryview, what: str, allowed: frozenset[int]) -> Iterator[tuple[int, Value]]:
    """Yield (number, value) of a message's fields: an int of a varint, else the bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if number not in allowed:
            raise _MalformedError(f"a {what} has the field {number}, which has no place here")
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            count, position = _varint(message, position)
        elif wire in (1, 5):
            count = 8 if wire == 1 else 4
        else:
            raise _MalformedError(f"a {what} has the wire type {wire}")
        if count > len(message) - position:
            raise _MalformedError(f"a {what} ends in the middle of a field")
        yield number, message[position : position + count]
        position += count


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise _MalformedError("a number does not end")


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise _MalformedError("a number stands where a message or a text belongs")
    return value
