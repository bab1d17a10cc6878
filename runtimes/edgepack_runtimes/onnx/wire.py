"""Protobuf's wire format, as far as a model of ONNX is read by it, and the place of a tensor outside of the model.

A device needs no onnx package for this. A field that is not asked for is refused rather than passed over.
"""

from __future__ import annotations

from collections.abc import Iterator

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
ENTRY = frozenset({1, 2})
"""The fields of a StringStringEntryProto and of an OperatorSetIdProto."""

EXTERNAL = 1
"""TensorProto.DataLocation."""

Value = int | memoryview


class MalformedError(Exception):
    """The end of a sentence: what is wrong in a model."""


def add_entry(entries: dict[str, bytes], name: str, entry_message: memoryview) -> None:
    """Add one of the entries that say where the tensor ``name`` lies: its key and its value."""
    entry = {part: bytes(message(value)) for part, value in fields(entry_message, "entry", ENTRY)}
    key = entry.get(1, b"").decode(errors="replace")
    if key in entries or key not in ("location", "offset", "length"):
        raise MalformedError(f"the tensor {name!r} has an unexpected entry {key!r}")
    entries[key] = entry.get(2, b"")


def check_place(name: str, entries: dict[str, bytes], length: int, size: int) -> None:
    """Hold the entries of a tensor of ``length`` bytes to the data file, which has ``size``."""
    location = entries.get("location", b"")
    if location != DATA_FILE.encode():
        raise MalformedError(
            f"the tensor {name!r} lies in {location.decode(errors='replace')!r} instead of {DATA_FILE}"
        )
    offset, said = (_count(entries.get(key, b""), name, key) for key in ("offset", "length"))
    if said != length:
        raise MalformedError(f"the tensor {name!r} has {said} bytes, its dimensions {length}")
    if offset + length > size:
        raise MalformedError(f"the tensor {name!r} ends at byte {offset + length}, {DATA_FILE} at byte {size}")


def _count(text: bytes, name: str, key: str) -> int:
    if not (text.isdigit() and len(text) < 20):
        raise MalformedError(f"the tensor {name!r} has no valid {key}")
    return int(text)


def fields(message: memoryview, what: str, allowed: frozenset[int]) -> Iterator[tuple[int, Value]]:
    """Yield (number, value) of a message's fields: an int of a varint, else the bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if number not in allowed:
            raise MalformedError(f"a {what} has the field {number}, which has no place here")
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            count, position = _varint(message, position)
        elif wire in (1, 5):
            count = 8 if wire == 1 else 4
        else:
            raise MalformedError(f"a {what} has the wire type {wire}")
        if count > len(message) - position:
            raise MalformedError(f"a {what} ends in the middle of a field")
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
    raise MalformedError("a number does not end")


def message(value: Value) -> memoryview:
    """Return a field's bytes."""
    if isinstance(value, int):
        raise MalformedError("a number stands where a message or a text belongs")
    return value


def text(value: Value) -> str:
    """Return a field's text."""
    return bytes(message(value)).decode(errors="replace")


def signed(value: Value) -> int:
    """Return a field's integer of 64 bits."""
    if not isinstance(value, int):
        raise MalformedError("a text stands where a number belongs")
    return value - (1 << 64) if value >> 63 else value


def integers(value: Value, most: int) -> list[int]:
    """Return a field's integers: one, or several packed into its bytes."""
    if isinstance(value, int):
        return [signed(value)]
    found, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        found.append(signed(number))
        if len(found) > most:
            raise MalformedError("a tensor has too many numbers in the graph")
    return found
