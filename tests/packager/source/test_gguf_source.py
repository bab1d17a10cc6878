"""GGUF files as sources: what is read of one is the model that was written into it, and the one that llama.cpp runs."""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import packed
from models import make_llama
from oracle_models import ORACLE_MODELS
from tokenizers import Tokenizer

import edgepack
from edgepack.errors import ProofError, SourceError, UnsupportedModelError
from edgepack.runtime import Options
from edgepack_packager import families, reference, source
from edgepack_packager.build import build
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.gguf.dequantize import dequantize
from edgepack_packager.checkpoint.gguf.parse import _TYPES
from edgepack_packager.checkpoint.gguf.pretokenizers import NAMES, splits
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.proof import compare
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf import header
from edgepack_packager.targets.gguf.header import F32, U32, Value
from edgepack_packager.targets.gguf.layout import place
from edgepack_packager.targets.gguf.metadata import metadata
from edgepack_packager.text import read_text
from edgepack_runtimes.gguf import GgufRuntime
from edgepack_runtimes.gguf.vocabulary import tokenize

TEXTS = [
    "Hello, world! don't DON'T we've They'LL",
    " leading and  double   spaces \t tabs\tand\nnewlines\r\n\r\n\n end\n",
    "In 1999, 123456789 apples cost $3.50 - or 1,000.25?",
    "def f(x):\n    return x**2  # comment",
    "Größe, naïve, façade, Ελληνικά, русский",
    "日本語のテキスト、中文字符。한국어",
    "🦙 emoji 👩‍👩‍👧 and \u200b zero width",
    "()[]{}<>!@#$%^&*_+-=|\\/~` aaaaaaaaaaaaaaaaaaaaaaaa",
    "",
    " ",
    "<|im_start|>user\nIs <|im_end|> a name?<|im_end|>\n",
    "<s> <|end|> <unk> <|eot_id|> <0x0A>",
]

EXACT = 1e-10
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 384, 120)]

# What llama.cpp computes without, and no file of it can say.
UNWRITTEN = {
    "phi3-4k",
    "qwen2-window",
    "mistral",
    "ministral",
    "exaone4",
    "exaone4-full",
    "lfm2-biased",
    "lfm3",
    "qwen3.5",
}
# What llama.cpp's graphs hold and no file is read of yet; a Seed-OSS is a Llama with biases that no Llama has.
UNREAD = {
    *("ministral3", "granite", "granite4", "gemma", "gemma4", "olmo2", "olmo3", "seed-oss", "hunyuan", "lfm2"),
    "stablelm",
}


def logits(origin: source.Source, ids: Sequence[int], context: int | None = None) -> np.ndarray:
    """The reference's logits over a source's weights."""
    with source.open_weights(origin) as checkpoint:
        return reference.logits(families.open_model(checkpoint, context), ids)


@pytest.mark.parametrize("name", [name for name in ORACLE_MODELS if name not in UNWRITTEN | UNREAD])
def test_a_file_is_the_model_that_was_written(name: str, tmp_path: Path) -> None:
    fixture = ORACLE_MODELS[name]
    folder = fixture.make(tmp_path / "model")
    file = packed(folder, tmp_path / "out", context=fixture.context)
    expected = logits(source.find(str(folder)), IDS, fixture.context)
    found = logits(source.find(str(file)), IDS)
    assert compare.nmse(found, expected) <= EXACT


@pytest.mark.parametrize("name", sorted(UNREAD))
def test_a_file_of_an_architecture_that_is_not_read_is_refused(name: str, tmp_path: Path) -> None:
    fixture = ORACLE_MODELS[name]
    file = packed(fixture.make(tmp_path / "model"), tmp_path / "out", context=fixture.context)
    with pytest.raises(SourceError, match=r"does not build from GGUF files|lacks the tensor"):
        logits(source.find(str(file)), IDS)


