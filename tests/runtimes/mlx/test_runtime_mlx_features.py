"""The MLX runtime against the reference for every feature that a decoder can have, and against mlx-lm's own files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
import variants
from decoders import LFM2, LFM3, QWEN3_5, Positions, RandomWeights, changed, describe
from msgspec import UNSET
from numpy.typing import NDArray
from variants import nmse, token_ids

from edgepack.bundle.decoder import Convolution, Decoder, Temperature
from edgepack.bundle.rope import LinearScaling, Llama3Scaling, LongRopeScaling, Rope, YarnScaling
from edgepack.errors import EngineError
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Weights, blocks
from edgepack_packager.proof.execution import ReadBack
from edgepack_packager.targets import Model
from edgepack_packager.targets import find as find_target

POSITIONS = 300

ROPE = Rope(theta=10000.0, dim=16)
FAR = Rope(theta=1000000.0, dim=16)
LINEAR = Rope(theta=1000000.0, dim=16, scaling=LinearScaling(8.0))
LLAMA3 = Rope(theta=500000.0, dim=16, scaling=Llama3Scaling(8.0, 1.0, 4.0, 64))
YARN = YarnScaling(8.0, 64, beta_fast=4.0, magnitude=1.2)
LOCAL = Positions(ROPE, window=24)
# The magnitude of a context that was stretched from 64 to 512.
STRETCH = 1.5**0.5

GEMMA: dict[str, Any] = {"activation": "gelu_tanh", "norms": "both", "embedding_scale": 8.0, "wide": True}


def longrope(dim: int, steepness: float, magnitude: float) -> Rope:
    factors = tuple(1.0 + steepness * i * i for i in range(dim // 2))
    return Rope(theta=10000.0, dim=dim, scaling=LongRopeScaling(factors, magnitude, original_context=64))


@dataclass(frozen=True)
class Case:
    """A decoder, the type of mlx-lm that its payload names, and a fault: fields that make it another model."""

    fields: dict[str, Any]
    kind: str
    fault: dict[str, Any]


CASES = {
    "one window": Case({"pattern": (LOCAL,)}, "phi3", {"pattern": (Positions(ROPE, 25),)}),
    "alternating windows": Case(
        {"pattern": (LOCAL, Positions(ROPE)), "n_layers": 4}, "llama", {"pattern": (Positions(ROPE), LOCAL)}
    ),
    "two ropes": Case(
        {"pattern": (*[LOCAL] * 5, Positions(FAR)), "n_layers": 6, **GEMMA, "qk_norm": "head"},
        "gemma3_text",
        {"pattern": (*[LOCAL] * 5, Positions(ROPE))},
    ),
    "linear on global layers": Case(
        {
            "pattern": (*[LOCAL] * 2, Positions(LINEAR)),
            "n_layers": 5,
            **GEMMA,
            "qk_norm": "head",
            "attention_scale": 0.2,
        },
        "gemma3_text",
        {"pattern": (*[Positions(LINEAR, 24)] * 2, Positions(LINEAR))},
    ),
    "softcap of scores": Case({"attention_softcap": 4.0}, "edgepack", {"attention_softcap": None}),
    "softcap of logits": Case({"logits_softcap": 6.0}, "edgepack", {"logits_softcap": 6.1}),
    "softcaps and windows": Case(
        {
            "pattern": (LOCAL, Positions(ROPE)),
            "n_layers": 4,
            **GEMMA,
            "attention_softcap": 4.0,
            "logits_softcap": 6.0,
            "attention_scale": 24**-0.5,
        },
        "gemma2",
        {"attention_softcap": 4.1},
    ),
    "llama3 rope": Case({"rope": LLAMA3}, "llama", {"pattern": (Positions(Rope(theta=500000.0, dim=16)),)}),
    "longrope": Case({"rope": longrope(16, 0.05, STRETCH)}, "phi3", {"pattern": (Positions(longrope(16, 0.05, 1.0)),)}),
    "steeper longrope": Case(
        {"rope": longrope(16, 0.5, STRETCH)}, "phi3", {"pattern": (Positions(longrope(16, 0.05, STRETCH)),)}
    ),
    "partial longrope": Case(
        {"rope": longrope(12, 0.05, STRETCH)}, "phi3", {"pattern": (Positions(longrope(12, 0.05, 1.0)),)}
    ),
    "partial rope": Case({"rope": Rope(10000.0, 12)}, "phi3", {"pattern": (Positions(Rope(10000.0, 10)),)}),
    "layers without rope": Case(
        {"pattern": (*[Positions(ROPE)] * 3, Positions(None)), "n_layers": 4},
        "smollm3",
        {"pattern": (Positions(ROPE),)},
    ),
    "norms of q and k": Case({"qk_norm": "head", "tied": False}, "qwen3", {"qk_norm": None}),
    "norms after the blocks alone": Case({"norms": "after"}, "edgepack", {"norms": "both"}),
    "a norm of all heads": Case({"qk_norm": "width", "tied": False}, "edgepack", {"qk_norm": "head"}),
    "norms of rotated q and k": Case({"qk_norm": "rotated"}, "hunyuan_v1_dense", {"qk_norm": "head"}),
    "LayerNorms": Case(
        {"norm": "layer", "tied": False, "qkv_bias": True, "rope": Rope(10000.0, 4)}, "stablelm", {"norm": UNSET}
    ),
    "LayerNorms of rows whose variance is not far from epsilon": Case(
        {"norm": "layer", "norm_eps": 1e-2, "tied": False}, "stablelm", {"norm_eps": 1e-3}
    ),
    "LayerNorms around the blocks, RMSNorms of heads": Case(
        {"norm": "layer", "norms": "both", "qk_norm": "head"}, "edgepack", {"norm": UNSET}
    ),
    "residual scale": Case({"residual_scale": 0.22}, "granite", {"residual_scale": 0.23}),
    "logits scale": Case({"logits_scale": 0.125}, "granite", {"logits_scale": 1.0}),
    "all scales": Case(
        {
            "attention_scale": 0.2,
            "embedding_scale": 3.3,
            "logits_scale": 0.3,
            "residual_scale": 0.6,
            "output_bias": True,
            "qkv_bias": True,
            "tied": False,
        },
        "granite",
        {"attention_scale": None},
    ),
    "scales without rope": Case(
        {"pattern": (Positions(None),), "residual_scale": 0.6, "embedding_scale": 3.3},
        "granitemoehybrid",
        {"pattern": (Positions(ROPE),)},
    ),
    "norms after the blocks and of all heads": Case(
        {"norms": "after", "qk_norm": "width", "tied": False}, "olmo2", {"norms": "both"}
    ),
    "yarn on the layers without a window": Case(
        {
            "pattern": (*[LOCAL] * 3, Positions(Rope(10000.0, 16, YARN))),
            "n_layers": 6,
            "norms": "after",
            "qk_norm": "width",
            "tied": False,
        },
        "olmo3",
        {"pattern": (LOCAL, LOCAL, LOCAL, Positions(ROPE))},
    ),
    "norms after the blocks and of each head": Case(
        {"norms": "after", "qk_norm": "head", "rope": LLAMA3}, "exaone4", {"norms": "before"}
    ),
    "rope where there is a window": Case(
        {
            "pattern": (*[Positions(LLAMA3, 24)] * 2, Positions(None)),
            "n_layers": 5,
            "norms": "after",
            "qk_norm": "head",
            "tied": False,
        },
        "exaone4",
        {"pattern": (*[Positions(LLAMA3, 24)] * 2, Positions(LLAMA3))},
    ),
    "bias of q, k and v beside a head dimension": Case(
        {"qkv_bias": True, "mlp_bias": True, "head_dim": 32, "tied": False}, "seed_oss", {"mlp_bias": False}
    ),
    "convolutions": Case(LFM2, "lfm2", {"qk_norm": None}),
    "convolutions with biases": Case(
        {**LFM2, "convolution": Convolution(length=3, bias=True)}, "lfm2", {"convolution": Convolution(length=3)}
    ),
    "convolutions and a head": Case({**LFM2, "tied": False}, "edgepack", {"qk_norm": None}),
    "gates of heads between convolutions": Case(LFM3, "edgepack", {"gated": False}),
    "delta rules": Case(QWEN3_5, "edgepack", {"gated": False}),
    "temperature": Case({"temperature": Temperature(0.3, 64)}, "ministral3", {"temperature": Temperature(0.3, 65)}),
    "temperature and yarn": Case(
        {
            "pattern": (*[Positions(Rope(10000.0, 16, YARN), 24)] * 2, Positions(Rope(10000.0, 16, YARN))),
            "n_layers": 4,
            "temperature": Temperature(0.3, 64),
        },
        "ministral3",
        {"temperature": None},
    ),
    "temperature from elsewhere than yarn": Case(
        {"rope": Rope(10000.0, 16, YARN), "temperature": Temperature(0.3, 65)}, "edgepack", {"temperature": None}
    ),
    "yarn": Case(
        {"rope": Rope(10000.0, 16, YARN)},
        "llama",
        {"pattern": (Positions(Rope(10000.0, 16, msgspec.structs.replace(YARN, magnitude=1.0))),)},
    ),
    "yarn from within a pair": Case(
        {"rope": Rope(10000.0, 16, msgspec.structs.replace(YARN, whole=False))},
        "edgepack",
        {"pattern": (Positions(Rope(10000.0, 16, YARN)),)},
    ),
    "post norms": Case({"norms": "both"}, "edgepack", {"norms": "before"}),
    "gelu": Case({"activation": "gelu_tanh"}, "edgepack", {"activation": "silu"}),
    "bias of q, k and v": Case({"qkv_bias": True}, "qwen2", {"qkv_bias": False}),
    "bias of o": Case({"output_bias": True}, "edgepack", {"output_bias": False}),
    "all biases": Case(
        {"qkv_bias": True, "output_bias": True, "mlp_bias": True, "tied": False}, "llama", {"mlp_bias": False}
    ),
    "other head dimension": Case(
        {"head_dim": 32, "n_heads": 3, "n_kv_heads": 1}, "llama", {"attention_scale": 16**-0.5}
    ),
    "scale of embeddings": Case({"embedding_scale": 3.3}, "granite", {"embedding_scale": 3.4}),
    "heads of 256": Case(
        {
            "head_dim": 256,
            "n_kv_heads": 1,
            "pattern": (Positions(Rope(10000.0, 256), 24), Positions(Rope(1000000.0, 256))),
            **GEMMA,
            "qk_norm": "head",
        },
        "gemma3_text",
        {"pattern": (Positions(Rope(10000.0, 256), 24), Positions(Rope(1010000.0, 256)))},
    ),
}


def pack(weights: Weights, folder: Path, scheme: str) -> Path:
    """Write a variant; what the writer reports is what was measured from the decoder alone."""
    folder.mkdir()
    target = find_target("mlx")
    writer = target.open(folder, Model("tiny", weights.decoder, weights.dtype), scheme)
    for name, start, stop in blocks(weights.decoder):
        writer.write(name, start, weights.rows(name, start, stop))
    assert writer.finish() == target.measure(weights.decoder, weights.dtype, scheme)
    return folder


start = partial(variants.start, "mlx")


def run(folder: Path, decoder: Decoder, ids: Sequence[int], **options: Any) -> NDArray[np.float32]:
    session = start(folder, decoder, **options)
    logits = session.forward_all(ids)
    session.close()
    return logits


def expected_of(folder: Path, decoder: Decoder, ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the reference's logits of what a folder holds."""
    return reference.logits(ReadBack(decoder, find_target("mlx").read(folder, decoder)), ids)


