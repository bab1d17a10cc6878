"""A strict look at ``model.onnx`` before onnxruntime sees it: it is the decoder's graph, and names its data file alone.

It reads protobuf's wire format itself, so that a device needs no onnx package. A field that an edgepack graph does not
have (subgraphs, functions, sparse tensors: each could name a file as well) is refused rather than searched.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

from edgepack.bundle.decoder import Decoder, KvCache
from edgepack.errors import EngineError
from edgepack_runtimes.onnx.graph import expected
from edgepack_runtimes.onnx.operators import (
    BYTES,
    F16,
    F32,
    I64,
    OPSETS,
    OPSETS_AT_ONCE,
    Attribute,
    Graph,
    Node,
    Tensor,
)
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

# The fields that each message of onnx.proto carries here, by number.
_MODEL = frozenset({1, 2, 7, 8})  # ir_version, producer_name, graph, opset_import
_GRAPH = frozenset({1, 2, 5, 11, 12})  # node, name, initializer, input, output
_NODE = frozenset({1, 2, 3, 4, 5, 7})  # input, output, name, op_type, attribute, domain
_ATTRIBUTE = frozenset({1, 2, 3, 4, 20})  # name, f, i, s, type
_TENSOR = frozenset({1, 2, 4, 7, 8, 13, 14})  # dims, data_type, float and int64 data, name, external data and its mark

_ATTRIBUTE_TYPES = {2: 1, 3: 2, 4: 3}  # the number of the value's field: its AttributeType
_MAX_VALUES = 8  # of an initialiser in the graph itself


def check(variant: Path, decoder: Decoder, kv_cache: KvCache = "f32") -> None:
    """Check the files of a variant. Raises ``EngineError`` where one is missing, is not the decoder's, or names what
    it must not; and where its attention would read another cache than one of that type: a byte or a number of four."""
    path, data = variant / GRAPH_FILE, variant / DATA_FILE
    try:
        content, size = path.read_bytes(), data.stat().st_size
    except OSError as error:
        raise EngineError(f"{error.filename} could not be read: {error.strerror}.") from error
    try:
        found = _model(memoryview(content), size, OPSETS_AT_ONCE if decoder.at_once else OPSETS)
    except MalformedError as error:
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


def _difference(found: Graph, wanted: Graph) -> str | None:
    """Return the name of the first operator or initialiser that is not the one that is wanted."""
    for has, should in zip(found.nodes, wanted.nodes, strict=False):
        if has != should:
            return f"the operator of {should.outputs[0]}"
    if len(found.nodes) != len(wanted.nodes):
        return f"the number of operators, {len(found.nodes)} instead of {len(wanted.nodes)},"
    names = (name for name in {*found.tensors, *wanted.tensors} if found.tensors.get(name) != wanted.tensors.get(name))
    return next(iter(sorted(names)), None)


def _model(model: memoryview, size: int, wanted: Mapping[str, int]) -> Graph:
    graph, opsets = None, {}
    for number, value in fields(model, "model", _MODEL):
        if number == 7:
            if graph is not None:
                raise MalformedError("it has two graphs")
            graph = _graph(message(value), size)
        elif number == 8:
            entry = dict(fields(message(value), "opset", ENTRY))
            opsets[text(entry.get(1, memoryview(b"")))] = entry.get(2)
    if graph is None:
        raise MalformedError("it has no graph")
    if opsets != wanted:
        raise MalformedError(f"it asks for the operators of {opsets}")
    return graph


def _graph(graph: memoryview, size: int) -> Graph:
    found = Graph()
    for number, value in fields(graph, "graph", _GRAPH):
        if number == 1:
            found.nodes.append(_node(message(value)))
        elif number == 5:
            name, tensor = _tensor(message(value), size)
            if name in found.tensors:
                raise MalformedError(f"the tensor {name!r} is there twice")
            found.tensors[name] = tensor
    return found


def _node(node: memoryview) -> Node:
    texts: dict[int, list[str]] = {number: [] for number in _NODE}
    attributes: dict[str, Attribute] = {}
    for number, value in fields(node, "node", _NODE):
        if number == 5:
            attribute, fact = _attribute(message(value))
            if attribute in attributes:
                raise MalformedError(f"the attribute {attribute!r} is there twice")
            attributes[attribute] = fact
        else:
            texts[number].append(text(value))
    inputs, outputs, (name, operator, domain) = texts[1], texts[2], ("".join(texts[field][-1:]) for field in (3, 4, 7))
    if name != "".join(outputs[:1]):
        raise MalformedError(f"the operator of {name!r} makes something else")
    return Node(operator, domain, tuple(inputs), tuple(outputs), attributes)


def _attribute(attribute: memoryview) -> tuple[str, Attribute]:
    found = dict(fields(attribute, "attribute", _ATTRIBUTE))
    name, kind = text(found.pop(1, memoryview(b""))), found.pop(20, None)
    if len(found) != 1 or _ATTRIBUTE_TYPES[min(found)] != kind:
        raise MalformedError(f"the attribute {name!r} has no value of its type")
    ((number, value),) = found.items()
    if number == 3:
        return name, signed(value)
    data = bytes(message(value))
    if number == 2 and len(data) != 4:
        raise MalformedError(f"the attribute {name!r} is no number")
    return name, struct.unpack("<f", data)[0] if number == 2 else data


def _tensor(tensor: memoryview, size: int) -> tuple[str, Tensor]:
    name, kind, location = "", 0, 0
    dims: list[int] = []
    values: list[float] = []
    entries: dict[str, bytes] = {}
    for number, value in fields(tensor, "tensor", _TENSOR):
        if number == 1:
            dims += integers(value, _MAX_VALUES)
        elif number == 2:
            kind = signed(value)
        elif number == 4:
            data = bytes(message(value))
            if len(data) % 4 or len(data) > 4 * _MAX_VALUES:
                raise MalformedError("a tensor has too many numbers in the graph")
            values += struct.unpack(f"<{len(data) // 4}f", data)
        elif number == 7:
            values += integers(value, _MAX_VALUES)
        elif number == 8:
            name = text(value)
        elif number == 13:
            add_entry(entries, name, message(value))
        else:
            location = signed(value)
    if len(values) > _MAX_VALUES or len(dims) > 4:
        raise MalformedError(f"the tensor {name!r} has too many numbers in the graph")
    if location != EXTERNAL:
        if entries or kind not in (F16, F32, I64):
            raise MalformedError(f"the tensor {name!r} has no place")
        return name, Tensor(kind, tuple(dims), tuple(values))
    if values:
        raise MalformedError(f"the tensor {name!r} has two places")
    check_place(name, entries, BYTES.get(kind, 0) * prod(dims), size)
    return name, Tensor(kind, tuple(dims))
