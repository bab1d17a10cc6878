"""A GGUF header must describe the very decoder of the bundle, number by number, before llama.cpp sees the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest
from decoders import Positions, changed
from gguf_decoders import (
    DECODERS,
    FAR,
    GLOBAL,
    LINEAR,
    LLAMA3,
    LOCAL,
    LONG,
    OTHER_TURNS,
    WINDOW,
    YARN,
    architecture,
    gemma4,
    rope,
)
from msgspec import UNSET

from edgepack.bundle.decoder import Attention, Convolution, Decoder, Layer, Temperature, arranged
from edgepack.bundle.rope import ProportionalScaling, YarnScaling
from edgepack.errors import EngineError
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf import header as encoding
from edgepack_packager.targets.gguf.header import F32, U32, Value
from edgepack_packager.targets.gguf.layout import Layout, place
from edgepack_packager.targets.gguf.metadata import metadata
from edgepack_packager.targets.gguf.tensors import tables
from edgepack_runtimes.gguf import header
from edgepack_runtimes.gguf.check import check

Change = Callable[[dict[str, Value]], None]


def file_of(
    folder: Path,
    decoder: Decoder,
    change: Change = lambda keys: None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """A file whose header is complete and whose tensors are zero, but for the tables of the rope."""
    keys, layout = metadata(Model("tiny", decoder, "f32"), "f32"), place(decoder, "f32")
    change(keys)
    named = [replace(tensor, name=renamed.get(tensor.name, tensor.name)) for tensor in layout.tensors]
    layout = Layout(tuple(named), layout.canonical, ())
    head = encoding.encode(keys, layout)
    data = bytearray(layout.data_bytes)
    for tensor in layout.tensors:
        if tensor.name in (beside := tables(decoder)):
            data[tensor.offset : tensor.offset + tensor.size] = beside[tensor.name].tobytes()
    path = folder / "model.gguf"
    path.write_bytes(head + data)
    return path


@pytest.mark.parametrize("name", DECODERS)
def test_what_the_target_writes_is_accepted(name: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, DECODERS[name])
    assert check(header.read(path), DECODERS[name], path) == architecture(name)


def _yarn(yarn: YarnScaling, theta: float = 10000.0, **changes: Any) -> Positions:
    return Positions(rope(theta, scaling=msgspec.structs.replace(yarn, **changes)))


OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"norm_eps": 2e-5}, r"llama\.attention\.layer_norm_rms_epsilon is .*, the model's is"),
    ("llama", {"pattern": (FAR,)}, "the rope's base of layer 0 is 10000.0, the model's is 1000000.0"),
    ("llama", {"pattern": (Positions(rope(dim=12)),)}, "the rotation of parts of heads of its architecture is False"),
    ("llama", {"pattern": (LOCAL,)}, "the window of layer 0 is None, the model's is 24"),
    ("llama", {"pattern": (Positions(None),)}, "its architecture has one rope, the model 0"),
    ("llama", {"pattern": (GLOBAL, Positions(None))}, "the rope's base of layer 1 is 10000.0, the model's is None"),
    ("llama", {"pattern": (Positions(rope(scaling=LINEAR)),)}, "the rope's linear factor of layer 0 is 1.0"),
    ("llama", {"pattern": (Positions(rope(scaling=LLAMA3)),)}, r"it has no tensor rope_freqs\.weight"),
    ("llama", {"pattern": (GLOBAL, Positions(rope(scaling=LLAMA3)))}, "its architecture has one rope, the model 2"),
    ("llama", {"qk_norm": "head"}, "the norm of q and k of its architecture is None, the model's is head"),
    ("llama", {"norms": "both"}, "the place of the norms of its architecture is before, the model's is both"),
    ("llama", {"activation": "gelu_tanh"}, "the activation of its architecture is silu"),
    ("llama", {"attention_softcap": 50.0}, "the softcap on the scores"),
    ("llama", {"logits_softcap": 30.0}, "the softcap on the logits"),
    ("llama", {"embedding_scale": 8.0}, "its architecture multiplies embeddings by 1, the model by 8"),
    ("llama", {"norm": "layer"}, "the LayerNorm of its architecture is False, the model's is True"),
    ("stablelm", {"norm": UNSET}, "the LayerNorm of its architecture is True, the model's is False"),
    ("stablelm", {"norm_eps": 2e-5}, r"stablelm\.attention\.layer_norm_epsilon is .*, the model's is"),
    ("stablelm", {"qkv_bias": True}, r"it has no tensor blk\.0\.attn_k\.bias, unlike the model"),
    ("stablelm: biases, linear rope, scores", {"qkv_bias": False}, r"it has a tensor blk\.0\.attn_k\.bias"),
    ("llama", {"tied": False}, "it has no head of its own"),
    ("llama", {"qkv_bias": True}, "it has biases on nothing"),
    ("llama: everything", {"mlp_bias": False}, "it has biases on attn_k, attn_output"),
    ("llama: everything", {"tied": True}, "it has a head of its own"),
    ("llama: everything", {"pattern": (Positions(rope(5e5)),)}, r"it has a tensor rope_freqs\.weight"),
    (
        "llama: everything",
        {"pattern": (Positions(rope(5e5, scaling=msgspec.structs.replace(LLAMA3, factor=9.0))),)},
        r"rope_freqs\.weight holds other factors",
    ),
    (
        "phi3: beyond the original context",
        {"pattern": (Positions(rope(scaling=msgspec.structs.replace(LONG, factors=LONG.factors[::-1]))),)},
        r"rope_factors_long\.weight holds other factors",
    ),
    (
        "phi3: beyond the original context",
        {"pattern": (Positions(rope(scaling=msgspec.structs.replace(LONG, magnitude=1.2))),)},
        r"phi3\.rope\.scaling\.attn_factor is 1\.19",
    ),
    ("phi3: partial, biases, scores", {"pattern": (GLOBAL,)}, "the rope's dimension of layer 0 is 12"),
    ("smollm3", {"pattern": (GLOBAL,)}, "the rope's base of layer 3 is None"),
    ("gemma2", {"pattern": (GLOBAL, LOCAL)}, "the window of layer 0 is 24, the model's is None"),
    ("gemma2", {"pattern": (Positions(rope(), WINDOW + 1), GLOBAL)}, "the window of layer 0 is 24, the model's is 25"),
    ("gemma2", {"attention_softcap": 5.0}, r"gemma2\.attn_logit_softcapping is 4\.0, the model's is 5\.0"),
    ("gemma2", {"attention_softcap": None}, "the softcap on the scores of its architecture is True"),
    ("gemma2", {"logits_softcap": None}, r"gemma2\.final_logit_softcapping is 6\.0, the model's is None"),
    ("gemma2", {"embedding_scale": 8.03125}, "layer_norm_rms_epsilon"),
    ("gemma3", {"embedding_scale": 1.0}, "its architecture multiplies embeddings by 8, the model by 1"),
    ("gemma3", {"qk_norm": None}, "the norm of q and k of its architecture is head, the model's is None"),
    ("gemma3", {"logits_softcap": 30.0}, r"gemma3\.final_logit_softcapping is None"),
    ("gemma3", {"pattern": (LOCAL,) * 5 + (GLOBAL,)}, "the rope's base of layer 5 is 1000000.0"),
    ("gemma3", {"pattern": (*(LOCAL,) * 4, FAR, LOCAL)}, "the rope's base of layer 4 is 10000.0"),
    ("gemma-embedding", {"bidirectional": UNSET}, "attention to what comes after of its architecture is True"),
    ("gemma3", {"bidirectional": True}, "attention to what comes after of its architecture is False"),
    (
        "gemma-embedding",
        {"pattern": (Positions(rope(), WINDOW + 1),) * 5 + (FAR,)},
        "the window of layer 0 is 24, the model's is 25",
    ),
    (
        "gemma3: linear rope on global layers",
        {"pattern": (Positions(rope(scaling=LINEAR), WINDOW),) * 5 + (Positions(rope(1e6, scaling=LINEAR)),)},
        "the rope's linear factor of layer 0 is 1.0, the model's is 8.0",
    ),
]

OTHERS += [
    ("llama", {"pattern": (Positions(rope(scaling=YARN)),)}, r"attn_factor is 1\.0"),
    ("llama: yarn", {"pattern": (_yarn(YARN, factor=9.0),)}, "attn_factor"),
    ("llama: yarn", {"pattern": (_yarn(YARN, original_context=65),)}, "the rope's yarn of layer 0 is by 8.0 from 64"),
    ("llama: yarn", {"pattern": (_yarn(YARN, beta_fast=31.0),)}, "and 1.0 turns, the model's is .* between 31.0"),
    ("llama: yarn", {"pattern": (_yarn(YARN, magnitude=1.0),)}, "attn_factor"),
    (
        "llama: yarn",
        {"pattern": (_yarn(YARN, whole=False),)},
        "from one whole pair to another, the model between pairs",
    ),
    ("mistral3", {"pattern": (_yarn(OTHER_TURNS, beta_slow=1.0),)}, "the rope's base of layer 0"),
    ("mistral3", {"temperature": None}, r"temperature_scale is 0\.3.*, the model's is None"),
    ("mistral3", {"temperature": Temperature(0.3, 65)}, "original_context_length is 64, the model's is 65"),
    ("llama", {"temperature": Temperature(0.3, 64)}, r"temperature_scale is None, the model's is 0\.3"),
    ("llama", {"residual_scale": 0.5}, "multiplies the blocks' outputs by 1, the model by 0.5"),
    ("llama", {"logits_scale": 0.5}, "multiplies the logits by 1, the model by 0.5"),
    ("granite", {"embedding_scale": 1.0}, r"granite\.embedding_scale is 12\.0"),
    ("granite", {"logits_scale": 8.0}, r"granite\.logit_scale is 8\.0, the model's is 0\.125"),
    ("granite", {"residual_scale": 1.0}, r"granite\.residual_scale is 0\.2"),
    ("granite", {"attention_scale": None}, r"granite\.attention\.scale is 0\.1.*, the model's is 0\.25"),
    ("gemma", {"embedding_scale": 9.0}, "its architecture multiplies embeddings by 8, the model by 9"),
    ("gemma", {"norms": "both"}, "the place of the norms of its architecture is before"),
    ("olmo2", {"norms": "both"}, "the place of the norms of its architecture is after"),
    ("olmo2", {"qk_norm": "head"}, "the norm of q and k of its architecture is width"),
    (
        "olmo2: windows, yarn on the other layers",
        {"pattern": (Positions(rope(scaling=YARN), WINDOW),) * 3 + (Positions(rope(scaling=YARN)),)},
        "the rope's yarn of layer 0 is None",
    ),
    (
        "olmo2: windows, one rope",
        {"pattern": (Positions(rope(2e4), WINDOW),) * 3 + (GLOBAL,)},
        "the rope's base of layer 0",
    ),
    ("exaone4", {"qk_norm": "rotated"}, "the norm of q and k of its architecture is head"),
    (
        "exaone4: of 64 layers",
        {"pattern": (Positions(rope(1e6, scaling=LLAMA3), WINDOW),) * 3 + (Positions(rope(1e6, scaling=LLAMA3)),)},
        "the rope's base of layer 3 is None",
    ),
    ("hunyuan-dense", {"qk_norm": "head"}, "the norm of q and k of its architecture is rotated"),
]


@pytest.mark.parametrize(("name", "changes", "complaint"), OTHERS)
def test_a_file_of_another_decoder_is_refused_by_what_differs(
    name: str, changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    path = file_of(tmp_path, DECODERS[name])
    with pytest.raises(EngineError, match=complaint):
        check(header.read(path), changed(DECODERS[name], **changes), path)


def test_a_window_that_hides_nothing_is_none(tmp_path: Path) -> None:
    decoder = msgspec.structs.replace(DECODERS["gemma2"], context=WINDOW)
    path = file_of(tmp_path, decoder)
    without = changed(decoder, pattern=(GLOBAL,))
    assert check(header.read(path), without, path) == "gemma2"


def _set(key: str, value: Value) -> Change:
    return lambda keys: keys.update({key: value})


def _without(key: str) -> Change:
    return lambda keys: keys.__delitem__(key)


def _renamed(one: str, other: str) -> Change:
    def rename(keys: dict[str, Value]) -> None:
        for key in list(keys):
            keys[key.replace(f"{one}.", f"{other}.", 1)] = keys.pop(key)
        keys["general.architecture"] = other

    return rename


KEYS: list[tuple[str, Change, str]] = [
    ("llama", _renamed("llama", "qwen2moe"), "general.architecture is 'qwen2moe', not one of llama, qwen2"),
    ("llama", _renamed("llama", "qwen3"), "the norm of q and k of its architecture is head, the model's is None"),
    ("llama", _renamed("llama", "smollm3"), "^$"),
    ("llama", _without("general.architecture"), "general.architecture is None"),
    ("llama", _set("llama.expert_count", U32(8)), r"the key llama\.expert_count is not one that edgepack writes"),
    ("llama", _set("llama.attention.sliding_window", U32(8)), r"the key llama\.attention\.sliding_window is not one"),
    ("llama", _set("llama.block_count", F32(2.0)), r"llama\.block_count is 2\.0, not an integer"),
    ("llama", _set("llama.rope.freq_base", F32(0.0)), r"llama\.rope\.freq_base is 0\.0, not a positive number"),
    ("llama", _set("llama.rope.freq_base", F32(float("inf"))), "not a positive number"),
    ("llama", _set("llama.attention.layer_norm_rms_epsilon", F32(float("nan"))), "not a positive number"),
    ("llama", _without("llama.attention.layer_norm_rms_epsilon"), "epsilon is None"),
    ("llama", _set("llama.rope.scaling.type", "yarn"), "the rope's yarn of layer 0 is by 1.0 from 512"),
    ("gemma2", _set("gemma2.rope.scaling.type", "yarn"), r"gemma2\.rope\.scaling\.type is yarn"),
    ("llama: yarn", _set("llama.rope.scaling.type", "linear"), "the rope's linear factor of layer 0 is 8.0"),
    ("llama: yarn", _without("llama.rope.scaling.original_context_length"), "yarn of layer 0 is by 8.0 from 512,"),
    ("llama: yarn", _without("llama.rope.scaling.attn_factor"), r"attn_factor is 1\.0"),
    ("llama: yarn", _set("llama.rope.scaling.yarn_beta_fast", F32(16.0)), "yarn_beta_fast is not one"),
    ("mistral3", _set("mistral3.rope.scaling.yarn_beta_fast", F32(3.0)), "between 3.0 and 0.125 turns, the model's is"),
    ("mistral3", _without("mistral3.rope.scaling.yarn_beta_slow"), "between 1.5 and 1.0 turns, the model's is"),
    ("mistral3", _set("mistral3.rope.scaling.yarn_log_multiplier", F32(1.0)), "yarn_log_multiplier is not one"),
    ("mistral3", _without("mistral3.attention.temperature_scale"), "temperature_scale is None, the model's is 0.3"),
    (
        "mistral3: a plain rope",
        _set("mistral3.rope.scaling.original_context_length", U32(65)),
        "original_context_length is 65, the model's is 64",
    ),
    ("llama: yarn", _renamed("llama", "mistral3"), "^$"),
    ("llama", _set("llama.attention.temperature_scale", F32(0.1)), "temperature_scale is not one"),
    ("granite", _without("granite.logit_scale"), r"granite\.logit_scale is None, the model's is 8\.0"),
    ("granite", _without("granite.residual_scale"), r"granite\.residual_scale is 1\.0"),
    ("granite", _without("granite.embedding_scale"), r"granite\.embedding_scale is 1\.0"),
    ("granite", _without("granite.attention.scale"), r"granite\.attention\.scale is 0\.25"),
    (
        "granite",
        _renamed("granite", "llama"),
        "its architecture multiplies the blocks' outputs by 1, the model by 0.22",
    ),
    ("stablelm", _set("stablelm.use_parallel_residual", True), "use_parallel_residual is True, the model's is False"),
    ("stablelm", _without("stablelm.use_parallel_residual"), "use_parallel_residual is None"),
    ("stablelm", _without("stablelm.attention.layer_norm_epsilon"), "layer_norm_epsilon is None, the model's is"),
    ("stablelm", _set("stablelm.attention.layer_norm_epsilon", F32(1e-6)), "layer_norm_epsilon is .*, the model's is"),
    ("stablelm", _set("stablelm.attention.layer_norm_rms_epsilon", F32(1e-5)), "layer_norm_rms_epsilon is not one"),
    ("stablelm", _set("stablelm.rope.dimension_count", U32(16)), "the rope's dimension of layer 0 is 16"),
    ("stablelm", _renamed("stablelm", "phi3"), "the LayerNorm of its architecture is False, the model's is True"),
    ("llama", _renamed("llama", "stablelm"), "the LayerNorm of its architecture is True, the model's is False"),
    ("olmo2: windows, one rope", _without("olmo2.attention.sliding_window"), "the window of layer 0 is None"),
    ("olmo2: windows, one rope", _set("olmo2.rope.freq_base_swa", F32(2e4)), "^$"),
    ("exaone4", _set("exaone4.block_count", U32(64)), r"exaone4\.block_count is 64, the model's is 2"),
    ("exaone4: of 64 layers", _set("exaone4.block_count", U32(60)), r"exaone4\.block_count is 60"),
    ("exaone4: of 64 layers", _without("exaone4.attention.sliding_window"), "the window of layer 0 is None"),
    ("llama", _set("llama.rope.scaling.factor", F32(2.0)), "the rope's linear factor of layer 0 is 2.0"),
    ("llama: linear rope", _without("llama.rope.scaling.factor"), "the rope's linear factor of layer 0 is 1.0"),
    ("gemma2", _without("gemma2.attn_logit_softcapping"), r"attn_logit_softcapping is 50\.0, the model's is 4\.0"),
    ("gemma2", _without("gemma2.attention.sliding_window"), "the window of layer 0 is None, the model's is 24"),
    ("gemma2", _set("gemma2.attention.sliding_window", U32(0)), "no layer has a window"),
    ("gemma2: no windows", _without("gemma2.attention.sliding_window_pattern"), "^$"),
    ("gemma3", _without("gemma3.attention.sliding_window"), "the rope's base of layer 0 is 1000000.0"),
    ("gemma3", _set("gemma3.rope.freq_base_swa", F32(2e4)), "the rope's base of layer 0 is 20000.0"),
    ("gemma3", _without("gemma3.rope.freq_base_swa"), "^$"),
    ("gemma-embedding", _set("gemma-embedding.attention.sliding_window", U32(47)), "^$"),  # half of it is the same
    ("gemma-embedding", _set("gemma-embedding.attention.sliding_window", U32(24)), "the window of layer 0 is 13"),
    ("gemma-embedding", _set("gemma-embedding.attention.sliding_window", U32(48)), "the window of layer 0 is 25"),
    ("gemma-embedding", _set("gemma-embedding.attention.sliding_window", U32(0)), "the window of layer 0 is 1,"),
    *(
        (
            "gemma-embedding",
            _set("gemma-embedding.attention.sliding_window_pattern", np.full(12, kind, np.int32)),
            "its architecture has layers with a window and layers without, the file one kind",
        )
        for kind in (0, 1)
    ),
    ("gemma-embedding", _set("gemma-embedding.attention.causal", True), r"attention\.causal is not one"),
    ("gemma-embedding", _set("gemma-embedding.dense_2_feat_out", U32(96)), r"dense_2_feat_out is not one"),
    ("gemma-embedding", _set("gemma-embedding.final_logit_softcapping", F32(6.0)), "softcapping is 6.0"),
    ("gemma-embedding", _renamed("gemma-embedding", "gemma3"), "attention to what comes after"),
    (
        "gemma3: three to one, softcap, untied, scores",
        _without("gemma3.attention.sliding_window_pattern"),
        "the rope's base of layer 3",
    ),
    (
        "gemma3",
        _set("gemma3.attention.sliding_window_pattern", np.ones(3, np.int32)),
        r"gemma3\.attention\.sliding_window_pattern is .*, not 12 numbers",
    ),
    ("gemma3", _set("gemma3.attention.sliding_window_pattern", U32(6)), "is 6, not 12 numbers"),
    (
        "gemma2",
        _set("gemma2.attention.sliding_window_pattern", np.zeros(4, np.int32)),
        "no layer has a window, and its architecture needs one",
    ),
]


@pytest.mark.parametrize(("name", "change", "complaint"), KEYS)
def test_keys_that_make_another_model_are_refused(name: str, change: Change, complaint: str, tmp_path: Path) -> None:
    """Where llama.cpp would assume the same for a key, or knows the same graph by another name, nothing is refused."""
    path = file_of(tmp_path, DECODERS[name], change)
    found = header.read(path)
    if complaint == "^$":
        check(found, DECODERS[name], path)
        return
    with pytest.raises(EngineError, match=complaint) as error:
        check(found, DECODERS[name], path)
    assert str(path) in str(error.value)


TWICE = "qwen35: twice the heads of values"

DELTA: list[tuple[str, int, str]] = [
    ("time_step_rank", 2, r"qwen35\.ssm\.time_step_rank is 2, the model's is 4"),
    ("group_count", 4, r"qwen35\.ssm\.group_count is 4, the model's is 2"),
    ("inner_size", 64, r"qwen35\.ssm\.inner_size is 64, the model's is 128"),
    ("state_size", 64, r"qwen35\.ssm\.state_size is 64, the model's is 32"),
]


@pytest.mark.parametrize(("key", "number", "complaint"), DELTA)
def test_other_heads_of_a_delta_rule_are_refused(key: str, number: int, complaint: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, DECODERS[TWICE], _set(f"qwen35.ssm.{key}", U32(number)))
    with pytest.raises(EngineError, match=complaint):
        check(header.read(path), DECODERS[TWICE], path)


@pytest.mark.parametrize(
    ("changes", "keys", "complaint"),
    [
        ({"value_dim": 64}, {"inner_size": 256}, "has heads of keys and of values of one size, unlike the model"),
        (
            {"n_key_heads": 3},
            {"group_count": 3},
            "its 4 heads of values do not share 3 heads of keys",
        ),
    ],
)
def test_heads_at_which_llama_cpp_would_end_the_process_are_refused(
    changes: dict[str, int], keys: dict[str, int], complaint: str, tmp_path: Path
) -> None:
    """The file and the model agree, and no graph computes them."""
    delta = next(iter(DECODERS[TWICE].correcting.values()))
    decoder = changed(DECODERS[TWICE], delta=msgspec.structs.replace(delta, **changes))
    path = file_of(
        tmp_path, DECODERS[TWICE], lambda found: found.update({f"qwen35.ssm.{key}": U32(keys[key]) for key in keys})
    )
    with pytest.raises(EngineError, match=complaint):
        check(header.read(path), decoder, path)


ONE_HEAD = "gemma4: nothing shared, heads and MLPs of one size, a plain rope"
UNTIED = "gemma4: untied, no inputs, nothing scaled, other KV heads"


def _numbers(*numbers: int) -> Value:
    return np.array(numbers, np.int32)


LAYERS: list[tuple[str, Change, str]] = [
    ("gemma4", _set("gemma4.attention.shared_kv_layers", U32(1)), "shared_kv_layers is 1, the model's is 2"),
    ("gemma4", _set("gemma4.attention.shared_kv_layers", U32(6)), "shared_kv_layers is 6"),
    ("gemma4", _without("gemma4.attention.shared_kv_layers"), "shared_kv_layers is 0, the model's is 2"),
    (ONE_HEAD, _without("gemma4.attention.shared_kv_layers"), "^$"),
    ("gemma4", _set("gemma4.embedding_length_per_layer_input", U32(0)), "per_layer_input is 0, the model's is 32"),
    (UNTIED, _without("gemma4.embedding_length_per_layer_input"), "per_layer_input is None, the model's is 0"),
    ("gemma4", _set("gemma4.attention.key_length", U32(16)), "key_length is 16, the model's is 32"),
    ("gemma4", _set("gemma4.attention.key_length_swa", U32(32)), "key_length_swa is 32, the model's is 16"),
    ("gemma4", _set("gemma4.attention.value_length_swa", U32(32)), "value_length_swa is 32, the model's is 16"),
    ("gemma4", _without("gemma4.attention.key_length_swa"), "key_length_swa is None"),
    ("gemma4", _set("gemma4.rope.dimension_count", U32(16)), "the rope's dimension of layer 1 is 16"),
    ("gemma4", _set("gemma4.rope.dimension_count_swa", U32(8)), "the rope's dimension of layer 0 is 8"),
    ("gemma4", _without("gemma4.rope.dimension_count_swa"), "the rope's dimension of layer 0 is 32"),
    ("gemma4", _set("gemma4.rope.freq_base_swa", F32(1e6)), "the rope's base of layer 0 is 1000000.0"),
    ("gemma4", _without("gemma4.rope.freq_base_swa"), "^$"),
    ("gemma4", _without("gemma4.rope.freq_base"), "the rope's base of layer 1 is 10000.0"),
    ("gemma4", _set("gemma4.rope.scaling.factor", F32(2.0)), "the rope's linear factor of layer 1 is 2.0"),
    ("gemma4", _without("gemma4.attention.sliding_window"), "the rope's base of layer 0|the window of layer 0"),
    ("gemma4", _without("gemma4.attention.sliding_window_pattern"), "sliding_window_pattern is None"),
    ("gemma4", _set("gemma4.attention.sliding_window_pattern", U32(2)), "sliding_window_pattern is 2"),
    (
        "gemma4",
        _set("gemma4.attention.sliding_window_pattern", _numbers(0, 1, 0, 1, 0, 1)),
        "sliding_window_pattern is",
    ),
    ("gemma4", _set("gemma4.attention.sliding_window_pattern", _numbers(1, 0, 1, 0, 1)), "sliding_window_pattern is"),
    ("gemma4", _set("gemma4.feed_forward_length", U32(96)), "feed_forward_length is"),
    ("gemma4", _set("gemma4.feed_forward_length", _numbers(96, 96, 96, 192, 192, 192)), "feed_forward_length is"),
    ("gemma4", _set("gemma4.feed_forward_length", _numbers(96, 96, 96, 96, 192)), "feed_forward_length is .* 6 integ"),
    ("gemma4", _set("gemma4.feed_forward_length", np.array([96.0] * 6, np.float32)), "is .*, not 6 integers"),
    (ONE_HEAD, _set("gemma4.feed_forward_length", _numbers(96, 96, 96)), "^$"),
    (UNTIED, _set("gemma4.attention.head_count_kv", U32(2)), "head_count_kv is"),
    (UNTIED, _set("gemma4.attention.head_count_kv", _numbers(1, 2, 1, 2, 1, 2)), "head_count_kv is"),
    ("gemma4", _set("gemma4.attention.head_count", _numbers(*[4] * 6)), "head_count is .*, not an integer"),
    (UNTIED, _without("gemma4.final_logit_softcapping"), "final_logit_softcapping is 30.0, the model's is None"),
    ("gemma4", _set("gemma4.final_logit_softcapping", F32(0.0)), "final_logit_softcapping is None, the model's is 6.0"),
    ("gemma4", _set("gemma4.attn_logit_softcapping", F32(50.0)), "attn_logit_softcapping is 50.0"),
    ("gemma3", _set("gemma3.final_logit_softcapping", F32(0.0)), "final_logit_softcapping is 0.0, not a positive"),
    ("gemma4", _set("gemma4.expert_count", U32(8)), "expert_count is not one that edgepack writes"),
    ("gemma3", _set("gemma3.attention.shared_kv_layers", U32(1)), "shared_kv_layers is not one that edgepack writes"),
    ("gemma3", _set("gemma3.attention.key_length_swa", U32(8)), "key_length_swa is not one that edgepack writes"),
    ("gemma4", _renamed("gemma4", "gemma3"), "its architecture has layers of one shape, the model of several"),
    (ONE_HEAD, _renamed("gemma4", "gemma3"), "the norm of v of its architecture is False, the model's is True"),
    ("gemma3", _renamed("gemma3", "gemma4"), "its architecture has norms of v, the model has none in a layer"),
]


@pytest.mark.parametrize(("name", "change", "complaint"), LAYERS)
def test_what_layers_have_of_their_own_is_held_to_the_model(
    name: str, change: Change, complaint: str, tmp_path: Path
) -> None:
    test_keys_that_make_another_model_are_refused(name, change, complaint, tmp_path)


TABLE = "rope_freqs.weight"


@pytest.mark.parametrize(
    ("renamed", "complaint"),
    [
        ({"blk.2.attn_v.weight": "blk.2.attn_u.weight"}, r"it has a tensor blk\.2\.attn_u\.weight"),
        ({"blk.2.attn_v.weight": "blk.4.attn_v.weight"}, r"it has no tensor blk\.2\.attn_v\.weight"),
        ({"blk.3.layer_output_scale.weight": "blk.3.layer_output_scale.bias"}, r"it has a tensor blk\.3\.layer_outp"),
        ({"blk.0.inp_gate.weight": "blk.0.attn_q.scale"}, r"it has a tensor blk\.0\.attn_q\.scale"),
        ({"blk.0.inp_gate.weight": "blk.0.ffn_gate_inp.weight"}, r"it has a tensor blk\.0\.ffn_gate_inp\.weight"),
        ({"per_layer_token_embd.weight": "output.weight"}, r"it has no tensor per_layer_token_embd\.weight"),
        ({TABLE: "rope_factors_long.weight"}, r"it has a tensor rope_factors_long\.weight|it has no tensor rope_freqs"),
    ],
)
def test_layers_with_other_tensors_are_refused(renamed: dict[str, str], complaint: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, DECODERS["gemma4"], renamed=renamed)
    with pytest.raises(EngineError, match=complaint):
        check(header.read(path), DECODERS["gemma4"], path)


@pytest.mark.parametrize(
    ("renamed", "complaint"),
    [
        # llama.cpp does without each of these.
        ({"blk.1.ffn_norm.bias": "blk.1.ffn_norm.scale"}, r"it has no tensor blk\.1\.ffn_norm\.bias"),
        ({"blk.1.ffn_norm.weight": "blk.1.other.weight"}, r"it has no tensor blk\.1\.ffn_norm\.weight"),
        ({"blk.0.ffn_norm.bias": "blk.1.attn_q.bias"}, r"it has no tensor blk\.0\.ffn_norm\.bias"),
        ({"blk.0.attn_norm.bias": "blk.0.attn_q_norm.weight"}, r"it has no tensor blk\.0\.attn_norm\.bias"),
        ({"output_norm.bias": "blk.0.attn_k_norm.weight"}, r"it has a tensor blk\.0\.attn_k_norm\.weight"),
    ],
)
def test_a_layer_norm_without_its_tensors_is_refused(renamed: dict[str, str], complaint: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, DECODERS["stablelm"], renamed=renamed)
    with pytest.raises(EngineError, match=complaint):
        check(header.read(path), DECODERS["stablelm"], path)


def test_a_bias_on_a_norm_that_has_none_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, DECODERS["qwen2"], renamed={"blk.1.attn_q.bias": "blk.1.attn_norm.bias"})
    with pytest.raises(EngineError, match="it has biases on attn_k, attn_norm, attn_q, attn_v, unlike the model"):
        check(header.read(path), DECODERS["qwen2"], path)


@pytest.mark.parametrize("turned", [None, 3, 5, 15])
def test_a_table_of_other_pairs_is_refused(turned: int | None, tmp_path: Path) -> None:
    path = file_of(tmp_path, gemma4(turned=turned))
    with pytest.raises(EngineError, match=r"rope_freqs\.weight holds other factors than the model's rope"):
        check(header.read(path), DECODERS["gemma4"], path)


def _layers(change: Callable[[int, Layer], Mapping[str, Any]]) -> Callable[[Decoder], Decoder]:
    """Change layers, each by its index and what it was."""

    def apply(decoder: Decoder) -> Decoder:
        found = [msgspec.structs.replace(layer, **change(index, layer)) for index, layer in enumerate(decoder.layers)]
        return msgspec.structs.replace(decoder, **arranged(found))

    return apply


def _mixers(**changes: Callable[[int, Attention], object]) -> Callable[[Decoder], Decoder]:
    def change(index: int, layer: Layer) -> Mapping[str, Any]:
        mixer = layer.mixer
        assert isinstance(mixer, Attention)
        found = {name: value(index, mixer) for name, value in changes.items()}
        return {"mixer": msgspec.structs.replace(mixer, **found)}

    return _layers(change)


MODELS: dict[str, tuple[str, Callable[[Decoder], Decoder], str]] = {
    "another source of keys": (
        "gemma4",
        _mixers(kv_layer=lambda index, each: 0 if index == 4 else each.kv_layer),
        "layer 4 of its architecture reads the keys of layer 2, the model's another's",
    ),
    "keys shared in the middle": (
        "gemma4",
        _mixers(
            kv_layer=lambda index, each: {2: 0, 4: UNSET}.get(index, each.kv_layer),
            v_norm=lambda index, each: True,
        ),
        "layer 2 of its architecture has keys of its own, the model's another's",
    ),
    "keys not shared": (
        "gemma4",
        _mixers(kv_layer=lambda index, each: UNSET, v_norm=lambda index, each: True),
        "shared_kv_layers is 2, the model's is 0",
    ),
    "v not normed": ("gemma4", _mixers(v_norm=lambda index, each: UNSET), "norms of v, the model has none in a layer"),
    "other windows": (
        "gemma4: scores",
        _mixers(window=lambda index, each: None),
        "layers differ in what those of its architecture have alike|reads the keys of",
    ),
    "no windows": (
        ONE_HEAD,
        _mixers(window=lambda index, each: None),
        "its architecture has layers with a window and layers without, the model one kind",
    ),
    "windows everywhere": (ONE_HEAD, _mixers(window=lambda index, each: WINDOW), "the model one kind"),
    "sizes by another rule": (
        ONE_HEAD,
        _mixers(head_dim=lambda index, each: 32 if index == 2 else each.head_dim),
        "layers differ in what those of its architecture have alike",
    ),
    "more heads in a layer": (
        ONE_HEAD,
        _mixers(n_heads=lambda index, each: 8 if index == 2 else each.n_heads),
        "layers differ in what those of its architecture have alike",
    ),
    "pairs that stay in layers with a window": (
        ONE_HEAD,
        _mixers(rope=lambda index, each: rope(dim=16, scaling=ProportionalScaling(4))),
        "its architecture scales no rope but by a table, in layers without window",
    ),
    "a scaled rope": (
        ONE_HEAD,
        _mixers(rope=lambda index, each: each.rope if each.window else rope(1e6, scaling=LLAMA3)),
        "its architecture scales no rope but by a table",
    ),
    "a layer without rope": (
        ONE_HEAD,
        _mixers(rope=lambda index, each: each.rope if each.window else None),
        "the rope's base of layer 1 is 1000000.0, the model's is None",
    ),
    "a layer not scaled": (
        "gemma4",
        _layers(lambda index, layer: {"scaled": UNSET if index == 3 else True}),
        r"it has a tensor blk\.3\.layer_output_scale\.weight",
    ),
    "a layer scaled": (
        UNTIED,
        _layers(lambda index, layer: {"scaled": True if index == 3 else UNSET}),
        r"it has no tensor blk\.3\.layer_output_scale\.weight",
    ),
    "no inputs": ("gemma4", _layers(lambda index, layer: {"inputs": UNSET}), "per_layer_input is 32, the model's is 0"),
    "inputs of layers": ("llama", _layers(lambda index, layer: {"inputs": 16}), "the inputs of layers of its archit"),
    "scaled layers": ("llama", _layers(lambda index, layer: {"scaled": True}), "the scale of layers of its archit"),
    "norms of v": ("llama", _mixers(v_norm=lambda index, each: True), "the norm of v of its architecture is False"),
    "pairs that stay": (
        "llama",
        _mixers(rope=lambda index, each: rope(scaling=ProportionalScaling(4))),
        "the rotation of the first pairs alone of its architecture is False",
    ),
    "convolutions": (
        "gemma4",
        _layers(lambda index, layer: {"mixer": Convolution(length=4)} if index == 1 else {}),
        "layers differ in what those of its architecture have alike",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_whose_layers_differ_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    name, change, complaint = MODELS[case]
    path = file_of(tmp_path, DECODERS[name])
    with pytest.raises(EngineError, match=complaint):
        check(header.read(path), change(DECODERS[name]), path)


def test_more_layers_than_llama_cpp_allows(tmp_path: Path) -> None:
    decoder = msgspec.structs.replace(DECODERS["llama"], n_layers=513)
    path = file_of(tmp_path, decoder)
    with pytest.raises(EngineError, match=r"it has 513 layers, llama\.cpp allows 512"):
        check(header.read(path), decoder, path)


def test_a_missing_embedding_is_refused(tmp_path: Path) -> None:
    decoder = DECODERS["llama"]
    layout = place(decoder, "f32")
    rest = Layout(layout.tensors[:1], layout.canonical, ())
    path = tmp_path / "model.gguf"
    renamed = msgspec.structs.replace(decoder, n_vocab=127)
    path.write_bytes(encoding.encode(metadata(Model("tiny", renamed, "f32"), "f32"), rest) + bytes(layout.data_bytes))
    with pytest.raises(EngineError, match=r"token_embd\.weight has shape \(64, 128\)"):
        check(header.read(path), renamed, path)
