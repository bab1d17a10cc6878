"""A strict look at ``model.onnx`` before onnxruntime sees it: it is the decoder's graph, and names its data file alone.

It reads protobuf's wire format itself, so that a device needs no onnx package. A field that an edgepack graph does not
have (subgraphs, functions, sparse tensors: each could name a file as well) is refused rather than searched.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

from edgepack.bundle.decoder import Decoder, KvCache
from edgepack.errors import EngineError
from edgepack_runtimes.onnx.graph import BYTES, F32, I64, OPSETS, Attribute, Graph, Node, Tensor, expected

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

# The fields that each message of onnx.proto carries here, by number.
_MODEL = frozenset({1, 2, 7, 8})  # ir_version, producer_name, graph, opset_import
_GRAPH = frozenset({1, 2, 5, 11, 12})  # node, name, initializer, input, output
_NODE = frozenset({1, 2, 3, 4, 5, 7})  # input, output, name, op_type, attribute, domain
_ATTRIBUTE = frozenset({1, 2, 3, 4, 20})  # name, f, i, s, type
_TENSOR = frozenset({1, 2, 4, 7, 8, 13, 14})  # dims, data_type, float and int64 data, name, external data and its mark
_ENTRY = frozenset({1, 2})

_ATTRIBUTE_TYPES = {2: 1, 3: 2, 4: 3}  # the number of the value's field: its AttributeType
_EXTERNAL = 1
_MAX_VALUES = 8  # of an initialiser in the graph itself

Value = int | memoryview


def check(variant: Path, decoder: Decoder, kv_cache: KvCache = "f32") -> None:
    """Check the files of a variant. Raises ``EngineError`` where one is missing, is not the decoder's, or names what
    it must not; and where its attention would read another cache than one of that type: a byte or a number of four."""
    path, data = variant / GRAPH_FILE, variant / DATA_FILE
    try:
        content, size = path.read_bytes(), data.stat().st_size
    except OSError as error:
        raise EngineError(f"{error.filename} could not be read: {error.strerror}.") from error
    try:
        found = _model(memoryview(content), size)
    except _MalformedError as error:
        raise EngineError(f"{path} is not a model that edgepack wrote: {error}.", hint="Build it again.") from None
    if found.quantized_cache != (kv_cache == "q8"):
        raise EngineError(
            f"{path} has no KV cache of {kv_cache}.",
            hint=other_cache(kv_cache),
        )
    if difference := _difference(found, expected(decoder, found)):
        raise EngineError(f"{path} is not the graph of this decoder: {difference} differs.", hint="Build it again.")


def other_cache(kv_cache: KvCache) -> str:
    """Return the next step for who asked for a type of KV cache that a variant has not."""
    return f"The type is built into the variant: leave kv_cache out, or build one with --kv-cache {kv_cache}."


class _MalformedError(Exception):
    pass


def _difference(found: Graph, wanted: Graph) -> str | None:
    """Return the name of the first operator or initialiser that is not the one that is wanted."""
    for has, should in zip(found.nodes, wanted.nodes, strict=False):
        if has != should:
            return f"the operator of {should.outputs[0]}"
    if len(found.nodes) != len(wanted.nodes):
        return f"the number of operators, {len(found.nodes)} instead of {len(wanted.nodes)},"
    names = (name for name in {*found.tensors, *wanted.tensors} if found.tensors.get(name) != wanted.tensors.get(name))
    return next(iter(sorted(names)), None)


def _model(model: memoryview, size: int) -> Graph:
    graph, opsets = None, {}
    for number, value in _fields(model, "model", _MODEL):
        if number == 7:
            if graph is not None:
                raise _MalformedError("it has two graphs")
            graph = _graph(_message(value), size)
        elif number == 8:
            entry = dict(_fields(_message(value), "opset", _ENTRY))
            opsets[_text(entry.get(1, memoryview(b"")))] = entry.get(2)
    if graph is None:
        raise _MalformedError("it has no graph")
    if opsets != OPSETS:
        raise _MalformedError(f"it asks for the operators of {opsets}")
    return graph


def _graph(graph: memoryview, size: int) -> Graph:
    found = Graph()
    for number, value in _fields(graph, "graph", _GRAPH):
        if number == 1:
            found.nodes.append(_node(_message(value)))
        elif number == 5:
            name, tensor = _tensor(_message(value), size)
            if name in found.tensors:
                raise _MalformedError(f"the tensor {name!r} is there twice")
            found.tensors[name] = tensor
    return found


def _node(node: memoryview) -> Node:
    texts: dict[int, list[str]] = {number: [] for number in _NODE}
    attributes: dict[str, Attribute] = {}
    for number, value in _fields(node, "node", _NODE):
        if number == 5:
            attribute, fact = _attribute(_message(value))
            if attribute in attributes:
                raise _MalformedError(f"the attribute {attribute!r} is there twice")
            attributes[attribute] = fact
        else:
            texts[number].append(_text(value))
    inputs, outputs, (name, operator, domain) = texts[1], texts[2], ("".join(texts[field][-1:]) for field in (3, 4, 7))
    if name != "".join(outputs[:1]):
        raise _MalformedError(f"the operator of {name!r} makes something else")
    return Node(operator, domain, tuple(inputs), tuple(outputs), attributes)


def _attribute(attribute: memoryview) -> tuple[str, Attribute]:
    fields = dict(_fields(attribute, "attribute", _ATTRIBUTE))
    name, kind = _text(fields.pop(1, memoryview(b""))), fields.pop(20, None)
    if len(fields) != 1 or _ATTRIBUTE_TYPES[min(fields)] != kind:
        raise _MalformedError(f"the attribute {name!r} has no value of its type")
    ((number, value),) = fields.items()
    if number == 3:
        return name, _signed(value)
    data = bytes(_message(value))
    if number == 2 and len(data) != 4:
        raise _MalformedError(f"the attribute {name!r} is no number")
    return name, struct.unpack("<f", data)[0] if number == 2 else data


def _tensor(tensor: memoryview, size: int) -> tuple[str, Tensor]:
    name, kind, location = "", 0, 0
    dims: list[int] = []
    values: list[float] = []
    entries: dict[str, bytes] = {}
    for number, value in _fields(tensor, "tensor", _TENSOR):
        if number == 1:
            dims += _integers(value)
        elif number == 2:
            kind = _signed(value)
        elif number == 4:
            data = bytes(_message(value))
            if len(data) % 4 or len(data) > 4 * _MAX_VALUES:
                raise _MalformedError("a tensor has too many numbers in the graph")
            values += struct.unpack(f"<{len(data) // 4}f", data)
        elif number == 7:
            values += _integers(value)
        elif number == 8:
            name = _text(value)
        elif number == 13:
            _add_entry(entries, name, _message(value))
        else:
            location = _signed(value)
    if len(values) > _MAX_VALUES or len(dims) > 4:
        raise _MalformedError(f"the tensor {name!r} has too many numbers in the graph")
    if location != _EXTERNAL:
        if entries or kind not in (F32, I64):
            raise _MalformedError(f"the tensor {name!r} has no place")
        return name, Tensor(kind, tuple(dims), tuple(values))
    if values:
        raise _MalformedError(f"the tensor {name!r} has two places")
    _check_place(name, entries, BYTES.get(kind, 0) * prod(dims), size)
    return name, Tensor(kind, tuple(dims))


def _add_entry(entries: dict[str, bytes], name: str, message: memoryview) -> None:
    entry = {part: bytes(_message(text)) for part, text in _fields(message, "entry", _ENTRY)}
    key = entry.get(1, b"").decode(errors="replace")
    if key in entries or key not in ("location", "offset", "length"):
        raise _MalformedError(f"the tensor {name!r} has an unexpected entry {key!r}")
    entries[key] = entry.get(2, b"")


def _check_place(name: str, entries: dict[str, bytes], length: int, size: int) -> None:
    location = entries.get("location", b"")
    if location != DATA_FILE.encode():
        raise _MalformedError(
            f"the tensor {name!r} lies in {location.decode(errors='replace')!r} instead of {DATA_FILE}"
        )
    offset, said = (_count(entries.get(key, b""), name, key) for key in ("offset", "length"))
    if said != length:
        raise _MalformedError(f"the tensor {name!r} has {said} bytes, its dimensions {length}")
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
            return value & (1 << 64) - 1, position
    raise _MalformedError("a number does not end")


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise _MalformedError("a number stands where a message or a text belongs")
    return value


def _text(value: Value) -> str:
    return bytes(_message(value)).decode(errors="replace")


def _signed(value: Value) -> int:
    if not isinstance(value, int):
        raise _MalformedError("a text stands where a number belongs")
    return value - (1 << 64) if value >> 63 else value


def _integers(value: Value) -> list[int]:
    """Return a field's integers: one, or several packed into its bytes."""
    if isinstance(value, int):
        return [_signed(value)]
    found, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        found.append(_signed(number))
        if len(found) > _MAX_VALUES:
            raise _MalformedError("a tensor has too many numbers in the graph")
    return found
