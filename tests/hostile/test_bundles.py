"""Damaged and hostile files of a bundle, all digests right: each is refused in words, or answers.

The seeds are fixed; ``pytest -m hostile`` tries all, ``--share 0.1`` the first tenth.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import small_bundle
import tiny_tokenizers as tiny
from sweeps import damaged, swept

import edgepack
from edgepack import FakeRuntime
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.files import open_bundle
from edgepack.runtime import Options, find
from edgepack.structured.vocabulary import Vocabulary
from edgepack.text import tables
from edgepack.text.compiling import compile_tokenizer
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.build import Built

pytestmark = pytest.mark.hostile

Portion = Callable[[int], int]

EXTREMES: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63),
    0.0, -0.0, 1e-320, 1e308, 0.5, "", "a", "\0", "é\U0001f600", "../..", "/etc/passwd", "x" * 5000, [], {}, [[]],
    [None], {"": None}, {"type": "linear", "factor": 1e-300}, ["a"] * 300, [0] * 5000, "[" * 99,
)  # fmt: skip


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every (parent, key) of a document."""
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [pair for key, value in pairs for pair in ((document, key), *places(value))]


def manifest(number: int, plain: bytes) -> bytes:
    """A mutated manifest: of bytes, or of fields and then written by Python, which writes more than JSON."""
    choice = random.Random(number)
    if number % 4 == 0:
        return damaged(plain, choice)
    document = json.loads(plain)
    for _ in range(choice.choice((1, 1, 1, 2, 3))):
        parent, key = choice.choice(places(document))
        match choice.randrange(8):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[choice.choice(("surprise", "", "schema", "size"))] = deepcopy(choice.choice(EXTREMES))
            case 2 if isinstance(parent, list):
                parent.extend([parent[key]] * choice.choice((1, 300)))
            case 3:
                other, place = choice.choice(places(document))
                parent[key] = json.loads(json.dumps(other[place]))
            case 4:
                nested: Any = deepcopy(parent[key])
                for _ in range(choice.choice((3, 30, 90))):
                    nested = choice.choice(([nested], {"a": nested}))
                parent[key] = nested
            case 5 if isinstance(parent[key], int):
                parent[key] = choice.choice((parent[key] + 1, parent[key] * 1000, -parent[key], parent[key] // 2))
            case _:
                parent[key] = deepcopy(choice.choice(EXTREMES))
    text = json.dumps(document)
    if number % 50 == 1:
        text = text.replace("8192", choice.choice(("NaN", "Infinity", "1e999", "9" * 5000, "8192.0")), 1)
    if number % 50 == 2:
        text = text.replace('"name"', choice.choice(('"name": 1, "name"', '"\\ud800"', '"name\\u0000"')), 1)
    return text.encode()


def test_no_manifest_is_more_than_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portion: Portion) -> None:
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    bundle = small_bundle.write(tmp_path / "small")
    plain = (bundle / "manifest.json").read_bytes()

    def opened(number: int) -> None:
        (bundle / "manifest.json").write_bytes(manifest(number, plain))
        with edgepack.load(bundle, runtimes={"fake": FakeRuntime()}) as model:
            model.chat([{"role": "user", "content": "hi"}], max_tokens=1)

    assert swept(opened, range(portion(10_000)), tmp_path) == []


def test_no_tokenizer_is_more_than_an_error(tmp_path: Path, portion: Portion) -> None:
    plain = [tables.encode(compile_tokenizer(each, 7)) for each in (tiny.byte_level(), tiny.sentencepiece())]

    def read(number: int) -> None:
        choice = random.Random(number)
        data = plain[number % 2]
        fields: dict[str, Any] = msgspec.msgpack.decode(data)
        if number % 3:
            name = choice.choice(list(fields))
            value = fields[name]
            if isinstance(value, bytes):
                fields[name] = damaged(value or bytes(4), choice)
            elif isinstance(value, str):
                fields[name] = damaged(value.encode(), choice).decode(errors="replace")
            else:
                fields[name] = choice.choice(EXTREMES[:15])
            data = msgspec.msgpack.encode(fields)
        else:
            data = damaged(data, choice)
        tokenizer = Tokenizer(tables.decode(data), None, False)
        for text in ("the sea and a zebra", "é\U0001f600 <s>\n\n", "a" * 500):
            for special in (False, True):
                tokenizer.decode(tokenizer.encode(text, special=special))
        Vocabulary(tokenizer, 400)

    assert swept(read, range(portion(500)), tmp_path) == []


@pytest.fixture(scope="module")
def payloads(demo_bundle: Built) -> tuple[Path, Decoder]:
    """The variants of the demo bundle, and what they are to be."""
    bundle = open_bundle(demo_bundle.path)
    return bundle.path / "variants", bundle.manifest.decoder


def opening(folder: Path, backend: str, decoder: Decoder, file: str, data: bytes) -> None:
    """Open a variant with another file in it, and evaluate three tokens."""
    (folder / file).write_bytes(data)
    session = find(backend).open(folder, decoder, Options(context=32, threads=1, kv_cache="f32"))
    session.forward([1, 2, 3])
    session.close()


def of(payloads: tuple[Path, Decoder], id: str, folder: Path) -> Path:
    return Path(shutil.copytree(payloads[0] / id, folder / id))


def test_no_gguf_header_ends_the_process(payloads: tuple[Path, Decoder], tmp_path: Path, portion: Portion) -> None:
    folder = of(payloads, "gguf-q4_0" if (payloads[0] / "gguf-q4_0").exists() else "gguf-f32", tmp_path)
    (file,) = folder.glob("*.gguf")
    plain = file.read_bytes()
    header = 1 << 13

    def opened(number: int) -> None:
        data = damaged(plain[: 1 << 18], random.Random(number), 0, header) + plain[1 << 18 :]
        opening(folder, "gguf", payloads[1], file.name, data)

    assert swept(opened, range(portion(2000)), tmp_path) == []


def test_no_safetensors_header_ends_the_process(
    payloads: tuple[Path, Decoder], tmp_path: Path, portion: Portion
) -> None:
    folder = of(payloads, "mlx-f32", tmp_path)
    plain = (folder / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(plain[:8], "little")

    def opened(number: int) -> None:
        data = damaged(plain[:length], random.Random(number)) + plain[length:]
        opening(folder, "mlx", payloads[1], "model.safetensors", data)

    assert swept(opened, range(portion(1000)), tmp_path) == []


def changed(number: int, plain: bytes) -> bytes:
    """A mutated ONNX file: of bytes, or of a field that the library then writes."""
    import onnx
    from onnx import helper

    choice = random.Random(number)
    if number % 3 == 0:
        return damaged(plain, choice)
    model = onnx.load_model_from_string(plain)
    node, tensor = choice.choice(model.graph.node), choice.choice(model.graph.initializer)
    match choice.randrange(8):
        case 0 if node.attribute:
            choice.choice(node.attribute).i = choice.choice((0, -1, 3, 2**31, 2**62, -(2**63)))
        case 1 if node.attribute:
            choice.choice(node.attribute).f = choice.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
        case 2:
            node.op_type = choice.choice(("ConstantOfShape", "Expand", "Loop", "If", "Tile", "Range", "MatMul", ""))
        case 3:
            node.input[choice.randrange(len(node.input))] = choice.choice(model.graph.node).output[0]
        case 4:
            tensor.dims.append(choice.choice((0, -1, 2**40)))
        case 5:
            value = choice.choice([*model.graph.input, *model.graph.output])
            value.type.tensor_type.shape.dim[0].dim_value = choice.choice((0, -1, 2, 2**40, 2**63 - 1))
        case 6:
            tensor.data_type = choice.choice((0, 1, 7, 8, 10, 16, 99))
        case _:
            model.graph.node.append(helper.make_node("Identity", [node.output[0]], ["more"]))
    data: bytes = model.SerializeToString()
    return data


def test_no_onnx_file_ends_the_process(payloads: tuple[Path, Decoder], tmp_path: Path, portion: Portion) -> None:
    folder = of(payloads, "onnx-f32", tmp_path)
    plain = (folder / "model.onnx").read_bytes()

    def opened(number: int) -> None:
        opening(folder, "onnx", payloads[1], "model.onnx", changed(number, plain))

    assert swept(opened, range(portion(1000)), tmp_path) == []
