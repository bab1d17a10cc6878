"""GGUF files that say anything, given as sources: each is read, or refused in a sentence, within its time and memory.

Bytes of the header are changed, and each key has values of every kind in its place. The seeds are fixed; ``pytest -m
hostile`` tries all, ``--share 0.1`` the first tenth.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_files import in_parts
from models import make_llama
from sweeps import damaged, swept

from edgepack_packager import families, source
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.targets import Model, Request
from edgepack_packager.targets.gguf import GgufTarget, header
from edgepack_packager.targets.gguf.header import F32, U32, Value
from edgepack_packager.targets.gguf.layout import place
from edgepack_packager.targets.gguf.metadata import metadata
from edgepack_packager.text import compiled, read_text
from edgepack_packager.write import write

pytestmark = pytest.mark.hostile

Portion = Callable[[int], int]

VALUES: tuple[Value, ...] = (
    *(True, False, U32(0), U32(1), U32(3), U32(512), U32(513), U32(1 << 20), U32((1 << 31) - 1), U32((1 << 32) - 1)),
    *(F32(0), F32(-1), F32(1e-45), F32(3e38), F32(float("inf")), F32(float("nan")), F32(0.5)),
    *("", "x", "a b", "llama", "gemma3", "phi3", "t5", "../..", "\n---\nlicense: mit", "x" * 5000, "{{ 1 / 0 }}"),
    *([], [""], ["a", "a"], ["a b"] * 400, ["x" * 2000] * 384, [chr(i) for i in range(300, 684)]),
    *(np.zeros(0, np.int32), np.arange(384, dtype=np.int32), np.full(384, 3, np.int32), np.full(2, 1 << 30, np.int32)),
    *(np.full(384, np.nan, np.float32), np.full(1 << 20, 1, np.float32)),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a small model that lacks nothing."""
    folder = make_llama(tmp_path_factory.mktemp("sound") / "model", rope={"rope_type": "linear", "factor": 4.0})
    config = read_object(folder / "config.json")
    decoder = families.describe(config)
    model = Model("tiny", decoder, "f32", config, read_text(folder, config, decoder))
    with open_checkpoint(folder) as checkpoint:
        write(families.open_model(checkpoint), [Request(GgufTarget(), "q8", "q8_0")], folder / "out", model)
    return folder / "out" / "gguf-q8_0" / "model.gguf"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer texts prove the compiled tokenizer."""
    monkeypatch.setattr(compiled, "_MIXED", 10)


def read(file: Path) -> None:
    """Read all of a file that a build does."""
    origin = source.find(str(file))
    config = read_object(origin.folder / "config.json")
    with source.open_weights(origin) as checkpoint:
        weights = families.open_model(checkpoint)
        for name, shape in weights.decoder.tensors():
            weights.rows(name, 0, min(shape[0], 64))
    if (text := read_text(origin.folder, config, weights.decoder)) is not None:
        compiled.compiled(text)


def test_bytes_of_the_header(sound: Path, tmp_path: Path, portion: Portion) -> None:
    data = sound.read_bytes()
    end = data.index(b"output_norm.weight") + 64

    def attempt(number: int) -> None:
        file = tmp_path / f"{number % 8}.gguf"
        file.write_bytes(damaged(data[:end], random.Random(number)) + data[end:])
        read(file)

    attempt_sound = tmp_path / "sound.gguf"
    attempt_sound.write_bytes(data)
    read(attempt_sound)
    assert not swept(attempt, range(portion(3000)), tmp_path)


def test_values_of_keys(sound: Path, tmp_path: Path, portion: Portion) -> None:
    folder = sound.parents[2]
    config = read_object(folder / "config.json")
    decoder = families.describe(config)
    facts = metadata(Model("tiny", decoder, "f32", config, read_text(folder, config, decoder)), "f32")
    others = ("split.count", "llama.expert_count", "llama.attention.sliding_window", "llama.rope.scale_linear")
    keys = [*facts, *others, "tokenizer.chat_template.tool_use", "general.sampling.temp", "general.license"]
    layout = place(decoder, "f32")

    def attempt(number: int) -> None:
        choice = random.Random(number)
        changed = dict(facts)
        for key in choice.sample(keys, choice.choice((1, 1, 2))):
            changed[key] = choice.choice(VALUES)
        file = tmp_path / f"{number % 8}.gguf"
        file.write_bytes(header.encode(changed, layout))
        with open(file, "r+b") as sized:
            sized.truncate(file.stat().st_size + layout.data_bytes)
        read(file)

    assert not swept(attempt, range(portion(3000)), tmp_path)


def test_bytes_of_a_part(sound: Path, tmp_path: Path, portion: Portion) -> None:
    parts = in_parts(sound, tmp_path / "sound.gguf", 8)
    whole = [path.read_bytes() for path in parts]
    ends = [data.index(b".weight") + 64 for data in whole]

    def attempt(number: int) -> None:
        choice = random.Random(number)
        hit = choice.randrange(len(whole))
        files = [tmp_path / f"{number % 8}-{part:05}-of-{len(whole):05}.gguf" for part in range(1, len(whole) + 1)]
        for part, (file, data, end) in enumerate(zip(files, whole, ends, strict=True)):
            file.write_bytes(damaged(data[:end], choice) + data[end:] if part == hit else data)
        read(choice.choice(files))

    read(parts[1])
    assert not swept(attempt, range(portion(3000)), tmp_path)
