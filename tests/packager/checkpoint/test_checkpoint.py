"""The checkpoint reader: what it reads is exact, and what is damaged it names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import encode, make_llama, safetensors_bytes

from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.safetensors import MAX_HEADER_BYTES, SafetensorsFile

EMBEDDING = "model.embed_tokens.weight"


def container(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype: object, shape: object, *offsets: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_rows_are_the_stored_values(dtype: Literal["f32", "f16", "bf16"], shards: int, tmp_path: Path) -> None:
    with open_checkpoint(make_llama(tmp_path, dtype=dtype, shards=shards)) as checkpoint:
        assert len(checkpoint.files) == shards
        assert checkpoint.tensors[EMBEDDING].shape == (384, 64)
        whole = checkpoint.rows(EMBEDDING, 0, 384)
        part = checkpoint.rows(EMBEDDING, 100, 103)
        vector = checkpoint.rows("model.norm.weight", 10, 64)
    assert whole.dtype == part.dtype == np.float32
    assert whole.std() > 0.1
    # Every value is one of the stored type, so that encoding it again changes nothing.
    assert encode(whole, dtype) in b"".join(path.read_bytes() for path in checkpoint.files)
    assert encode(part, dtype) == encode(whole[100:103], dtype)
    assert vector.shape == (54,)


def test_bfloat16_special_values(tmp_path: Path) -> None:
    bits = np.array([0x0000, 0x8000, 0x3F80, 0x7F80, 0xFF80, 0x0001, 0x7FC0], dtype="<u2")
    path = tmp_path / "x.safetensors"
    path.write_bytes(container({"x": tensor("BF16", [7], 0, 14)}, bits.tobytes()))
    file = SafetensorsFile(path)
    values = file.rows("x", 0, 7)
    file.close()
    assert (values.view(np.uint32) >> 16).tolist() == bits.tolist()
    assert values[2] == 1.0
    assert values[3] == np.inf
    assert 0 < values[5] < 1e-40
    assert np.isnan(values[6])


def test_agrees_with_the_safetensors_package(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    tensors = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array([1.5, -2.0], np.float16)}
    package.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "np"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert np.array_equal(file.rows("a", 1, 3), tensors["a"][1:])
    assert np.array_equal(file.rows("b", 0, 2), tensors["b"].astype(np.float32))
    file.close()


def test_rows_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    with open_checkpoint(make_llama(tmp_path)) as checkpoint:
        assert checkpoint.rows(EMBEDDING, 384, 384).shape == (0, 64)
        for start, stop in [(-1, 2), (0, 385), (3, 2)]:
            with pytest.raises(ValueError, match=r"which has 384"):
                checkpoint.rows(EMBEDDING, start, stop)


def test_closing_closes_the_files(tmp_path: Path) -> None:
    descriptors = Path("/dev/fd")
    before = len(list(descriptors.iterdir()))
    with open_checkpoint(make_llama(tmp_path, shards=3)):
        assert len(list(descriptors.iterdir())) == before + 3
    assert len(list(descriptors.iterdir())) == before

    (tmp_path / "model-00003-of-00003.safetensors").write_bytes(b"short")
    with pytest.raises(SourceError):
        open_checkpoint(tmp_path)
    assert len(list(descriptors.iterdir())) == before


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "has 0 bytes"),
    "not safetensors": (b"<html><body>Not found</body></html>", "not a safetensors file"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not a safetensors file"),
    "header above the bound": ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "header would have 100000001 bytes"),
    "header past the end": (container(b"{}")[:-1], "truncated: expected 10 bytes, found 9"),
    "header not an object": (container(b"[]"), "its header is not JSON"),
    "header not JSON": (container(b"{,}"), "the header is not valid JSON"),
    "header not UTF-8": (container(b'{"\xff": 1}'), "the header is not valid JSON"),
    "header nested too deep": (container(b'{"a":' + b"[" * 100_000), "the header is nested deeper"),
    "a name twice": (container(b'{"a": {}, "a": {}}'), "the key 'a' occurs twice"),
    "metadata not text": (container({"__metadata__": {"format": 1}}), "__metadata__"),
    "no description": (container({"a": 1}), "the tensor a: its description"),
    "unknown key": (container({"a": tensor("F32", [1], 0, 4) | {"x": 1}}, bytes(4)), "the tensor a: its description"),
    "unknown dtype": (container({"a": tensor("F31", [1], 0, 4)}, bytes(4)), "the dtype 'F31'"),
    "dtype not text": (container({"a": tensor(["F32"], [1], 0, 4)}, bytes(4)), "the dtype"),
    "negative shape": (container({"a": tensor("F32", [-1], 0, 4)}, bytes(4)), r"the shape \[-1\]"),
    "boolean shape": (container({"a": tensor("F32", [True], 0, 4)}, bytes(4)), r"the shape \[True\]"),
    "huge shape": (container({"a": tensor("F32", [1 << 62, 1 << 62], 0, 4)}, bytes(4)), "data_offsets span 4"),
    "one offset": (container({"a": tensor("F32", [1], 0)}, bytes(4)), "two offsets"),
    "span too small": (container({"a": tensor("F32", [2], 0, 4)}, bytes(4)), "takes 8 bytes, its data_offsets span 4"),
    "backward span": (container({"a": tensor("F32", [1], 4, 0)}, bytes(4)), "data_offsets span -4"),
    "half a byte": (container({"a": tensor("F4", [3], 0, 1)}, bytes(1)), "takes 1.5 bytes"),
    "hole": (
        container({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 8, 12)}, bytes(12)),
        "the tensor b starts at byte 8 and leaves a hole",
    ),
    "hole at the start": (container({"a": tensor("F32", [1], 4, 8)}, bytes(8)), "leaves a hole"),
    "overlap": (
        container({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [1], 4, 8)}, bytes(8)),
        "the tensor b starts at byte 4 and overlaps",
    ),
    "truncated": (container({"a": tensor("F32", [2], 0, 8)}, bytes(7)), "truncated: expected 77 bytes, found 76"),
    "trailing bytes": (container({"a": tensor("F32", [1], 0, 4)}, bytes(5)), "has bytes after its last tensor"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused(case: str, tmp_path: Path) -> None:
    data, message = DAMAGED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message) as raised:
        SafetensorsFile(path)
    assert str(path) in raised.value.message
    assert raised.value.hint


SMALL = safetensors_bytes({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}, "f16")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_byte_is_refused_or_read_whole(tmp_path_factory: pytest.TempPathFactory, changes: Any) -> None:
    data = bytearray(SMALL)
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
    except SourceError:
        return
    for name, entry in file.entries.items():
        if entry.dtype in ("F16", "BF16", "F32") and entry.shape:
            assert file.rows(name, 0, entry.shape[0]).shape == entry.shape
    file.close()


def test_a_dtype_that_is_no_float_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(container({"x": tensor("I8", [4], 0, 4)}, bytes(4)))
    file = SafetensorsFile(path)
    with pytest.raises(UnsupportedModelError, match="the tensor x is stored as I8"):
        file.rows("x", 0, 4)
    file.close()


INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def leave_folder(folder: Path) -> None:
    edit_index(folder, lambda names: names.update({EMBEDDING: "../" + FIRST}))


def duplicate_shard(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / FIRST).read_bytes())


def add_single(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / FIRST).read_bytes())


def only_pickle(folder: Path) -> None:
    for path in folder.glob("*safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def no_weights(folder: Path) -> None:
    for path in folder.glob("*safetensors*"):
        path.unlink()


FOLDERS: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
    (lambda folder: (folder / "config.json").write_text("[1]"), "config.json holds no JSON object"),
    (lambda folder: (folder / "config.json").write_text('{"a": 1, "a": 2}'), "the key 'a' occurs twice"),
    (lambda folder: (folder / INDEX).write_text("{}"), "weight_map must map"),
    (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": 1}}'), "is not a plain file name"),
    (leave_folder, "is not a plain file name"),
    (duplicate_shard, f"is both in {FIRST} and in"),
    (add_single, f"has model.safetensors, and {INDEX} places tensors in {FIRST}"),
    (only_pickle, "only pytorch_model.bin: a pickle"),
    (lambda folder: [path.unlink() for path in folder.glob("*.safetensors")], f"names the shard {FIRST}, which is"),
    (lambda folder: ((folder / FIRST).unlink(), os.mkfifo(folder / FIRST)), f"{FIRST} is no plain file"),
    (no_weights, "has neither model.safetensors nor"),
]


@pytest.mark.parametrize(("damage", "message"), FOLDERS)
def test_a_damaged_folder_is_refused(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", shards=2)
    damage(folder)
    with pytest.raises(SourceError, match=re.escape(message)):
        open_checkpoint(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        open_checkpoint(tmp_path / "nothing")


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = make_llama(tmp_path) / "model.safetensors"
    with open_checkpoint(tmp_path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 100)
        with pytest.raises(SourceError, match="became shorter"):
            checkpoint.rows("model.norm.weight", 0, 64)
