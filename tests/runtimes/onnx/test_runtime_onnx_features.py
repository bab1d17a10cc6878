"""Every feature of a decoder in onnxruntime: exact against the reference, and audible when it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from decoders import LFM2, LFM3, QWEN3_5, Positions, RandomWeights, changed, describe
from msgspec import UNSET
from variants import nmse

from edgepack.bundle.decoder import Convolution, Decoder, Temperature
from edgepack.bundle.rope import LinearScaling, LongRopeScaling, Rope, YarnScaling
from edgepack.errors import EngineError
from edgepack.runtime import Options, Session, find
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32, Weights, blocks
from edgepack_packager.proof.execution import ReadBack
from edgepack_packager.targets import Model
from edgepack_packager.targets import find as find_target
from edgepack_packager.text.side import Text
from edgepack_runtimes.onnx.check import check

# Longer than any window here, and not a multiple of one.
POSITIONS = 300
CONTEXT = 320


def rope(theta: float = 10000.0, dim: int = 16, scaling: Any = None) -> Rope:
    return Rope(theta=theta, dim=dim, scaling=scaling)


def longrope(dim: int, original: int, slope: float, magnitude: float = 1.19) -> Rope:
    """Factors that grow with the wavelength, as Phi's do; short ones where ``original`` is the context or more."""
    factors = tuple(1 + slope * pair for pair in range(dim // 2))
    return rope(dim=dim, scaling=LongRopeScaling(factors, magnitude, original))


def pattern(*kinds: tuple[Rope | None, int | None]) -> dict[str, Any]:
    return {"pattern": tuple(Positions(*kind) for kind in kinds)}


LOCAL = (rope(), 24)
GLOBAL = (rope(), None)
YARN = YarnScaling(8.0, 64, beta_fast=4.0, magnitude=1.2)
FAR = (rope(1e6, scaling=LinearScaling(8.0)), None)
GEMMA = {"n_layers": 7, "norms": "both", "activation": "gelu_tanh", "embedding_scale": 8.0, "wide": True}
GEMMA2 = {**GEMMA, "n_layers": 4, "head_dim": 32, "attention_softcap": 4.0, "logits_softcap": 6.0}
WIDE_LOCAL, WIDE_GLOBAL = (rope(dim=32), 24), (rope(dim=32), None)
WHOLE, PART = (rope(dim=32), None), (rope(1e6, dim=24), 24)

# Each feature: the decoder that has it, and the changes to its description that a graph might make by mistake.
FEATURES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "a window": (pattern(LOCAL), [pattern((rope(), window)) for window in (None, 23, 25)]),
    "alternating windows": (
        {**pattern(LOCAL, GLOBAL), "n_layers": 4},
        [pattern(GLOBAL, LOCAL), pattern(LOCAL, LOCAL), pattern(GLOBAL, GLOBAL)],
    ),
    "five windows to one": (
        {**pattern(*[LOCAL] * 5, GLOBAL), "n_layers": 7},
        [pattern(GLOBAL, *[LOCAL] * 5), pattern(*[LOCAL] * 4, GLOBAL, LOCAL), pattern(LOCAL)],
    ),
    "a window beyond the context": (pattern((rope(), 2**32 + 24)), [pattern(LOCAL)]),
    "an attention softcap": ({"attention_softcap": 4.0}, [{"attention_softcap": None}, {"attention_softcap": 4.1}]),
    "a logits softcap": ({"logits_softcap": 6.0}, [{"logits_softcap": None}, {"logits_softcap": 6.1}]),
    "an attention scale": ({"attention_scale": 0.4}, [{"attention_scale": None}]),
    "an embedding scale": ({"embedding_scale": 7.5}, [{"embedding_scale": 1.0}, {"embedding_scale": 7.6}]),
    "two ropes": (
        {**pattern(LOCAL, FAR), "n_layers": 4},
        [pattern(LOCAL, GLOBAL), pattern((FAR[0], 24), FAR), pattern((FAR[0], 24), GLOBAL)],
    ),
    "short longrope": ({"rope": longrope(16, CONTEXT, 0.02)}, [{"rope": longrope(16, CONTEXT, 0.02, magnitude=1.0)}]),
    "long longrope": ({"rope": longrope(16, 64, 0.7)}, [{"rope": longrope(16, 64, 0.02)}, {"rope": rope()}]),
    "12 of 16 rotate": ({"rope": rope(dim=12)}, [{"rope": rope()}]),
    "24 of 32 rotate": ({"head_dim": 32, "rope": rope(dim=24)}, [{"rope": rope(dim=32)}]),
    "16 of 32 rotate": ({"head_dim": 32, "rope": rope()}, [{"rope": rope(dim=32)}]),
    "96 of 128 rotate": (
        {"head_dim": 128, "tied": False, "n_layers": 3, "rope": longrope(96, 64, 0.7)},
        [{"rope": longrope(128, 64, 0.7)}, {"rope": longrope(96, 64, 0.7, magnitude=1.0)}],
    ),
    "one rope within attention and one before it": (
        {**pattern(WHOLE, PART), "head_dim": 32, "n_layers": 4},
        [pattern(PART, WHOLE), pattern(WHOLE, (rope(1e6, dim=32), 24))],
    ),
    "norms of q and k": ({"qk_norm": "head", "norm_eps": 1e-2}, [{"qk_norm": None}, {"norm_eps": 1e-3}]),
    "norms of q and k, heads of 24": ({"qk_norm": "head", "head_dim": 24}, [{"qk_norm": None}]),
    "norms after a block": ({"norms": "both"}, [{"norms": "before"}]),
    "norms after a block alone": ({"norms": "after", "norm_eps": 1e-2}, [{"norm_eps": 1e-3}]),
    "a norm of all heads": ({"qk_norm": "width"}, [{"qk_norm": None}, {"qk_norm": "head"}]),
    "norms of rotated q and k": ({"qk_norm": "rotated", "tied": False}, [{"qk_norm": "head"}]),
    "LayerNorms": (
        {"norm": "layer", "norm_eps": 1e-2, "tied": False, "qkv_bias": True, "rope": rope(dim=4)},
        [{"norm": UNSET}, {"norm_eps": 1e-3}],
    ),
    "LayerNorms around the blocks, RMSNorms of heads": (
        {"norm": "layer", "norms": "both", "qk_norm": "head"},
        [{"norm": UNSET}, {"norms": "before"}],
    ),
    "LayerNorms after the blocks alone": ({"norm": "layer", "norms": "after"}, [{"norm": UNSET}]),
    "a residual scale": ({"residual_scale": 0.22}, [{"residual_scale": 1.0}, {"residual_scale": 0.23}]),
    "a logits scale": ({"logits_scale": 0.125}, [{"logits_scale": 1.0}]),
    "a logits scale and a softcap": ({"logits_scale": 2.0, "logits_softcap": 6.0}, [{"logits_scale": 1.0}]),
    "a temperature": (
        {"temperature": Temperature(0.3, 64)},
        [{"temperature": None}, {"temperature": Temperature(0.3, 65)}, {"temperature": Temperature(0.1, 64)}],
    ),
    "a temperature, its rope outside": (
        {"temperature": Temperature(0.3, 64), "rope": rope(dim=12)},
        [{"rope": rope()}],
    ),
    "yarn": (
        {"rope": rope(scaling=YARN)},
        [{"rope": rope()}, {"rope": rope(scaling=msgspec.structs.replace(YARN, magnitude=1.0))}],
    ),
    "gelu": ({"activation": "gelu_tanh"}, [{"activation": "silu"}]),
    "convolutions": (LFM2, [{"qk_norm": None}]),
    "gates of heads between convolutions": (LFM3, [{"gated": False}, {"norms": "before"}]),
    "convolutions with biases": (
        {**LFM2, "convolution": Convolution(length=3, bias=True)},
        [{"convolution": Convolution(length=3)}],
    ),
    "delta rules": (QWEN3_5, [{"gated": False}, {"rope": rope(dim=32)}]),
    "biases of q, k and v alone": ({"qkv_bias": True}, [{"qkv_bias": False}]),
    "no positions in every fourth layer": (
        {**pattern(GLOBAL, GLOBAL, GLOBAL, (None, None)), "n_layers": 5},
        [pattern(GLOBAL), pattern((None, None), GLOBAL, GLOBAL, GLOBAL)],
    ),
    "no positions at all": (pattern((None, None)), [pattern(GLOBAL)]),
    "heads wider than the model": ({"head_dim": 64}, [{"attention_scale": 0.25}]),
    "one head of keys and values": ({"n_kv_heads": 1, **pattern(LOCAL)}, [pattern(GLOBAL)]),
    "Gemma 2": (
        {**GEMMA2, **pattern(WIDE_LOCAL, WIDE_GLOBAL), "attention_scale": 0.2},
        [pattern(WIDE_GLOBAL, WIDE_LOCAL), {"attention_scale": None}, {"attention_softcap": None}],
    ),
    "Gemma 3": ({**GEMMA, **pattern(*[LOCAL] * 5, FAR), "qk_norm": "head"}, [pattern(LOCAL), pattern(FAR)]),
}
FAULTS = [(name, fault) for name, (_, faults) in FEATURES.items() for fault in faults]


def decoder_of(name: str, **changes: Any) -> Decoder:
    return describe(**{"context": CONTEXT, **FEATURES[name][0], **changes})


def faulty(decoder: Decoder, fault: dict[str, Any]) -> Decoder:
    changes = dict(fault)
    if "rope" in changes:
        changes["pattern"] = (Positions(changes.pop("rope")),)
    return changed(decoder, **changes)


def pack(folder: Path, weights: Weights, scheme: str = "f32", written: Decoder | None = None) -> Path:
    """Write a variant; ``written`` is what the target is told of the weights' decoder where that is not the truth."""
    decoder = written or weights.decoder
    text = Text(files={}, tokenizer={}, bos=None, add_bos=False, stops=(0,), chat_template=None)
    folder.mkdir(exist_ok=True)
    writer = find_target("onnx").open(folder, Model("tiny", decoder, "f32", text=text), scheme)
    for name, start, stop in blocks(decoder):
        writer.write(name, start, weights.rows(name, start, stop))
    writer.finish()
    return folder


def start(folder: Path, decoder: Decoder, chunk: int = 512) -> Session:
    return find("onnx").open(folder, decoder, Options(context=CONTEXT, threads=1, kv_cache="f32", chunk=chunk))


def run(folder: Path, decoder: Decoder, ids: list[int], chunk: int = 512) -> Float32:
    session = start(folder, decoder, chunk)
    found = session.forward_all(ids)
    session.close()
    return found


def token_ids(count: int = POSITIONS) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(1, 128, count)]