def model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])


@pytest.mark.parametrize("name", CASES)
def test_f32_variant_is_the_reference_and_no_other_model(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    weights = RandomWeights(describe(**case.fields), seed=3)
    decoder, ids = weights.decoder, token_ids(weights.decoder, POSITIONS)
    expected = reference.logits(weights, ids)
    folder = pack(weights, tmp_path / "f32", "f32")
    assert model_type(folder) == case.kind
    found = run(folder, decoder, ids, chunk=512)
    assert nmse(found, expected) <= 1e-10
    assert nmse(run(folder, decoder, ids, chunk=7), expected) <= 1e-10
    other = RandomWeights(changed(decoder, **case.fault), seed=3)
    other.tensors |= {name: values for name, values in weights.tensors.items() if name in other.tensors}
    assert nmse(found, reference.logits(other, ids)) >= 1e-6


SMALLER = [
    (name, scheme)
    for name in CASES
    for scheme in ("f16", "bf16", "8bit", "4bit", "4bit_mixed")
    if scheme != "f16" or "wide" not in CASES[name].fields
]


@pytest.mark.parametrize(("name", "scheme"), SMALLER)
def test_smaller_variant_is_the_reference_of_its_own_weights(name: str, scheme: str, tmp_path: Path) -> None:
    weights = RandomWeights(describe(**CASES[name].fields), seed=3, dtype="bf16")
    folder = pack(weights, tmp_path / scheme, scheme)
    ids = token_ids(weights.decoder, 100)
    assert nmse(run(folder, weights.decoder, ids), expected_of(folder, weights.decoder, ids)) <= 1e-10


# Windows and the cache -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["alternating windows", "softcaps and windows"])
def windowed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Decoder, NDArray[np.float32]]:
    """A packed decoder, with mlx's fused attention and with explicit scores; the reference's logits of 300 ids."""
    weights = RandomWeights(describe(**CASES[request.param].fields), seed=4)
    folder = pack(weights, tmp_path_factory.mktemp("windowed") / "f32", "f32")
    return folder, weights.decoder, reference.logits(weights, token_ids(weights.decoder, POSITIONS))


