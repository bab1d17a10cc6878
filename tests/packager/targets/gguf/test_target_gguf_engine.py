"""What the GGUF target writes is the same model: llama.cpp computes from it what the reference computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from decoders import Positions, RandomWeights, changed, describe
from gguf_decoders import (
    DECODERS,
    EXAONE4,
    FAR,
    FAR_LINEAR,
    GLOBAL,
    LINEAR,
    LOCAL,
    LONG,
    OTHER_TURNS,
    SHORT,
    WINDOW,
    YARN,
    rope,
)
from msgspec import UNSET
from variants import nmse

from edgepack import runtime
from edgepack.bundle.decoder import Attention, Decoder, Temperature, arranged
from edgepack.bundle.rope import ProportionalScaling, YarnScaling
from edgepack.errors import EngineMissingError
from edgepack.runtime import Hidden, Options, Session
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32, Weights, blocks
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf import GgufTarget

# Past many windows, and past the original context of the long rope.
LENGTH = 300
IDS: list[int] = np.random.default_rng(3).integers(0, 128, LENGTH).tolist()


def write(folder: Path, weights: Weights, scheme: str = "f32") -> Path:
    writer = GgufTarget().open(folder, Model("tiny", weights.decoder, weights.dtype), scheme)
    try:
        for tensor, start, stop in blocks(weights.decoder):
            writer.write(tensor, start, weights.rows(tensor, start, stop))
        writer.finish()
    finally:
        writer.abort()
    return folder


@contextmanager
def opened(folder: Path, decoder: Decoder, chunk: int = 512) -> Iterator[Session]:
    options = Options(context=decoder.context, threads=1, kv_cache="f32", chunk=chunk)
    try:
        session = runtime.find("gguf").open(folder, decoder, options)
    except EngineMissingError as error:
        pytest.skip(str(error))
    yield session
    session.close()


def evaluated(session: Session) -> Float32:
    """What a model gives after each of ``IDS``: logits, or without a head states."""
    return session.hidden(IDS) if isinstance(session, Hidden) else session.forward_all(IDS)


class WithoutMlps(RandomWeights):
    """A model whose MLPs add nothing, so that ggml's rounded gelu is not heard."""

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return super().rows(name, start, stop) * np.float32(not name.endswith(("mlp.down", "inputs.out")))


def exact(decoder: Decoder) -> RandomWeights:
    """Weights with which llama.cpp computes as the reference does but for the last place."""
    return RandomWeights(decoder) if decoder.layer(0).mlp.activation == "silu" else WithoutMlps(decoder)


@pytest.mark.parametrize("name", DECODERS)
def test_f32_is_the_reference(name: str, tmp_path: Path) -> None:
    decoder = DECODERS[name]
    weights = RandomWeights(decoder)
    expected = reference.logits(weights, IDS)
    with opened(write(tmp_path, weights), decoder) as session:
        exact = 5e-11 if decoder.correcting else 2e-11  # a delta rule carries what is rounded from position to position
        assert nmse(evaluated(session), expected) <= (exact if decoder.layer(0).mlp.activation == "silu" else 2e-7)


@pytest.mark.parametrize(
    "name", [name for name, decoder in DECODERS.items() if decoder.layer(0).mlp.activation != "silu"]
)
def test_gelu_is_all_that_differs(name: str, tmp_path: Path) -> None:
    decoder = DECODERS[name]
    weights = WithoutMlps(decoder)
    expected = reference.logits(weights, IDS)
    with opened(write(tmp_path, weights), decoder) as session:
        assert nmse(evaluated(session), expected) <= 1e-11
    assert GgufTarget().nmse(decoder) == 1e-6


def test_a_rounded_embedding_scale_is_exact_for_rows_as_small_as_epsilon(tmp_path: Path) -> None:
    decoder = DECODERS["gemma3: rounded embedding scale"]
    weights = WithoutMlps(decoder)
    weights.tensors["embedding"][::2] *= np.float32(2**-13)
    expected = reference.logits(weights, IDS)
    with opened(write(tmp_path, weights), decoder) as session:
        assert nmse(evaluated(session), expected) <= 1e-11


def test_large_heads_far_along_are_within_the_limit(tmp_path: Path) -> None:
    decoder = describe(hidden_size=128, n_heads=1, n_kv_heads=1, head_dim=128, rope=rope(dim=128))
    weights = RandomWeights(decoder)
    expected = reference.logits(weights, IDS)
    with opened(write(tmp_path, weights), decoder) as session:
        assert nmse(evaluated(session), expected) <= GgufTarget().nmse(decoder) == 1e-9