@pytest.mark.parametrize("name", ["sharded-llama3", "biases", "qwen2", "qwen3", "smollm3", "phi3-long", "phi4"])
def test_what_no_constant_changes_is_read_to_the_bit(name: str, tmp_path: Path) -> None:
    fixture = ORACLE_MODELS[name]
    folder = fixture.make(tmp_path / "model")
    file = packed(folder, tmp_path / "out", context=fixture.context)
    with (
        open_checkpoint(folder) as checkpoint,
        source.open_weights(source.find(str(file))) as unpacked,
    ):
        theirs, ours = families.open_model(checkpoint, fixture.context), families.open_model(unpacked)
        assert ours.decoder.n_parameters == theirs.decoder.n_parameters
        for tensor, shape in theirs.decoder.tensors():
            for start, stop in ((0, shape[0]), (shape[0] // 3, shape[0] // 3 + 1)):
                assert np.array_equal(ours.rows(tensor, start, stop), theirs.rows(tensor, start, stop)), tensor


@pytest.mark.parametrize(
    ("scheme", "dtype"), [("f32", "f32"), ("f16", "f16"), ("bf16", "bf16"), ("q8_0", "f16"), ("q4_k_m", "f16")]
)
def test_the_element_type_is_that_of_the_matrices(scheme: str, dtype: str, tmp_path: Path) -> None:
    file = packed(make_llama(tmp_path / "model"), tmp_path / "out", scheme)
    with source.open_weights(source.find(str(file))) as checkpoint:
        assert families.open_model(checkpoint).dtype == dtype


class _Traits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h, as far as its function."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@pytest.mark.parametrize("number", _TYPES)
def test_a_type_stands_for_what_ggml_says(number: int) -> None:
    """Random bytes are blocks of every scale there is; a NaN is one wherever the other is."""
    kind, block, block_bytes = _TYPES[number]
    if kind == "F32":
        pytest.skip("float32 stands for itself")
    native = GgufRuntime()._library().native
    native.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    native.ggml_get_type_traits.argtypes = [ctypes.c_int]
    traits = native.ggml_get_type_traits(number).contents
    assert (traits.name.decode().upper(), traits.block, traits.size) == (kind, block, block_bytes)
    rows = np.random.default_rng(number).integers(0, 256, (64, 8 * block_bytes), dtype=np.uint8)
    expected = np.empty(64 * 8 * block, np.float32)
    if traits.to_float:
        traits.to_float(rows.ctypes.data, expected.ctypes.data, expected.size)
    else:  # of products only, and so in no table
        native[f"dequantize_row_{traits.name.decode()}"](
            ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(expected.ctypes.data), ctypes.c_int64(expected.size)
        )
    with np.errstate(all="ignore"):
        found = dequantize(kind, rows)
    assert found.shape == (64, 8 * block)
    assert np.array_equal(found.reshape(-1), expected, equal_nan=True)


def test_every_pre_tokenizer_has_its_expressions_back() -> None:
    for expressions, names in NAMES.items():
        for ignores, name in names.items():
            assert splits(name) == (expressions, ignores)
    assert splits("llama3") == splits("llama-bpe")
    assert splits("no such") is None


@pytest.mark.shared
@pytest.mark.parametrize("name", ["smollm2", "llama-3.2", "qwen3", "phi-3.5-mini"])
def test_a_real_tokenizer_comes_back(name: str, shared: Path, tmp_path: Path) -> None:
    """The ids of tokenizer.json, and those of llama.cpp over the same file."""
    folder = shared / "tokenizers" / name
    file, original = vocabulary_of(folder, tmp_path)
    found = source.find(str(file))
    rebuilt = Tokenizer.from_file(str(found.folder / "tokenizer.json"))
    for tokenizer in (original, rebuilt):
        tokenizer.no_padding()
    for text in TEXTS:
        expected = original.encode(text, add_special_tokens=False).ids
        assert rebuilt.encode(text, add_special_tokens=False).ids == expected, text
    engine = tokenize(GgufRuntime()._library(), file, TEXTS, special=True)
    assert [rebuilt.encode(text, add_special_tokens=False).ids for text in TEXTS] == engine


def vocabulary_of(folder: Path, out: Path) -> tuple[Path, Tokenizer]:
    """Write a file with a published tokenizer, and with weights that are zero."""
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    n_vocab = max(original.get_vocab(with_added_tokens=True).values()) + 1
    model = make_llama(
        out / "model", hidden=32, heads=1, kv_heads=1, head_dim=32, layers=1, intermediate=32, n_vocab=n_vocab
    )
    for path in folder.iterdir():
        shutil.copy(path, model / path.name)
    if not (folder / "tokenizer_config.json").exists():
        (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (model / "generation_config.json").unlink(missing_ok=True)
    config = read_object(model / "config.json")
    decoder = families.describe(config)
    text = read_text(model, config, decoder, chat=False)
    facts = metadata(Model("phi-3" if "phi" in folder.name else "tiny", decoder, "f32", config, text), "f32")
    return written(out / "vocabulary.gguf", facts, decoder), original


def written(file: Path, facts: dict[str, Value], decoder: Any) -> Path:
    """Write a header and, in the place of weights, nothing that takes room."""
    layout = place(decoder, "f32")
    file.write_bytes(header.encode(facts, layout))
    with open(file, "r+b") as sized:
        sized.truncate(file.stat().st_size + layout.data_bytes)
    return file


@pytest.fixture
def facts(tmp_path: Path) -> tuple[dict[str, Value], Any]:
    """The metadata of a sound file, and its decoder."""
    folder = make_llama(tmp_path / "model")
    config = read_object(folder / "config.json")
    decoder = families.describe(config)
    return metadata(Model("tiny", decoder, "f32", config, read_text(folder, config, decoder)), "f32"), decoder


REFUSED: dict[str, tuple[dict[str, Value | None], type[Exception], str]] = {
    "architecture": ({"general.architecture": "mamba"}, UnsupportedModelError, "the architecture 'mamba'.*builds: gem"),
    "adapter": ({"general.type": "adapter"}, UnsupportedModelError, "is no model, .*'adapter'"),
    "experts": ({"llama.expert_count": U32(8)}, UnsupportedModelError, "a mixture of experts"),
    "other key": ({"llama.logit_scale": F32(2)}, UnsupportedModelError, "llama.logit_scale, which edgepack does not k"),
    "embedding model": ({"llama.attention.causal": False}, UnsupportedModelError, "writes no text"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, UnsupportedModelError, "'yarn'"),
    "other values": ({"llama.attention.value_length": U32(8)}, UnsupportedModelError, "of another size for values"),
    "layers that differ": (
        {"llama.feed_forward_length": np.array([160, 320], np.int32)},
        UnsupportedModelError,
        "layers of several kinds",
    ),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, SourceError, "lacks the key .*rms_epsilon"),
    "type of a key": ({"llama.block_count": "two"}, SourceError, "a whole number as llama.block_count, not 'two'"),
    "unigram": ({"tokenizer.ggml.model": "t5"}, UnsupportedModelError, "a tokenizer of the kind 't5'"),
    "pre-tokenizer": ({"tokenizer.ggml.pre": "viking"}, UnsupportedModelError, "'viking', which has no counterpart"),
    "no pre-tokenizer": ({"tokenizer.ggml.pre": None}, UnsupportedModelError, "no name for its pre-tokenizer"),
    "no types": ({"tokenizer.ggml.token_type": None}, SourceError, "lacks the list tokenizer.ggml.token_type"),
    "no merges": ({"tokenizer.ggml.merges": None}, SourceError, "lacks the list tokenizer.ggml.merges"),
    "merge": ({"tokenizer.ggml.merges": ["abc"]}, SourceError, "the merge 'abc', which is not a pair"),
    "bos": ({"tokenizer.ggml.bos_token_id": U32(9999)}, SourceError, "names the token 9999 as bos"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_built_is_refused_by_its_name(
    name: str, facts: tuple[dict[str, Value], Any], tmp_path: Path
) -> None:
    changes, error, message = REFUSED[name]
    keys = {key: value for key, value in (facts[0] | changes).items() if value is not None}
    file = written(tmp_path / "x.gguf", keys, facts[1])
    with pytest.raises(error, match=message) as raised:
        source.find(str(file))
    assert str(file) in str(raised.value)


def test_a_tensor_too_few_or_too_many_is_refused(facts: tuple[dict[str, Value], Any], tmp_path: Path) -> None:
    for layers, message in ((3, r"lacks the tensors blk\.2\."), (1, r"has the tensors blk\.1\.")):
        keys = facts[0] | {"llama.block_count": U32(layers)}
        origin = source.find(str(written(tmp_path / f"{layers}.gguf", keys, facts[1])))
        with source.open_weights(origin) as checkpoint, pytest.raises(SourceError, match=message):
            families.open_model(checkpoint)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.gguf cannot be read: No such file"):
        source.find(str(tmp_path / "nowhere.gguf"))


def test_the_unfolded_folder_goes_with_its_source(facts: tuple[dict[str, Value], Any], tmp_path: Path) -> None:
    keys = facts[0] | {"general.license": "apache-2.0", "general.name": "Tiny\nlicense: mit"}
    found = source.find(str(written(tmp_path / "Tiny.Q8.gguf", keys, facts[1])))
    folder = found.folder
    assert (found.name, found.given, found.notes) == ("Tiny.Q8", True, ())
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n---\n# Tiny.Q8\n")
    assert "mit" not in card
    del found
    gc.collect()
    assert not folder.exists()
    assert source.read_config(str(tmp_path / "Tiny.Q8.gguf"))["architectures"] == ["LlamaForCausalLM"]


def test_what_the_file_had_lost_is_said(tmp_path: Path) -> None:
    file = packed(make_llama(tmp_path / "model"), tmp_path / "out", "q8_0")
    lost, licence = source.find(str(file)).notes
    assert "had lost precision" in lost
    assert "in q8_0" in lost
    assert "names no licence" in licence


def test_templates_and_how_to_sample(facts: tuple[dict[str, Value], Any], tmp_path: Path) -> None:
    keys = facts[0] | {
        "tokenizer.chat_template.tool_use": "tools",
        "general.sampling.temp": F32(0.6),
        "general.sampling.top_k": U32(20),
    }
    found = source.find(str(written(tmp_path / "x.gguf", keys, facts[1])))
    said = json.loads((found.folder / "tokenizer_config.json").read_text())["chat_template"]
    assert [each["name"] for each in said] == ["default", "tool_use"]
    config = json.loads((found.folder / "generation_config.json").read_text())
    assert (config["temperature"], config["top_k"], config["do_sample"]) == (0.6, 20, True)
    assert config["eos_token_id"] == [2, 0]


def test_a_file_that_is_read_wrongly_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of q and k that stay in the file's order are a fault that no shape and no name shows."""
    file = packed(make_llama(tmp_path / "model"), tmp_path / "out", "q8_0").rename(tmp_path / "tiny.gguf")
    monkeypatch.setattr("edgepack_packager.families.gguf.rotates", lambda name, architecture: False)
    with pytest.raises(ProofError, match=r"tiny\.gguf is not read as llama\.cpp reads it: the logits' error is"):
        build(str(file), Recipe(("gguf",), ("f32",)), tmp_path / "tiny.edgepack")
    assert not (tmp_path / "tiny.edgepack").exists()


def test_a_vocabulary_that_is_read_wrongly_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed(make_llama(tmp_path / "model"), tmp_path / "out", "q8_0").rename(tmp_path / "tiny.gguf")
    monkeypatch.setattr("edgepack_packager.source.gguf.tokenizer._merges", lambda keys: [])
    with pytest.raises(ProofError, match=r"tiny\.gguf failed the proof: tokens\.equal is less than 1"):
        build(str(file), Recipe(("onnx",), ("f32",)), tmp_path / "tiny.edgepack")


@pytest.mark.parametrize("scheme", ["f16", "q8_0", "q4_0"])
def test_a_file_becomes_a_chat_bundle_for_all_engines(scheme: str, tmp_path: Path) -> None:
    file = packed(make_llama(tmp_path / "model"), tmp_path / "out", scheme).rename(tmp_path / "tiny.gguf")
    built = build(str(file), Recipe(("gguf", "mlx", "onnx"), ("f32",)), tmp_path / "tiny.edgepack")
    (entry,) = built.manifest.source.files
    assert entry.path == "tiny.gguf"
    notes = built.manifest.producer.recipe["notes"]
    assert isinstance(notes, list)
    assert any("is read as" in note and "ids of" in note for note in notes)
    assert {each.id for each in built.manifest.variants} == {"gguf-f32", "mlx-f32", "onnx-f32"}
    with edgepack.load(built.path, backend="onnx") as model:
        assert model.chat([{"role": "user", "content": "Hello"}], max_tokens=4).token_ids


def test_the_engine_computes_what_was_read(tmp_path: Path) -> None:
    file = packed(make_llama(tmp_path / "model", rope=None), tmp_path / "out")
    origin = source.find(str(file))
    with source.open_weights(origin) as checkpoint:
        weights = families.open_model(checkpoint)
        session = GgufRuntime().open(file.parent, weights.decoder, Options(context=128, threads=1, kv_cache="f32"))
        try:
            found = session.forward_all(IDS)
        finally:
            session.close()
        assert compare.nmse(found, reference.logits(weights, IDS)) <= 1e-10