@pytest.mark.parametrize("chunk", [1, 5, 23, 24, 25, 64])
def test_chunks_cross_the_window_anywhere(windowed: tuple[Path, Decoder, NDArray[np.float32]], chunk: int) -> None:
    folder, decoder, expected = windowed
    ids = token_ids(decoder, 80)
    assert nmse(run(folder, decoder, ids, chunk=chunk), expected[:80]) <= 1e-10


def test_what_follows_steps_and_rewinds_is_what_it_was(windowed: tuple[Path, Decoder, NDArray[np.float32]]) -> None:
    folder, decoder, expected = windowed
    ids = token_ids(decoder, POSITIONS)
    session = start(folder, decoder, chunk=16)
    session.forward(ids[:100])
    assert nmse(np.stack([session.forward([token]) for token in ids[100:130]]), expected[100:130]) <= 1e-10
    for length in (90, 23, 0):
        session.forward(ids[:7])
        kept = session.rewind(length)
        assert kept == session.length <= length
        assert nmse(session.forward_all(ids[kept:140]), expected[kept:140]) <= 1e-10
    session.close()


def test_a_long_context_keeps_two_windows(windowed: tuple[Path, Decoder, NDArray[np.float32]]) -> None:
    folder, decoder, expected = windowed
    ids = token_ids(decoder, POSITIONS)
    session, again = start(folder, decoder, chunk=16), start(folder, decoder, chunk=16)
    session.forward(ids[:200])
    for back in (1, 24, 10):
        assert session.rewind(session.length - back) == session.length
        state = session.snapshot()
        again.restore(state)
        assert again.snapshot() == state
        length = session.length
        found = session.forward_all(ids[length : length + 20])
        assert np.array_equal(found, again.forward_all(ids[length : length + 20]))
        assert nmse(found, expected[length : length + 20]) <= 1e-10
    assert session.rewind(30) == session.length == 0
    whole = start(folder, decoder, context=64, chunk=16)
    with pytest.raises(ValueError, match="snapshot"):
        whole.restore(state)
    for each in (session, again, whole):
        each.close()


