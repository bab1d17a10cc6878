"""Checkpoints whose files say anything: a build that is prepared of one is ready, or says in a sentence what is wrong.

Each attempt changes one file of a sound checkpoint: a field has another value, is left out or stands there twice, or
bytes are changed. What is no plain file is in the place of each as well.
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from limited import Ended, in_child
from models import LLAMA3, make_llama
from oracle_models import ORACLE_MODELS

from edgepack.isolation import probing
from edgepack.runtime import Support
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.prepare import prepare
from edgepack_packager.progress import Silent
from edgepack_packager.recipe import Recipe
from edgepack_packager.text import compiled

pytestmark = pytest.mark.hostile

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "model.safetensors.index.json",
)
# What a file may hold in the place of a value, as JSON's readers take it.
VALUES = (
    *("null", "true", "false", "0", "1", "-1", "2", "3", "0.5", "1.0", "-0.0", "1e300", "1e999", "-1e999", "NaN"),
    *("10000000", "2147483647", "2147483640", '"\\u0000.safetensors"', '"a.safetensors"'),
    *("Infinity", "-Infinity", "2147483648", "18446744073709551616", "1" + 400 * "0", 5000 * "9"),
    *('""', '"x"', '"1"', '"\\ud800"', '"\\u0000"', '"\\udcff"', '"/"', '"<|im_end|>"', '"' + 9000 * "x" + '"'),
    *("[]", "[null]", "[0]", "[1, 2]", "[{}]", "[[]]", '["x"]', '["\\ud800"]', "[true]", "[1e999]"),
    *("{}", '{"x": 1}', '{"": null}', '{"content": 1}', '{"content": "x"}', '{"type": "x"}', '{"\\ud800": 0}'),
    *(3000 * "[" + 3000 * "]", 200_000 * "[", 3000 * '{"x":' + "0" + 3000 * "}"),
)
CONFIG = {
    "rope_scaling": dict(LLAMA3),
    "head_dim": 16,
    "pad_token_id": None,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "sliding_window": None,
    "layer_types": ["full_attention", "full_attention"],
    "use_cache": True,
}
GENERATION = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "max_new_tokens": 64,
    "eos_token_id": [2, 0],
    "bos_token_id": 1,
}
HOLE = "<<here>>"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has each of the files."""
    folder = make_llama(tmp_path_factory.mktemp("sound") / "model", config=CONFIG, shards=2, add_bos=True)
    template = (folder / "chat_template.jinja").read_text("utf-8")
    (folder / "chat_template.jinja").unlink()
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"chat_template": [{"name": "default", "template": template}], "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is asked, and fewer texts prove the compiled tokenizer."""
    monkeypatch.setattr(probing, "probe", lambda name, machine, **asked: Support(("cpu",), version="1"))
    monkeypatch.setattr(compiled, "_MIXED", 10)


def prepared(folder: Path) -> str:
    """Prepare a build of a folder as far as its weights."""
    recipe = Recipe(("gguf", "mlx", "onnx"), ("f32", "q8"))
    prepare(str(folder), recipe, folder.with_suffix(".edgepack"), Silent())
    with open_checkpoint(folder) as checkpoint:
        families.open_model(checkpoint)
    return "ready"


def beside(sound: Path, folder: Path, name: str) -> Path:
    """Return the place of a file in a copy of the checkpoint that has all the others."""
    folder.mkdir()
    for path in sound.iterdir():
        if path.name != name:
            os.link(path, folder / path.name)
    return folder / name


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value; of a vocabulary or a list of merges, of a few."""
    if path:
        yield path
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in islice(keys, 12):
        yield from places(value[key], (*path, key))


def edited(document: Any, path: tuple[Any, ...], text: str | None, choice: random.Random) -> bytes:
    """Return the document with other JSON at a place, or without it, or with its key twice."""
    document = json.loads(json.dumps(document))
    at = document
    for key in path[:-1]:
        at = at[key]
    if text is None:
        del at[path[-1]]
        return json.dumps(document).encode()
    kept = at[path[-1]]
    at[path[-1]] = HOLE
    whole = json.dumps(document)
    if isinstance(at, dict) and choice.random() < 0.05:
        text = f"{text}, {json.dumps(path[-1])}: {json.dumps(kept)}"
    return whole.replace(json.dumps(HOLE), text, 1).encode()


def damaged(data: bytes, choice: random.Random) -> bytes:
    """Return a file's bytes with some of them changed, lost or added."""
    start = choice.randrange(len(data))
    stop = min(len(data), start + choice.choice((0, 1, 1, 4, 64)))
    kinds = (b"", b"\0", b"\xff", b"\xed\xa0\x80", b"}", b'"', choice.randbytes(3))
    return choice.choice((data[:start] + choice.choice(kinds) + data[stop:], data[:start], b"\xef\xbb\xbf" + data))


