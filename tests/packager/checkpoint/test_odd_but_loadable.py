"""Checkpoints as people have them: each is the sound one with one thing changed, and must be the same model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import make_llama, safetensors_bytes
from numpy.typing import NDArray

from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.layers.1.input_layernorm.weight"
Tensors = dict[str, NDArray[np.float32]]


def sound(folder: Path, **options: Any) -> Path:
    return make_llama(folder, tied=False, dtype="f32", hidden=32, intermediate=64, tokenizer=False, **options)


def read(folder: Path) -> tuple[Any, Tensors, list[str]]:
    """The decoder, every canonical tensor, and what was passed over."""
    with open_checkpoint(folder) as checkpoint:
        weights = families.open_model(checkpoint)
        tensors = {name: weights.rows(name, 0, shape[0]) for name, shape in weights.decoder.tensors()}
        return weights.decoder, tensors, [*families.notes(checkpoint.config), *weights.notes]


def tensors_of(folder: Path) -> Tensors:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.rows(name, 0, entry.shape[0]) for name, entry in checkpoint.tensors.items()}


def put(folder: Path, tensors: Tensors, file: str = SINGLE, dtype: str = "f32") -> None:
    (folder / file).write_bytes(safetensors_bytes(tensors, dtype))


def index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def config(**fields: Any) -> Callable[[Path], None]:
    """Set fields of config.json; ... removes one."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        known = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({name: value for name, value in known.items() if value is not ...}))

    return change


def renamed(rule: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda folder: put(folder, {rule(name): tensor for name, tensor in tensors_of(folder).items()})


def added(*names: str, shape: tuple[int, ...] = (4,)) -> Callable[[Path], None]:
    return lambda folder: put(folder, tensors_of(folder) | {name: np.ones(shape, np.float32) for name in names})


def both(*changes: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def indexed(folder: Path) -> None:
    index(folder, dict.fromkeys(tensors_of(folder), SINGLE))


def indexes_more(folder: Path) -> None:
    index(folder, dict.fromkeys([*tensors_of(folder), "lm_head.bias", "model.layers.9.mlp.up_proj.weight"], SINGLE))


def indexes_another_shard(folder: Path) -> None:
    """The index still places a tensor that nobody needs in a shard that is gone."""
    index(folder, dict.fromkeys(tensors_of(folder), SINGLE) | {"value_head.weight": "model-00002-of-00002.safetensors"})
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")
    path = folder / INDEX
    path.write_text(path.read_text().replace(f'"{SINGLE}"', '"model-00001-of-00002.safetensors"'))


def indexes_otherwise(folder: Path) -> None:
    """Two shards, and an index with one tensor in the other one, and one nowhere."""
    shards = sorted(sound(folder / "x", shards=2).glob("*.safetensors"))
    weight_map = json.loads((folder / "x" / INDEX).read_text())["weight_map"]
    first, second = [next(name for name, shard in weight_map.items() if shard == each.name) for each in shards]
    weight_map[first] = shards[1].name
    del weight_map[second]
    for shard in shards:
        shard.rename(folder / shard.name)
    (folder / SINGLE).unlink()
    index(folder, weight_map)


def shards_without_an_index(folder: Path) -> None:
    for path in sound(folder / "x", shards=3).glob("*.safetensors"):
        path.rename(folder / path.name)
    (folder / SINGLE).unlink()


def one_numbered_shard(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "model-00001-of-00001.safetensors")


def compiled_layers(name: str) -> str:
    return name.replace("model.layers.1.", "model.layers.1._orig_mod.")


def wrapped_by_all(name: str) -> str:
    inner = name.replace("self_attn.", "_checkpoint_wrapped_module.self_attn.")
    return f"module._fsdp_wrapped_module.{inner.replace('layers.0.', 'layers.0._fsdp_wrapped_module.')}"


def body_alone(name: str) -> str:
    return name.removeprefix("model.")


def with_a_double(folder: Path) -> None:
    """A tensor of float64 whose values are those of float32."""
    tensors = tensors_of(folder)
    plain = safetensors_bytes({name: tensor for name, tensor in tensors.items() if name != NORM}, "f32")
    length = int.from_bytes(plain[:8], "little")
    header = json.loads(plain[8 : 8 + length])
    end = len(plain) - 8 - length
    header[NORM] = {"dtype": "F64", "shape": [32], "data_offsets": [end, end + 256]}
    text = json.dumps(header).encode()
    double = tensors[NORM].astype("<f8").tobytes()
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + plain[8 + length :] + double)


def with_a_mark(folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))