CROSSING = ["gemma2", "gemma3: linear rope on global layers", "phi3: beyond the original context", "smollm3"]
CROSSING += ["mistral3", "olmo2: windows, yarn on the other layers", "exaone4: of 64 layers"]
CROSSING += ["gemma4", "gemma4: untied, no inputs, nothing scaled, other KV heads", "gemma4: rounded embedding scale"]


@pytest.mark.parametrize("chunk", [1, WINDOW - 5, 128])
@pytest.mark.parametrize("name", CROSSING)
def test_chunks_across_a_window_change_nothing(name: str, chunk: int, tmp_path: Path) -> None:
    decoder = DECODERS[name]
    weights = exact(decoder)
    write(tmp_path, weights)
    expected = reference.logits(weights, IDS)
    with opened(tmp_path, decoder, chunk) as session:
        assert nmse(evaluated(session), expected) <= 2e-11


@pytest.mark.parametrize("name", CROSSING)
def test_what_follows_a_rewind_behind_a_window_is_what_it_was(name: str, tmp_path: Path) -> None:
    decoder = DECODERS[name]
    weights = exact(decoder)
    expected = reference.logits(weights, IDS)
    with opened(write(tmp_path, weights), decoder, chunk=64) as session:
        evaluated(session)
        for length in (200, 30, 100):  # the last one: what was written twice
            session.forward_all(IDS[session.rewind(length) : length + 1])
            session.forward_all(IDS[length : length + 80][::-1])
            kept = session.rewind(length - 7)
            assert nmse(session.forward_all(IDS[kept:]), expected[kept:]) <= 2e-11


@pytest.mark.parametrize(("scheme", "limit"), [("f16", 2e-5), ("bf16", 1e-3)])
@pytest.mark.parametrize("name", DECODERS)
def test_half_precision_stays_close(name: str, scheme: str, limit: float, tmp_path: Path) -> None:
    decoder = DECODERS[name]
    weights = RandomWeights(decoder)
    expected = reference.logits(weights, IDS)
    with opened(write(tmp_path, weights, scheme), decoder) as session:
        assert nmse(evaluated(session), expected) <= limit * (2 if decoder.correcting else 1)


def _missing_one(weights: RandomWeights) -> None:
    for name in weights.tensors:
        if name.endswith("norm"):
            weights.tensors[name] -= 1


def _swapped(one: str, other: str) -> Callable[[RandomWeights], None]:
    def swap(weights: RandomWeights) -> None:
        tensors = weights.tensors
        for layer in range(weights.decoder.n_layers):
            name, with_name = f"layers.{layer}.{one}", f"layers.{layer}.{other}"
            tensors[name], tensors[with_name] = tensors[with_name], tensors[name]

    return swap


def _of_heads(weights: RandomWeights) -> None:
    """Norms over each head: their gains are those of the width's first, which is all that one head's norm has."""
    weights.decoder = changed(weights.decoder, qk_norm="head")
    for name in weights.tensors:
        if name.endswith(("q_norm", "k_norm")):
            weights.tensors[name] = weights.tensors[name][: weights.decoder.attentions[0].head_dim]


def _before(weights: RandomWeights) -> None:
    weights.decoder = changed(weights.decoder, norms="before")
    weights.tensors = {name.replace("post_norm", "norm"): rows for name, rows in weights.tensors.items()}


def _not_given_back(weights: RandomWeights) -> None:
    weights.tensors["norm"] *= np.float32(8.03125 / 8)


def _mixers(change: Callable[[int, Attention], dict[str, Any]]) -> Callable[[RandomWeights], None]:
    """Change what layers' attention is, by its index and what it was."""

    def apply(weights: RandomWeights) -> None:
        old = weights.decoder
        layers = [
            msgspec.structs.replace(
                layer, mixer=msgspec.structs.replace(layer.mixer, **change(index, old.attention(index)))
            )
            for index, layer in enumerate(old.layers)
        ]
        weights.decoder = msgspec.structs.replace(old, **arranged(layers))

    return apply


def _read_from(window: int, full: int) -> Callable[[RandomWeights], None]:
    return _mixers(lambda index, each: {} if each.owns else {"kv_layer": window if each.window else full})