def test_wide_decoder_gets_a_cache_of_its_range(tmp_path: Path) -> None:
    """Values beyond 65504, the largest f16, pass through the cache that f32 weights get when 16 bits are asked for."""
    for wide in (True, False):
        weights = RandomWeights(describe(wide=wide, norms="both"), seed=5)
        for layer in range(weights.decoder.n_layers):
            weights.tensors[f"layers.{layer}.attention.v"] *= np.float32(2.0**17)
        folder = pack(weights, tmp_path / f"wide-{wide}", "f32")
        ids = token_ids(weights.decoder, 20)
        found = run(folder, weights.decoder, ids, kv_cache="f16")
        assert np.isfinite(found).all() == wide
        if wide:
            assert nmse(found, reference.logits(weights, ids)) <= 1e-3


def test_f16_weights_of_a_wide_decoder_are_refused(tmp_path: Path) -> None:
    weights = RandomWeights(describe())
    folder = pack(weights, tmp_path / "f16", "f16")
    with pytest.raises(EngineError, match=r"f16: the weights are F16, and the model's activations exceed its range"):
        start(folder, msgspec.structs.replace(weights.decoder, wide=True))


@pytest.mark.parametrize(("name", "field"), [
    ("one window", "sliding_window"),
    ("two ropes", "rope_local_base_freq"),
    ("linear on global layers", "rope_scaling"),
    ("softcaps and windows", "attn_logit_softcapping"),
    ("softcaps and windows", "query_pre_attn_scalar"),
    ("softcap of logits", "final_logit_softcapping"),
    ("steeper longrope", "rope_scaling"),
    ("partial rope", "partial_rotary_factor"),
    ("layers without rope", "no_rope_layers"),
    ("gelu", "hidden_act"),
    ("all scales", "attention_multiplier"),
    ("all scales", "embedding_multiplier"),
    ("all scales", "logits_scaling"),
    ("all scales", "residual_multiplier"),
    ("scales without rope", "position_embedding_type"),
    ("yarn on the layers without a window", "rope_local_base_freq"),
    ("rope where there is a window", "sliding_window_pattern"),
    ("bias of q, k and v beside a head dimension", "attention_out_bias"),
    ("LayerNorms", "layer_norm_eps"),
    ("LayerNorms", "use_qkv_bias"),
    ("LayerNorms", "partial_rotary_factor"),
    ("LayerNorms", "use_parallel_residual"),
    ("LayerNorms", "qk_layernorm"),
    ("LayerNorms around the blocks, RMSNorms of heads", "layer_norm_eps"),
    ("temperature and yarn", "rope_parameters"),
    ("yarn", "rope_scaling"),
])  # fmt: skip
def test_field_that_mlx_lm_would_miss_is_missed_here(name: str, field: str, tmp_path: Path) -> None:
    weights = RandomWeights(describe(**CASES[name].fields))
    folder = pack(weights, tmp_path / "v", "f32")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != field}))
    with pytest.raises(EngineError, match=rf"config\.json: {field} is None, the manifest says"):
        start(folder, weights.decoder)