@pytest.mark.parametrize("name", FEATURES)
def test_f32_is_the_reference_in_any_chunks_and_f16_is_close(tmp_path: Path, name: str) -> None:
    weights, ids = RandomWeights(decoder_of(name)), token_ids()
    expected = reference.logits(weights, ids)
    pack(tmp_path / "f32", weights)
    for chunk in (512, 64, 1):
        assert nmse(run(tmp_path / "f32", weights.decoder, ids, chunk), expected) <= 1e-10
    pack(tmp_path / "f16", weights, "f16")
    reader = find_target("onnx").read(tmp_path / "f16", weights.decoder)
    halved = reference.logits(ReadBack(weights.decoder, reader), ids)
    reader.close()
    assert nmse(run(tmp_path / "f16", weights.decoder, ids), halved) <= 1e-10
    assert nmse(halved, expected) <= (1e-4 if weights.decoder.correcting else 1e-5)


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[f"{name}-{number}" for number, (name, _) in enumerate(FAULTS)])
def test_a_graph_of_another_description_is_far_from_the_reference(
    tmp_path: Path, name: str, fault: dict[str, Any]
) -> None:
    weights, ids = RandomWeights(decoder_of(name)), token_ids()
    written = faulty(weights.decoder, fault)
    pack(tmp_path, weights, written=written)
    assert nmse(run(tmp_path, written, ids), reference.logits(weights, ids)) > 1e-6