def _turning(pairs: int) -> Callable[[RandomWeights], None]:
    """So many pairs turn in layers without window."""

    def change(index: int, each: Attention) -> dict[str, Any]:
        assert each.rope
        return {} if each.window else {"rope": msgspec.structs.replace(each.rope, scaling=ProportionalScaling(pairs))}

    return _mixers(change)


def _next_inputs(weights: RandomWeights) -> None:
    for name in ("inputs.embedding", "inputs.projection"):
        weights.tensors[name] = np.roll(weights.tensors[name], 32, axis=int(name == "inputs.embedding"))


def _unscaled(name: str) -> Callable[[RandomWeights], None]:
    def unscale(weights: RandomWeights) -> None:
        weights.tensors[name] = np.ones_like(weights.tensors[name])

    return unscale


def _without_inputs(weights: RandomWeights) -> None:
    weights.tensors |= {name: 0 * rows for name, rows in weights.tensors.items() if name.endswith("inputs.out")}


def _yarn(yarn: YarnScaling, theta: float = 10000.0, **changes: Any) -> Positions:
    return Positions(rope(theta, scaling=msgspec.structs.replace(yarn, **changes)))


def _local(window: int) -> tuple[Positions, ...]:
    return (Positions(rope(), window),) * 5 + (FAR,)