def odd(sound: Path, seed: int) -> tuple[str, bytes, str]:
    """Return the name of a file, its other bytes, and what was done."""
    choice = random.Random(seed)
    name = choice.choice((*FILES[:1] * 5, *FILES[2:4] * 2, *FILES))
    data = (sound / name).read_bytes()
    if choice.random() < 0.1:
        return name, damaged(data, choice), "other bytes"
    document = json.loads(data)
    if name == "config.json" and choice.random() < 0.5:
        document = choice.choice([fixture.fields for fixture in ORACLE_MODELS.values() if fixture.fields])
    path = choice.choice(list(places(document)))
    text = choice.choice((None, *VALUES))
    return name, edited(document, path, text, choice), f"{path}: {'absent' if text is None else text[:40]}"


def fair(ended: Ended) -> bool:
    """Whether a child ended with a readiness, or with an error that says the place."""
    return ended.text == "ready" or (ended.clean and ended.kind != "answer" and len(ended.text) < 1200)


def test_whatever_the_files_say_a_build_is_ready_or_refused_in_words(
    sound: Path, tmp_path: Path, portion: Callable[[int], int]
) -> None:
    assert in_child(lambda: prepared(sound)).text == "ready"
    prepared(sound)  # what its template prints is known to the children
    wrong = []
    for seed in range(portion(2000)):
        name, data, what = odd(sound, seed)
        place = beside(sound, tmp_path / str(seed), name)
        place.write_bytes(data)
        ended = in_child(lambda folder=place.parent: prepared(folder), seconds=60)  # type: ignore[misc]
        if not fair(ended):
            wrong.append(f"seed {seed}, {name}, {what}: {ended.kind}: {ended.text[:300]}")
    assert not wrong, "\n".join(wrong)


def pipe(place: Path) -> None:
    os.mkfifo(place)


def device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def terminal(place: Path) -> None:
    place.symlink_to("/dev/tty")


def folder(place: Path) -> None:
    place.mkdir()


def loop(place: Path) -> None:
    place.symlink_to(place.name)


def socket_file(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(place))


def sparse(place: Path) -> None:
    with open(place, "wb") as file:
        file.truncate(2 << 30)


def padded(place: Path) -> None:
    """Two gigabytes of spaces before an object, as far as a reader can tell."""
    with open(place, "wb") as file:
        file.truncate((2 << 30) + 2)
        file.seek(2 << 30)
        file.write(b"{}")


@pytest.mark.parametrize("kind", [pipe, device, terminal, folder, loop, socket_file, sparse, padded])
def test_what_is_no_plain_file_of_a_model_is_neither_waited_for_nor_read(
    sound: Path, tmp_path: Path, kind: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(sound)
    monkeypatch.chdir(tmp_path)
    shard = "model-00001-of-00002.safetensors"
    others = (
        "chat_template.jinja",
        "additional_chat_templates",
        "README.md",
        "LICENSE",
        "NOTICE",
        "adapter_config.json",
    )
    for name in (*FILES, shard, *others):
        place = beside(sound, tmp_path / name.replace(".", "-"), name)
        kind(place)
        ended = in_child(lambda place=place: prepared(place.parent), seconds=20, gigabytes=1.5)  # type: ignore[misc]
        assert fair(ended), f"{name}: {ended}"
        if name in (*FILES[:5], shard) and kind is not loop:
            assert name in ended.text, ended