def _operator(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == name)


def take_root_mean_squares(model: onnx.ModelProto) -> None:
    node = _operator(model, "SkipLayerNormalization")
    node.op_type = "SkipSimplifiedLayerNormalization"
    del node.input[3]


def take_a_root_mean_square_first(model: onnx.ModelProto) -> None:
    node = _operator(model, "LayerNormalization")
    node.op_type = "SimplifiedLayerNormalization"
    del node.input[2]


def drop_a_bias(model: onnx.ModelProto) -> None:
    del _operator(model, "SkipLayerNormalization").input[3]


def drop_the_first_bias(model: onnx.ModelProto) -> None:
    del _operator(model, "LayerNormalization").input[2]


def read_the_bias_of_another(model: onnx.ModelProto) -> None:
    _operator(model, "SkipLayerNormalization").input[3] = "norm.bias"


def set_another_epsilon(model: onnx.ModelProto) -> None:
    node = _operator(model, "SkipLayerNormalization")
    next(each for each in node.attribute if each.name == "epsilon").f = 1e-5


@pytest.mark.parametrize(
    "edit",
    [
        take_root_mean_squares,
        take_a_root_mean_square_first,
        drop_a_bias,
        drop_the_first_bias,
        read_the_bias_of_another,
        set_another_epsilon,
    ],
)
def test_a_graph_with_other_norms_never_reaches_the_engine(
    edit: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    decoder = decoder_of("LayerNorms")
    pack(tmp_path, RandomWeights(decoder))
    check(tmp_path, decoder)
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    edit(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="is not the graph of this decoder"):
        check(tmp_path, decoder)


def test_heads_that_are_short_are_divided_by_what_transformers_divides_them_by(tmp_path: Path) -> None:
    """An epsilon is part of their squares: without it the shortest would be off by 4e-5 of themselves."""
    weights, ids = RandomWeights(decoder_of("delta rules"), gain=0.2), token_ids()
    expected = reference.logits(weights, ids)
    assert nmse(run(pack(tmp_path, weights), weights.decoder, ids), expected) <= 1e-11


@pytest.mark.parametrize("name", ["alternating windows", "Gemma 3", "one rope within attention and one before it"])
def test_a_rewind_across_windows_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    weights, ids = RandomWeights(decoder_of(name)), token_ids()
    expected = reference.logits(weights, ids)
    session = start(pack(tmp_path, weights), weights.decoder, chunk=40)
    session.forward([7] * POSITIONS)
    for kept in (0, 20, 24, 25, 150, 290):
        session.rewind(0)
        session.forward([*ids[:kept], *[7] * (POSITIONS - kept)])
        session.rewind(kept)
        assert nmse(session.forward_all(ids[kept:]), expected[kept:]) <= 1e-10
    session.close()


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4_mixed"])
@pytest.mark.parametrize("name", ["Gemma 2", "Gemma 3", "96 of 128 rotate", "biases of q, k and v alone", "LayerNorms"])
def test_a_quantised_graph_computes_with_the_numbers_that_were_written(tmp_path: Path, name: str, scheme: str) -> None:
    """Exactly so but for the engine's own rounding of activations, which is relative: it holds for large ones too."""
    weights, ids = RandomWeights(decoder_of(name)), token_ids(100)
    for tensor, values in weights.tensors.items():
        if tensor.endswith("mlp.norm"):
            weights.tensors[tensor] = values * np.float32(3e4 if weights.decoder.wide else 1)
    decoder = weights.decoder
    pack(tmp_path, weights, scheme)
    reader = find_target("onnx").read(tmp_path, decoder)
    expected = reference.logits(ReadBack(decoder, reader), ids)
    reader.close()
    assert 1e-10 < nmse(run(tmp_path, decoder, ids), expected) < 2e-2
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert nmse(run(tmp_path, decoder, ids), expected) <= 1e-10


@pytest.mark.oracle
@pytest.mark.parametrize("scheme", ["f32", "int4", "int4_mixed"])
@pytest.mark.parametrize("name", ["Gemma 2", "Gemma 3", "96 of 128 rotate", "no positions in every fourth layer"])
def test_genai_computes_the_same_logits_at_every_token(tmp_path: Path, name: str, scheme: str) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    decoder, prompt = decoder_of(name), token_ids(40)
    pack(tmp_path, RandomWeights(decoder), scheme)
    session = start(tmp_path, decoder)
    expected = session.forward(prompt)
    parameters = genai.GeneratorParams(genai.Model(str(tmp_path)))
    parameters.set_search_options(max_length=POSITIONS)
    generator = genai.Generator(genai.Model(str(tmp_path)), parameters)
    generator.append_tokens(np.array([prompt]))
    for token in token_ids(POSITIONS - len(prompt)):
        found = np.asarray(generator.get_logits()).reshape(-1, decoder.n_vocab)[-1]
        assert nmse(found, expected) < 1e-10
        generator.append_tokens(np.array([[token]]))
        expected = session.forward([token])
    session.close()