FAULTS: dict[str, tuple[str, dict[str, Any] | Callable[[RandomWeights], None]]] = {
    "the other layers have the windows": ("gemma2", {"pattern": (GLOBAL, LOCAL)}),
    "a window of one more": ("gemma2", {"pattern": (Positions(rope(), WINDOW + 1), GLOBAL)}),
    "no windows": ("gemma2", {"pattern": (GLOBAL,)}),
    "no softcap on the scores": ("gemma2", {"attention_softcap": None}),
    "no softcap on the logits": ("gemma2", {"logits_softcap": None}),
    "another scale of the scores": ("gemma2", {"attention_scale": 0.26}),
    "gemma's one is missing from the norms": ("gemma2", _missing_one),
    "norms before and after a block swapped": ("gemma2", _swapped("mlp.norm", "mlp.post_norm")),
    "silu for gelu": ("gemma2", {"activation": "silu"}),
    "the far base on local layers": (
        "gemma3",
        {"pattern": (Positions(rope(1e6), WINDOW),) * 5 + (FAR,)},
    ),
    "the near base on global layers": ("gemma3", {"pattern": (LOCAL,) * 5 + (GLOBAL,)}),
    "one layer too early without window": ("gemma3", {"pattern": (*(LOCAL,) * 4, FAR, LOCAL)}),
    "the linear factor is lost": ("gemma3: linear rope on global layers", {"pattern": (LOCAL,) * 5 + (FAR,)}),
    "the linear factor on local layers too": (
        "gemma3: linear rope on global layers",
        {
            "pattern": (Positions(rope(scaling=FAR_LINEAR.rope and FAR_LINEAR.rope.scaling), WINDOW),) * 5
            + (FAR_LINEAR,)
        },
    ),
    "only what comes before is seen": ("gemma-embedding", {"bidirectional": UNSET}),
    "a window of one more to both sides": ("gemma-embedding", {"pattern": _local(WINDOW + 1)}),
    "a window of one less to both sides": ("gemma-embedding", {"pattern": _local(WINDOW - 1)}),
    "a window of both sides on each": ("gemma-embedding", {"pattern": _local(2 * WINDOW - 1)}),
    "windows on no layer": ("gemma-embedding", {"pattern": _local(512)}),
    "the embedding scale is not rounded": ("gemma3: rounded embedding scale", {"embedding_scale": 8.0}),
    "norms of q and k swapped": ("qwen3", _swapped("attention.q_norm", "attention.k_norm")),
    "no rotation of the last pairs": (
        "phi3: partial, within the original context",
        {"pattern": (Positions(rope(dim=10, scaling=msgspec.structs.replace(SHORT, factors=SHORT.factors[:5]))),)},
    ),
    "other factors": (
        "phi3: beyond the original context",
        {"pattern": (Positions(rope(scaling=msgspec.structs.replace(LONG, factors=LONG.factors[::-1]))),)},
    ),
    "no magnitude": (
        "phi3: beyond the original context",
        {"pattern": (Positions(rope(scaling=msgspec.structs.replace(LONG, magnitude=1.0))),)},
    ),
    "gate and up swapped": ("phi3: beyond the original context", _swapped("mlp.gate", "mlp.up")),
    "k and v swapped": ("phi3: beyond the original context", _swapped("attention.k", "attention.v")),
    "rope in all layers": ("smollm3", {"pattern": (GLOBAL,)}),
    "another fourth layer without rope": ("smollm3", {"pattern": (Positions(None), GLOBAL, GLOBAL, GLOBAL)}),
    "another length of the queries' growth": ("mistral3", {"temperature": Temperature(0.3, 60)}),
    "no growth of the queries": ("mistral3", {"temperature": None}),
    "yarn's own turns": ("mistral3", {"pattern": (_yarn(OTHER_TURNS, 1e6, beta_fast=32.0, beta_slow=1.0),)}),
    "yarn's own magnitude": ("mistral3", {"pattern": (_yarn(OTHER_TURNS, 1e6, magnitude=1.2079),)}),
    "another original context": ("llama: yarn", {"pattern": (_yarn(YARN, original_context=256),)}),
    "another factor of yarn": ("llama: yarn", {"pattern": (_yarn(YARN, factor=7.9),)}),
    "no magnitude of yarn": ("llama: yarn", {"pattern": (_yarn(YARN, magnitude=1.0),)}),
    "a ramp between pairs": ("llama: yarn", {"pattern": (_yarn(YARN, whole=False),)}),
    "linear for yarn": ("llama: yarn", {"pattern": (Positions(rope(scaling=LINEAR)),)}),
    "granite's own scale of the embeddings": ("granite", {"embedding_scale": 8.0}),
    "granite's own scale of the scores": ("granite", {"attention_scale": 0.25}),
    "no scale of the blocks": ("granite", {"residual_scale": 1.0}),
    "logits multiplied by what divides them": ("granite", {"logits_scale": 8.0}),
    "no scale of the logits": ("granite", {"logits_scale": 1.0}),
    "the last norm does not give back what the embedding took": (
        "gemma: rounded embedding scale, linear rope, scores",
        _not_given_back,
    ),
    "norms before the blocks": ("olmo2", _before),
    "norms of each head": ("olmo2", _of_heads),
    "norms of q and k before the rotation": ("hunyuan-dense", {"qk_norm": "head"}),
    "yarn on layers with a window": (
        "olmo2: windows, yarn on the other layers",
        {"pattern": (Positions(rope(scaling=YARN), WINDOW),) * 3 + (Positions(rope(scaling=YARN)),)},
    ),
    "no yarn on layers without window": (
        "olmo2: windows, yarn on the other layers",
        {"pattern": (LOCAL,) * 3 + (GLOBAL,)},
    ),
    "rope on layers without window": (
        "exaone4: of 64 layers",
        {"pattern": (Positions(EXAONE4["rope"], WINDOW),) * 3 + (Positions(EXAONE4["rope"]),)},
    ),
    "no windows of 64 layers": (
        "exaone4: of 64 layers",
        {"pattern": (Positions(EXAONE4["rope"]),) * 3 + (Positions(None),)},
    ),
    "no rope base": ("qwen2", {"pattern": (GLOBAL,)}),
    "keys of another layer with a window": ("gemma4", _read_from(0, 3)),
    "keys of another layer without window": ("gemma4", _read_from(2, 1)),
    "all pairs turn": ("gemma4", _turning(16)),
    "a pair more turns": ("gemma4", _turning(5)),
    "values are not normed": ("gemma4", _mixers(lambda index, each: {"v_norm": UNSET})),
    "each layer has the inputs of the next": ("gemma4", _next_inputs),
    "no inputs": ("gemma4", _without_inputs),
    "a layer is not scaled": ("gemma4", _unscaled("layers.4.scale")),
    "the inputs are not normed": ("gemma4", _unscaled("inputs.norm")),
    "scores by the size of a head": ("gemma4: scores", _mixers(lambda index, each: {"scale": 1.0})),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_far_above_the_limit(fault: str) -> None:
    """The engine is within the limit of the right reference: a wrong one must be far away from that."""
    name, change = FAULTS[fault]
    decoder = DECODERS[name]
    weights, faulty = RandomWeights(decoder), RandomWeights(decoder)
    if callable(change):
        change(faulty)
    else:
        faulty.decoder = changed(decoder, **change)
    error = nmse(reference.logits(faulty, IDS), reference.logits(weights, IDS))
    assert error >= 10 * GgufTarget().nmse(decoder)