def with_others_beside(folder: Path) -> None:
    for name in ("onnx/model.onnx", "original/consolidated.00.pth", "gguf/x.gguf"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(b"x")
    for name in (
        "x.gguf",
        "._model.safetensors",
        "model.safetensors:Zone.Identifier",
        "training_args.bin",
        ".DS_Store",
    ):
        (folder / name).write_bytes(b"x")
    (folder / "adapter_model.safetensors").write_bytes(b"x")


def linked(folder: Path) -> None:
    (folder / "blobs").mkdir()
    for name in ("config.json", SINGLE):
        (folder / name).rename(folder / "blobs" / name)
        (folder / name).symlink_to(Path("blobs") / name)


LEFT = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SAME: dict[str, Callable[[Path], object]] = {
    "an index beside the one file": indexed,
    "an index that lists more": indexes_more,
    "an index that lists a shard that is gone": indexes_another_shard,
    "an index that is wrong about places": indexes_otherwise,
    "shards without an index": shards_without_an_index,
    "one numbered shard": one_numbered_shard,
    "torch.compile": renamed(lambda name: f"_orig_mod.{name}"),
    "torch.compile of some layers": renamed(compiled_layers),
    "DDP": renamed(lambda name: f"module.{name}"),
    "FSDP and checkpointing": renamed(wrapped_by_all),
    "PEFT's own, after a merge": renamed(lambda name: f"base_model.model.{name}"),
    "a model in a model": renamed(lambda name: f"model.{name}"),
    "the language part of something": renamed(lambda name: f"language_model.{name}"),
    "a trainer's own": renamed(lambda name: f"policy.llm.{name}"),
    "a prefix that the head lacks": renamed(lambda name: name if "lm_head" in name else f"llm.{name}"),
    "the body saved alone, with a head": renamed(body_alone),
    "FSDP's class": config(architectures=["FSDPLlamaForCausalLM"]),
    "PEFT's class": config(architectures=["PeftModelForCausalLM"]),
    "no class": config(architectures=...),
    "a class of null": config(architectures=None),
    "no classes": config(architectures=[]),
    "two classes": config(architectures=["LlamaForCausalLM", "FSDPLlamaForCausalLM"]),
    "a class and no type": config(model_type=...),
    "quantization_config left": config(quantization_config=LEFT),
    "quantization_config of null": config(quantization_config=None),
    "MLX's quantization left": config(quantization={"group_size": 64, "bits": 4}),
    "rope_scaling {}": config(rope_scaling={}),
    "rope_scaling default": config(rope_scaling={"type": "default"}),
    "rope_scaling with nulls": config(rope_scaling={"type": None, "rope_type": None, "factor": None}),
    "rope_scaling default with a factor of 1": config(rope_scaling={"rope_type": "default", "factor": 1}),
    "rope_scaling linear by 1": config(rope_scaling={"type": "linear", "factor": 1.0}),
    "both ropes": config(rope_scaling=None, rope_parameters=PLAIN_ROPE),
    "rope_parameters beside {}": config(rope_scaling={}, rope_parameters=PLAIN_ROPE),
    "rope_parameters with more": config(
        rope_theta=..., rope_parameters=PLAIN_ROPE | {"factor": 1.0, "original_max_position_embeddings": 512}
    ),
    "rope_parameters of a theta alone": config(rope_theta=..., rope_parameters={"rope_theta": 10000}),
    "theta as a whole number": config(rope_theta=10000),
    "head_dim null": config(head_dim=None),
    "a window that Llama does not have": config(sliding_window=None, use_sliding_window=False),
    "tie_word_embeddings left out": config(tie_word_embeddings=...),
    "a tensor of float64": with_a_double,
    "tables of cosines": added(
        *(f"model.layers.{layer}.self_attn.rotary_emb.{name}_cached" for layer in (0, 1) for name in ("cos", "sin"))
    ),
    "frequencies": added("model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"),
    "scales of a cache": added(
        *(f"model.layers.0.self_attn.{name}" for name in ("k_scale", "v_scale", "k_proj.k_scale", "attn.kv_scale")),
        shape=(1,),
    ),
    "masks": added("model.layers.0.self_attn.masked_bias", "model.position_ids"),
    "a head for rewards": added("v_head.summary.weight", "v_head.summary.bias"),
    "a byte order mark and line ends of Windows": with_a_mark,
    "other files and folders beside": with_others_beside,
    "an adapter beside, that was merged": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "links": linked,
    "everything at once": both(
        renamed(wrapped_by_all), indexes_more, config(architectures=None, quantization_config=LEFT, rope_scaling={})
    ),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tensors, list[str]]:
    return read(sound(tmp_path_factory.mktemp("sound")))


@pytest.mark.parametrize("what", SAME)
def test_what_transformers_loads_is_the_same_model(
    what: str, expected: tuple[Any, Tensors, list[str]], tmp_path: Path
) -> None:
    folder = sound(tmp_path / "Modell für alle, Nr. 1")
    SAME[what](folder)
    decoder, tensors, _ = read(folder)
    assert decoder == expected[0]
    assert all(np.array_equal(tensors[name], tensor) for name, tensor in expected[1].items())
    assert expected[2] == []


NOTED: dict[str, str] = {
    "an index that lists more": f"{INDEX} names the tensors lm_head.bias, ",
    "an adapter beside, that was merged": "adapter_config.json is passed over",
    "DDP": "The names of 21 tensors are read as those of the model, such as module.",
    "FSDP's class": "architectures names FSDPLlamaForCausalLM; the model_type 'llama' decides",
    "no class": "names no class; the model_type 'llama' decides",
    "quantization_config left": "config.json: quantization_config (bitsandbytes) is passed over",
    "MLX's quantization left": "config.json: quantization (MLX) is passed over",
}


@pytest.mark.parametrize("what", NOTED)
def test_what_is_passed_over_is_said(what: str, tmp_path: Path) -> None:
    folder = sound(tmp_path / "model")
    SAME[what](folder)
    (note,) = read(folder)[2]
    assert NOTED[what] in note


def test_a_tied_model_whose_index_still_has_a_head(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, tied=True, shards=2, tokenizer=False)
    path = folder / INDEX
    said = json.loads(path.read_text())
    said["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    path.write_text(json.dumps(said))
    _, tensors, notes = read(folder)
    assert "head" not in tensors
    assert len(notes) == 1


def test_a_body_alone_of_a_tied_model(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", tied=True, dtype="f32", tokenizer=False)
    expected = read(folder)[1]
    renamed(body_alone)(folder)
    assert all(np.array_equal(tensor, expected[name]) for name, tensor in read(folder)[1].items())


def quantised(tool: str | None, *marks: str, weight: str = "U32") -> Callable[[Path], None]:
    """One matrix as packed integers, and beside it what the tool adds."""

    def change(folder: Path) -> None:
        name = "model.layers.0.mlp.up_proj"
        added(*(f"{name}.{mark}" for mark in marks))(folder)
        path = folder / SINGLE
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header[f"{name}.weight"]["dtype"] = weight
        if weight != "U32":  # a byte an element
            header[f"{name}.weight"]["shape"][0] *= 4
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        if tool:
            config(quantization_config={"quant_method": tool})(folder)

    return change


QUANTISED: list[tuple[Callable[[Path], None], str, str]] = [
    (quantised("bitsandbytes", "weight.absmax", "weight.quant_map", weight="U8"), "by bitsandbytes", "16 or 32 bits"),
    (quantised("bitsandbytes", "SCB", weight="I8"), "by bitsandbytes", "merged to 16 bits first"),
    (quantised("gptq", "qweight", "qzeros", "scales", "g_idx"), "by gptq", "original"),
    (quantised("awq", "qweight", "qzeros", "scales"), "by awq", "original"),
    (quantised("fp8", "weight_scale_inv", weight="F8_E4M3"), "by fp8", "original"),
    (quantised("compressed-tensors", "weight_packed", "weight_scale"), "by compressed-tensors", "original"),
    (quantised(None, "scales", "biases"), "by MLX", "--dequantize"),
    (both(quantised(None, "scales", "biases"), config(quantization={"group_size": 64, "bits": 4})), "by MLX", "fuse"),
    (quantised(None, weight="F8_E4M3"), "already: model.layers.0.mlp.up_proj.weight is stored as F8_E4M3", "original"),
    (both(added("model.layers.0.mlp.up_proj.SCB"), config(quantization_config=LEFT)), "up_proj.SCB", "original"),
]


@pytest.mark.parametrize(("change", "message", "hint"), QUANTISED)
def test_quantised_weights_are_called_so(
    change: Callable[[Path], None], message: str, hint: str, tmp_path: Path
) -> None:
    folder = sound(tmp_path / "model")
    change(folder)
    with pytest.raises(UnsupportedModelError, match="quantised already") as raised:
        read(folder)
    assert message in raised.value.message
    assert hint in (raised.value.hint or "")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: put(folder, {key: value for key, value in tensors_of(folder).items() if key != name})


def lost_from_its_shard(folder: Path) -> None:
    tensors = tensors_of(folder)
    put(folder, {name: tensor for name, tensor in tensors.items() if name != NORM})
    index(folder, dict.fromkeys(tensors, SINGLE))


def a_shard_gone(folder: Path) -> None:
    shards_without_an_index(folder)
    index(folder, json.loads((folder / "x" / INDEX).read_text())["weight_map"])
    (folder / "model-00002-of-00003.safetensors").unlink()


def two_sets(folder: Path) -> None:
    put(folder, tensors_of(folder), "model-00001-of-00001.safetensors")
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")
    put(folder, {}, "model-00002-of-00002.safetensors")


def a_hole(folder: Path) -> None:
    shards_without_an_index(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def called(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / SINGLE).rename(folder / name)


def with_nan(name: str, *rows: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = tensors_of(folder)
        tensors[name][list(rows)] = np.nan
        put(folder, tensors)

    return change


def a_pointer(folder: Path) -> None:
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "needed, and only in the index": (lost_from_its_shard, f"places the tensor {NORM} in {SINGLE}", f"Fetch {SINGLE}"),
    "a shard of the index is gone": (
        a_shard_gone,
        "names the shard model-00002-of-00003.safetensors, which is missing",
        "Fetch model-00002-of-00003.safetensors into",
    ),
    "a shard is gone, and no index": (a_hole, "lacks model-00002-of-00003.safetensors", "all weight files"),
    "shards of two sets": (two_sets, "shards of more than one set", "out of date"),
    "another name": (called("weights.safetensors"), "are named weights.safetensors", f"to {SINGLE}"),
    "a name in capitals": (called("model.SAFETENSORS"), "are named model.SAFETENSORS", f"to {SINGLE}"),
    "Mistral's name": (called("consolidated.safetensors"), "only consolidated.safetensors", "Hugging Face layout"),
    "an adapter beside a config": (called("adapter_model.safetensors"), "only an adapter", "--adapter FOLDER"),
    "git-lfs": (a_pointer, "not a safetensors file", "git lfs pull"),
    "an adapter inside": (
        added("model.layers.0.self_attn.q_proj.lora_A.default.weight"),
        "q_proj.lora_A.default.weight: an adapter that was not merged",
        "merge_and_unload",
    ),
    "no head": (without("lm_head.weight"), "lacks the tensor lm_head.weight", '"tie_word_embeddings" to true'),
    "no norm": (without(NORM), f"lacks the tensor {NORM}", "all weight files"),
    "a bias": (added("model.layers.0.self_attn.q_proj.bias"), "q_proj.bias, which nothing", "belongs to the weights"),
    "a name twice": (
        added(f"module.{NORM}", shape=(32,)),
        f"both {NORM} and module.{NORM}",
        "without its wrapper",
    ),
    "NaN in a row": (with_nan("lm_head.weight", 7), "lm_head.weight has a NaN or an infinity in row 7, of 384", "zero"),
    "NaN in rows": (
        with_nan("model.embed_tokens.weight", *range(380, 384)),
        "model.embed_tokens.weight has a NaN or an infinity in 4 rows from 380 to 383",
        "zero",
    ),
    "another class": (config(architectures=["LlamaForSequenceClassification"]), "SequenceClassification", 'set "arch'),
    "a class and another type": (config(model_type="qwen2"), "model_type says 'qwen2'", "Correct"),
    "neither class nor type": (config(architectures=..., model_type=...), "no architecture", "It builds"),
    "a factor without a type": (config(rope_scaling={"factor": 4.0}), "has no rope_type", "Add the rope_type"),
    "a default type that stretches": (
        config(rope_scaling={"rope_type": "default", "factor": 4.0}),
        "rope_scaling.factor has no meaning",
        "remove factor",
    ),
    "a field twice": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "llama", "model_type": "qwen2"}'),
        "the key 'model_type' occurs twice",
        "Remove the one that is wrong",
    ),
    "UTF-16": (
        lambda folder: (folder / "config.json").write_text("{}", "utf-16"),
        "config.json is not valid JSON",
        "save it as UTF-8",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_names_the_cause_and_the_next_step(what: str, tmp_path: Path) -> None:
    change, message, hint = REFUSED[what]
    folder = sound(tmp_path / "model")
    change(folder)
    with pytest.raises((SourceError, UnsupportedModelError)) as raised:
        read(folder)
    assert message in raised.value.message
    assert hint in (raised.value.hint or "")
