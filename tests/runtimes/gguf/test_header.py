"""A header of GGUF is believed in nothing: each of its numbers is held against the file and against ggml's bounds."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from edgepack.errors import EngineError
from edgepack_runtimes.gguf import header

F32, Q8_0 = 0, 8


def text(name: str) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode()


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(*tensors: bytes, keys: int = 0, data: int = 256) -> bytes:
    """A header of so many keys and these tensors, with so many bytes of data behind it."""
    metadata = b"".join(text(f"key.{index}") + struct.pack("<IB", 0, 1) for index in range(keys))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), keys) + metadata + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


ONE = tensor("one", (32,), F32, 0)  # 128 bytes


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.gguf"
    path.write_bytes(file(ONE, tensor("two", (32, 2, 1, 1), Q8_0, 128), keys=3))
    one, two = header.read(path).tensors
    assert (one.nbytes, two.nbytes, two.offset - one.offset) == (128, 68, 128)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (file(ONE, tensor("two", (32,), F32, 256), data=512), "its offset is 256, 128 is next"),
        (file(ONE, tensor("two", (32,), F32, 0)), "its offset is 0, 128 is next"),
        (file(ONE, tensor("two", (32,), F32, 128), data=255), "its data end after the file's end"),
        (file(tensor("one", (31,), Q8_0, 0)), r"its shape \(31,\) does not fit q8_0"),
        (file(tensor("one", (32, 0), F32, 0)), "does not fit f32"),
        (file(tensor("one", (1 << 62, 4), F32, 0)), "does not fit f32"),
        (file(tensor("one", (32, 1, 1, 1, 1), F32, 0)), "it has 5 dimensions"),
        (file(tensor("one", (), F32, 0)), "it has 0 dimensions"),
        (file(ONE, keys=65537), "65537 metadata entries do not fit"),
        (file(*[b""] * 65537, data=1 << 21), "65537 tensors do not fit"),
        (file(ONE, ONE), "a tensor's name is a duplicate"),
        (file(tensor("n" * 64, (32,), F32, 0)), "empty or longer than 63 bytes"),
    ],
)
def test_what_does_not_fit_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=reason):
        header.read(path)


def part(number: int, count: int, *tensors: bytes) -> bytes:
    keys = text("split.no") + struct.pack("<IH", 2, number - 1) + text("split.count") + struct.pack("<IH", 2, count)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2) + keys + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(256)


def test_a_file_in_parts_has_the_tensors_of_all(tmp_path: Path) -> None:
    names = [tmp_path / f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for number, tensors in enumerate(([], [ONE], [tensor("two", (32,), F32, 0)]), 1):
        names[number - 1].write_bytes(part(number, 3, *tensors))
    found = header.read(names[0])
    assert [(each.name, each.file) for each in found.tensors] == [("one", names[1]), ("two", names[2])]
    assert found.metadata["split.no"] == 0
    names[1].unlink()
    with pytest.raises(EngineError, match=r"model-00002-of-00003\.gguf cannot be read"):
        header.read(names[0])
    with pytest.raises(EngineError, match=r"one of 3 parts, and its name does not end with -00001-of-00003\.gguf"):
        header.read(names[0].rename(tmp_path / "model.gguf"))