# In mlx-lm -------------------------------------------------------------------------------------------------------

NATIVE = [name for name, case in CASES.items() if case.kind != "edgepack"]

# Where mlx-lm's own file stops being exact: at the window, which these files do not have.
EXACT_UP_TO = {"one window": 24, "softcaps and windows": 24}


def native(folder: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits of mlx-lm's own model file."""
    from mlx_lm.utils import load_model

    with mx.stream(mx.cpu):
        return np.array(load_model(folder)[0](mx.array([ids]))[0].astype(mx.float32))


@pytest.mark.parametrize("name", NATIVE)
def test_mlx_lm_computes_the_same_model(name: str, tmp_path: Path) -> None:
    weights = RandomWeights(describe(**CASES[name].fields), seed=6)
    folder = pack(weights, tmp_path / "f32", "f32")
    ids = token_ids(weights.decoder, POSITIONS)[: EXACT_UP_TO.get(name, POSITIONS)]
    assert nmse(native(folder, ids), reference.logits(weights, ids)) <= 1e-9


@pytest.mark.parametrize("name", EXACT_UP_TO)
def test_mlx_lm_is_another_model_beyond_a_window_that_it_ignores(name: str, tmp_path: Path) -> None:
    weights = RandomWeights(describe(**CASES[name].fields), seed=6)
    folder = pack(weights, tmp_path / "f32", "f32")
    ids = token_ids(weights.decoder, POSITIONS)
    expected = reference.logits(weights, ids)
    assert nmse(native(folder, ids), expected) >= 1e-3
    assert nmse(run(folder, weights.decoder, ids), expected) <= 1e-10


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("scheme", ["bf16", "8bit", "4bit", "4bit_mixed"])
def test_mlx_lm_loads_every_scheme(name: str, scheme: str, tmp_path: Path) -> None:
    """In 16 bits mlx-lm and the runtime round the same steps: one is no further from the reference than the other."""
    weights = RandomWeights(describe(**CASES[name].fields), seed=6, dtype="bf16")
    folder = pack(weights, tmp_path / scheme, scheme)
    ids = token_ids(weights.decoder, 24)
    expected = expected_of(folder, weights.decoder, ids)
    ours, theirs = (
        nmse(run(folder, weights.decoder, ids, kv_cache="f16"), expected),
        nmse(native(folder, ids), expected),
    )
    assert theirs <= 0.02
    assert ours <= 1.5 * theirs


def test_mlx_lm_refuses_what_it_cannot_express(tmp_path: Path) -> None:
    folder = pack(RandomWeights(describe(qkv_bias=True, qk_norm="head")), tmp_path / "f32", "f32")
    with pytest.raises(ValueError, match="Model type edgepack not supported"):
        native(folder, [1])
