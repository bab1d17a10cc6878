"""The reference against committed logits of transformers, and its own rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import golden_models
import numpy as np
import pytest
from decoders import Alike, Positions, changed, relayered, remixed
from models import LLAMA3, make_llama
from msgspec import UNSET
from msgspec.structs import replace
from variants import nmse

from edgepack.bundle.decoder import Attention, Convolution, Decoder
from edgepack.bundle.rope import LinearScaling, LongRopeScaling, ProportionalScaling, Rope
from edgepack.errors import UsageError
from edgepack_packager import blocks as decoder_blocks
from edgepack_packager import families, reference
from edgepack_packager.checkpoint import open_checkpoint, weights
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.targets.kv_cache import half

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", golden_models.params())
def test_golden_logits(name: str, tmp_path: Path) -> None:
    folder = golden_models.folder(name, tmp_path)
    golden = np.load(GOLDEN / f"{name}.npz")
    assert golden["weights"] == golden_models.digest(folder), "the model changed: run tests/golden/make.py"

    with open_checkpoint(folder) as checkpoint:
        found = reference.logits(families.open_model(checkpoint, golden_models.context(name)), golden["ids"].tolist())

    assert golden["ids"].tolist() == golden_models.ids(name, folder)
    assert nmse(found[:, golden["columns"]], golden["logits"]) <= 1e-10


class Changed:
    """Other weights under a decoder with some facts changed, with two tensors swapped, or with less gain."""

    def __init__(
        self, inner: Weights, decoder: Decoder | None = None, swap: tuple[str, str] | None = None, gain: float = 0
    ) -> None:
        self.decoder = decoder or inner.decoder
        self.dtype = inner.dtype
        self._inner = inner
        self._swap = dict([swap, swap[::-1]]) if swap else {}
        self._gain = np.float32(gain)

    def rows(self, name: str, start: int, stop: int) -> Float32:
        rows = self._inner.rows(self._swap.get(name, name), start, stop)
        return rows + self._gain if name.endswith("norm") else rows


class Made:
    """Weights of which ``make`` makes others where their names end so; all rows of a tensor at once."""

    def __init__(self, inner: Weights, ending: str, make: Callable[[Float32], Float32]) -> None:
        self.decoder, self.dtype = inner.decoder, inner.dtype
        self._inner, self._ending, self._make = inner, ending, make

    def rows(self, name: str, start: int, stop: int) -> Float32:
        if not name.endswith(self._ending):
            return self._inner.rows(name, start, stop)
        whole = self._inner.rows(name, 0, dict(self.decoder.tensors())[name][0])
        return np.ascontiguousarray(self._make(whole).reshape(whole.shape)[start:stop])


Plant = Callable[[Weights], Weights]


def facts(**changes: Any) -> Plant:
    return lambda weights: Changed(weights, changed(weights.decoder, **changes))


def pattern(change: Callable[[tuple[Positions, ...]], Sequence[Positions]]) -> Plant:
    return lambda weights: facts(pattern=tuple(change(Alike(weights.decoder).pattern)))(weights)


def ropes(change: Callable[[Rope], Rope]) -> Plant:
    return pattern(lambda layers: [replace(layer, rope=layer.rope and change(layer.rope)) for layer in layers])


def scaling(change: Callable[[Any], Any]) -> Plant:
    return ropes(lambda rope: replace(rope, scaling=change(rope.scaling)))


def swap(first: str, second: str) -> Plant:
    return lambda weights: Changed(weights, swap=(first, second))


def norms(where: str, **stands_for: str) -> Plant:
    """Move the norms of all blocks; a norm that the model has not is the one that stands for it."""
    return lambda weights: Renamed(Changed(weights, changed(weights.decoder, norms=where)), stands_for)


class Renamed:
    """Weights in which one norm of every block stands for another."""

    def __init__(self, inner: Weights, stands_for: Mapping[str, str]) -> None:
        self.decoder, self.dtype = inner.decoder, inner.dtype
        self._inner, self._stands_for = inner, stands_for

    def rows(self, name: str, start: int, stop: int) -> Float32:
        block, _, last = name.rpartition(".")
        return self._inner.rows(f"{block}.{self._stands_for.get(last, last)}" if block else name, start, stop)


class Beside:
    """Weights whose rotated pairs lie as such a checkpoint has them, each row beside its partner."""

    def __init__(self, inner: Weights) -> None:
        self.decoder, self.dtype, self._inner = inner.decoder, inner.dtype, inner

    def rows(self, name: str, start: int, stop: int) -> Float32:
        rows = self._inner.rows(name, start, stop)
        if not name.removesuffix(".bias").endswith(("attention.q", "attention.k")):
            return rows
        half = self.decoder.attentions[0].head_dim // 2
        return rows.reshape(-1, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def temperature(**fields: Any) -> Plant:
    return lambda weights: facts(temperature=replace(weights.decoder.temperatures[0], **fields))(weights)


def yarn(**fields: Any) -> Plant:
    return scaling(lambda found: found and replace(found, **fields))


def made(ending: str, change: Callable[[Float32], Float32]) -> Plant:
    return lambda weights: Made(weights, ending, change)


def gates(change: Callable[[Float32], Float32]) -> Plant:
    """Change the three parts of what every convolution reads, [3, channels, hidden size]."""
    return lambda weights: Made(weights, ".in", lambda rows: change(rows.reshape(3, -1, rows.shape[1])))


def kernels(change: Callable[[Float32], Float32]) -> Plant:
    """Change the kernels of all convolutions, [channels, length]."""
    return lambda weights: Made(weights, ".kernel", lambda rows: change(rows.reshape(weights.decoder.hidden_size, -1)))


def attentions(change: Callable[[Attention], Attention]) -> Plant:
    return lambda weights: Changed(weights, remixed(weights.decoder, change))


def layers(**changes: Any) -> Plant:
    return lambda weights: Changed(weights, relayered(weights.decoder, lambda layer: replace(layer, **changes)))


def proportional(change: Callable[[Rope], Rope]) -> Plant:
    """Change the rope of the layers without window."""
    return attentions(lambda found: found if found.window else replace(found, rope=found.rope and change(found.rope)))


def same_rope(layers: Sequence[Positions]) -> list[Positions]:
    return [replace(layer, rope=layers[0].rope) for layer in layers]


def same_scaling(layers: Sequence[Positions]) -> list[Positions]:
    last = layers[-1].rope
    return [replace(layer, rope=layer.rope and last and replace(layer.rope, scaling=last.scaling)) for layer in layers]


def wider(layers: Sequence[Positions]) -> list[Positions]:
    return [replace(layer, window=layer.window and layer.window + 1) for layer in layers]


def inverted(layers: Sequence[Positions]) -> list[Positions]:
    rope = layers[0].rope
    return [replace(layer, rope=None if layer.rope else rope) for layer in layers]


def whole_heads(rope: Rope) -> Rope:
    assert isinstance(rope.scaling, LongRopeScaling)
    factors = rope.scaling.factors + (1.0,) * 4
    return replace(rope, dim=32, scaling=replace(rope.scaling, factors=factors))


HALF = Rope(10000.0, 64, ProportionalScaling(16))

FAULTS: Mapping[str, tuple[str, Plant]] = {
    "rope scaling dropped": ("sharded-llama3", scaling(lambda _: None)),
    "rope scaling of another kind": ("sharded-llama3", scaling(lambda _: LinearScaling(8.0))),
    "another theta": ("sharded-llama3", ropes(lambda rope: replace(rope, theta=10000.0))),
    "another epsilon": ("sharded-llama3", facts(norm_eps=1e-3)),
    "gate and up swapped": ("sharded-llama3", swap("layers.0.mlp.gate", "layers.0.mlp.up")),
    "keys and values swapped": ("sharded-llama3", swap("layers.1.attention.k", "layers.1.attention.v")),
    "a layer less": ("sharded-llama3", facts(n_layers=3)),
    "a part of each head rotates, taken for all of it": ("phi4", ropes(whole_heads)),
    "the magnitude of longrope dropped": ("phi3-long", scaling(lambda long: replace(long, magnitude=1.0))),
    "gate and up of a fused tensor swapped": ("phi3-long", swap("layers.0.mlp.gate", "layers.0.mlp.up")),
    "keys and values of a fused tensor swapped": ("phi3-long", swap("layers.0.attention.k", "layers.0.attention.v")),
    "the window dropped": ("phi3-4k", pattern(lambda layers: [replace(layer, window=None) for layer in layers])),
    "the window one position wider": ("phi3-4k", pattern(wider)),
    "windows on the odd layers": ("gemma2", pattern(lambda layers: layers[::-1])),
    "the gain of the norms without its one": ("gemma2", lambda weights: Changed(weights, gain=-1)),
    "the embeddings not scaled": ("gemma2", facts(embedding_scale=1.0)),
    "the softcap of the scores dropped": ("gemma2", facts(attention_softcap=None)),
    "the softcap of the logits dropped": ("gemma2", facts(logits_softcap=None)),
    "the scores scaled by the head dimension": ("gemma2", facts(attention_scale=None)),
    "silu in place of gelu": ("gemma2", facts(activation="silu")),
    "the norms behind the blocks dropped": ("gemma2", facts(norms="before")),
    "the embedding scale not rounded": ("gemma3", facts(embedding_scale=192**0.5)),
    "the global layer first": ("gemma3", pattern(lambda layers: layers[::-1])),
    "the local rope on the global layers": ("gemma3", pattern(same_rope)),
    "the linear factor on the local layers too": ("gemma3", pattern(same_scaling)),
    "the bias of q, k and v dropped": ("qwen2", facts(qkv_bias=False)),
    "the windows on the first layers": ("qwen2-window", pattern(lambda layers: layers[::-1])),
    "the norms of q and k dropped": ("qwen3", facts(qk_norm=None)),
    "rope on the layers without and none on the others": ("smollm3", pattern(inverted)),
    "q and k rotated before their norms": ("qwen3", facts(qk_norm="rotated")),
    "the window of all layers one position wider": ("mistral", pattern(wider)),
    "the windows one layer early": (
        "ministral",
        pattern(lambda layers: layers[1:] + layers[:1]),
    ),
    "the temperature dropped": ("ministral3", facts(temperature=None)),
    "the temperature of another length": ("ministral3", temperature(length=65)),
    "the temperature rising at another rate": ("ministral3", temperature(beta=0.29)),
    "the ramp of yarn from another pair": ("ministral3", yarn(beta_fast=2.0)),
    "the ramp of yarn to another pair": ("ministral3", yarn(beta_slow=2.0)),
    "the ramp of yarn from within a pair": ("ministral3", yarn(whole=False)),
    "yarn of another original context": ("ministral3", yarn(original_context=512)),
    "what a block adds not scaled": ("granite", facts(residual_scale=1.0)),
    "the logits not scaled": ("granite", facts(logits_scale=1.0)),
    "the embeddings not multiplied": ("granite", facts(embedding_scale=1.0)),
    "the scores scaled by the head dimension, in place of the multiplier": ("granite", facts(attention_scale=None)),
    "gate and up of a shared MLP swapped": ("granite4", swap("layers.0.mlp.gate", "layers.0.mlp.up")),
    "the gain of the first Gemma's norms without its one": ("gemma", lambda weights: Changed(weights, gain=-1)),
    "the first Gemma's embedding scale not rounded": ("gemma", facts(embedding_scale=192**0.5)),
    "silu in place of the first Gemma's gelu": ("gemma", facts(activation="silu")),
    "norms behind the blocks taken for norms before": ("olmo2", norms("before", norm="post_norm")),
    "norms behind the blocks taken for both": ("olmo2", norms("both", norm="post_norm")),
    "norms before the blocks taken for norms behind": ("granite", norms("after", post_norm="norm")),
    "norms before the blocks dropped of both": ("gemma2", facts(norms="after")),
    "a norm of all heads taken for one of each": ("olmo2", facts(qk_norm="head")),
    "yarn on the layers with a window too": ("olmo3", pattern(same_scaling)),
    "yarn on no layer": ("olmo3", pattern(same_rope)),
    "the magnitude of yarn dropped": ("olmo3", yarn(magnitude=1.0)),
    "rope where there is no window and none where there is": ("exaone4", pattern(inverted)),
    "rope on all layers": ("exaone4", pattern(same_rope)),
    "the windows of three layers in four one wider": ("exaone4", pattern(wider)),
    "no layer rotates": ("exaone4-full", pattern(lambda layers: [replace(layer, rope=None) for layer in layers])),
    "the bias of q, k and v dropped beside a head dimension": ("seed-oss", facts(qkv_bias=False)),
    "neighbours not read apart": ("ernie4.5", Beside),
    "neighbours not read apart, without biases": ("helium", Beside),
    "the biases of the MLP dropped": ("ernie4.5", facts(mlp_bias=False)),
    "the stretch of a dynamic rope dropped": ("hunyuan", ropes(lambda rope: replace(rope, theta=10000.0))),
    "q and k rotated behind their norms": ("hunyuan", facts(qk_norm="head")),
    "the norms of rotated q and k dropped": ("hunyuan", facts(qk_norm=None)),
    "what a convolution reads taken for what gates its output": ("lfm2", gates(lambda parts: parts[[0, 2, 1]])),
    "what gates a convolution's output taken for its input": ("lfm2", gates(lambda parts: parts[[1, 0, 2]])),
    "a kernel from its other end": ("lfm2", kernels(lambda kernel: kernel[:, ::-1])),
    "a kernel one position early": ("lfm2", kernels(lambda kernel: np.roll(kernel, 1, axis=1))),
    "the channels of a kernel side by side": ("lfm2", kernels(lambda kernel: kernel.reshape(kernel.shape[::-1]).T)),
    "the biases of a convolution dropped": ("lfm2-biased", facts(convolution=Convolution(length=3))),
    "the norms of q and k of the layers that attend swapped": (
        "lfm2",
        swap("layers.2.attention.q_norm", "layers.2.attention.k_norm"),
    ),
    "a delta rule that forgets nothing": ("qwen3.5", made(".decay", lambda rows: rows - 99)),
    "a delta rule that forgets at another rate": ("qwen3.5", made(".decay", lambda rows: rows + np.float32(0.01))),
    "the step of a delta rule dropped": ("qwen3.5", made(".step", np.zeros_like)),
    "what a delta rule learns by taken for what it forgets by": (
        "qwen3.5",
        swap("layers.0.delta.a", "layers.0.delta.b"),
    ),
    "the kernel of a delta rule one position early": (
        "qwen3.5",
        made(".kernel", lambda rows: np.roll(rows.reshape(-1, 4), 1, axis=1)),
    ),
    "q and k of a delta rule swapped": (
        "qwen3.5",
        made(".qkv", lambda rows: np.concatenate([rows[32:64], rows[:32], rows[64:]])),
    ),
    "the heads of values of a delta rule by turns": (
        "qwen3.5",
        made(".z", lambda rows: rows.reshape(2, 2, 24, -1).swapaxes(0, 1)),
    ),
    "the norm behind a delta rule with its gain less one": ("qwen3.5", made(".head_norm", lambda rows: rows + 1)),
    "the gate of an attention dropped": ("qwen3.5", facts(gated=False)),
    "the gate of an attention taken for its queries": (
        "qwen3.5",
        swap("layers.3.attention.q", "layers.3.attention.gate"),
    ),
    "all of a head rotates where a quarter does": ("qwen3.5", ropes(lambda rope: replace(rope, dim=64))),
    "the gates of the heads dropped": ("lfm3", attentions(lambda found: replace(found, gated=False))),
    "the gates of the heads one head early": ("lfm3", made("attention.gate", lambda rows: np.roll(rows, -1, axis=0))),
    "the window of the layers between convolutions one wider": (
        "lfm3",
        attentions(lambda found: replace(found, window=found.window and found.window + 1)),
    ),
    "the norms behind all blocks dropped": ("lfm3", layers(norms="before")),
    "as many pairs turn in the layers with a window": (
        "lfm3",
        attentions(lambda found: replace(found, rope=HALF) if found.window else found),
    ),
    "keys and values of an earlier layer of the type": (
        "gemma4",
        attentions(lambda found: replace(found, kv_layer=1) if found.kv_layer == 3 else found),
    ),
    "values without their norm": ("gemma4", attentions(lambda found: replace(found, v_norm=UNSET))),
    "all pairs turn": ("gemma4", proportional(lambda rope: replace(rope, scaling=None))),
    "pairs that turn as those of a shorter head": (
        "gemma4",
        proportional(lambda rope: replace(rope, dim=32, scaling=None)),
    ),
    "the scores scaled by the size of a head": ("gemma4", attentions(lambda found: replace(found, scale=None))),
    "the window of the layers that share one wider": (
        "gemma4",
        attentions(lambda found: replace(found, window=found.window and found.window + bool(found.kv_layer))),
    ),
    "what layers get of a token dropped": ("gemma4", layers(inputs=UNSET)),
    "what the next layer gets of a token": (
        "gemma4",
        made("inputs.projection", lambda rows: np.roll(rows, -64, axis=0)),
    ),
    "the own embedding of layers dropped": ("gemma4", made("inputs.embedding", np.zeros_like)),
    "the own embedding of layers not scaled": ("gemma4", made("inputs.embedding", lambda rows: rows / 8)),
    "the scale of layers dropped": ("gemma4", layers(scaled=UNSET)),
    "an RMSNorm in place of each LayerNorm": ("stablelm", facts(norm=UNSET)),
    "the biases of the norms dropped": ("stablelm", made("norm.bias", np.zeros_like)),
    "the bias of the last norm before the MLP's": ("stablelm", swap("layers.3.mlp.norm.bias", "norm.bias")),
    "all of a head rotates beside LayerNorms": ("stablelm", ropes(lambda rope: replace(rope, dim=32))),
    "the norms of q and k swapped": ("qwen3", swap("layers.0.attention.q_norm", "layers.0.attention.k_norm")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_golden_logits_hear_a_fault(fault: str, tmp_path: Path) -> None:
    name, plant = FAULTS[fault]
    assert deviation(name, tmp_path, plant) > 1e-8


@pytest.mark.parametrize(("name", "other"), [("phi3-short", 512), ("phi3-long", 64)])
def test_golden_logits_hear_the_factors_of_another_context(name: str, other: int, tmp_path: Path) -> None:
    with open_checkpoint(golden_models.folder(name, tmp_path)) as checkpoint:
        wrong = Alike(families.describe(checkpoint.config, other)).pattern
    assert deviation(name, tmp_path, facts(pattern=wrong)) > 1e-8


@pytest.mark.parametrize("name", ["v5-spelling", "phi3-v5", "gemma3-v5"])
def test_golden_logits_hear_that_the_spelling_of_version_5_is_ignored(name: str, tmp_path: Path) -> None:
    with open_checkpoint(golden_models.folder(name, tmp_path)) as checkpoint:
        config = {**checkpoint.config, "rope_parameters": None}
        wrong = Alike(families.describe(config, golden_models.context(name))).pattern
    assert deviation(name, tmp_path, facts(pattern=wrong)) > 1e-8


def test_golden_logits_hear_that_q_and_k_rotate_before_their_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotate, norm, gains = decoder_blocks._rotate, decoder_blocks.Model.norm, []

    def without_gain(model: Any, name: str, x: Float32) -> Float32:
        if not name.endswith(("q_norm", "k_norm")):
            return norm(model, name, x)
        gains.append(model.weights.rows(name, 0, x.shape[-1]))
        return norm(model, name, x) / gains[-1]

    # The division by the root mean square commutes with a rotation, the gain does not.
    monkeypatch.setattr(decoder_blocks.Model, "norm", without_gain)
    monkeypatch.setattr(decoder_blocks, "_rotate", lambda x, cos, sin: rotate(x, cos, sin) * gains.pop(0))
    assert deviation("qwen3", tmp_path, lambda weights: weights) > 1e-8


def test_golden_logits_hear_that_a_layer_norm_keeps_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_mean(model: Any, name: str, x: Float32) -> Float32:
        gain, bias = (model.weights.rows(each, 0, x.shape[-1]) for each in (name, f"{name}.bias"))
        return np.asarray(model.divided(x) * gain + bias, np.float32)

    monkeypatch.setattr(decoder_blocks.Model, "norm", with_mean)
    assert deviation("stablelm", tmp_path, lambda weights: weights) > 1e-8


def deviation(name: str, scratch: Path, plant: Plant) -> float:
    """Return how far a model with a planted fault is from its golden logits: NMSE."""
    golden = np.load(GOLDEN / f"{name}.npz")
    with open_checkpoint(golden_models.folder(name, scratch)) as checkpoint:
        wrong = plant(families.open_model(checkpoint, golden_models.context(name)))
        found = reference.logits(wrong, golden["ids"].tolist())
    return nmse(found[:, golden["columns"]], golden["logits"])


def test_a_position_sees_only_those_before_it(tmp_path: Path) -> None:
    with open_checkpoint(make_llama(tmp_path, rope=LLAMA3)) as checkpoint:
        model = families.open_model(checkpoint)
        whole = reference.logits(model, [5, 9, 300, 7, 7, 1])
        part = reference.logits(model, [5, 9, 300])
    np.testing.assert_allclose(part, whole[:3], rtol=0, atol=1e-4)


def test_small_blocks_give_the_same_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(make_llama(tmp_path, tied=False)) as checkpoint:
        model = families.open_model(checkpoint)
        whole = reference.logits(model, range(40))
        monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 1000)
        blocks = reference.logits(model, range(40))
    assert nmse(blocks, whole) < 1e-12


def test_readings_share_the_weights_and_nothing_else(tmp_path: Path) -> None:
    def coarse(name: str, x: Float32) -> Float32:
        return np.asarray(np.round(x, 1), np.float32)

    readings = [reference.EXACT, reference.Reading(half), reference.Reading(half, coarse)]
    with open_checkpoint(make_llama(tmp_path, rope=LLAMA3)) as checkpoint:
        model = Counting(families.open_model(checkpoint))
        alone = [reference.hidden(model, range(40), readings=[reading])[0] for reading in readings]
        once, model.elements = model.elements // len(readings), 0
        together = reference.hidden(model, range(40), readings=readings)
    assert model.elements == once
    assert nmse(together[0], alone[0]) < 1e-12
    # Products that a processor sums in another order may round a value to its other neighbour.
    for one, same in zip(alone[1:], together[1:], strict=True):
        assert nmse(same, one) < 1e-3 * nmse(one, alone[0])
    assert nmse(alone[1], alone[0]) > 1e-10
    assert nmse(alone[2], alone[1]) > 1e-5


class Counting:
    """Weights that count the elements that are read."""

    def __init__(self, weights: Weights) -> None:
        self.decoder, self.dtype = weights.decoder, weights.dtype
        self._weights, self.elements = weights, 0

    def rows(self, name: str, start: int, stop: int) -> Float32:
        found = self._weights.rows(name, start, stop)
        self.elements += found.size
        return found


def test_progress_is_told_of_every_layer(tmp_path: Path) -> None:
    calls: list[None] = []
    with open_checkpoint(make_llama(tmp_path, layers=3)) as checkpoint:
        reference.logits(families.open_model(checkpoint), [1, 2], progress=lambda: calls.append(None))
    assert len(calls) == 3


@pytest.mark.parametrize("ids", [[], [-1], [384], [0, 1000]])
def test_ids_outside_the_embedding_are_refused(ids: list[int], tmp_path: Path) -> None:
    with open_checkpoint(make_llama(tmp_path)) as checkpoint, pytest.raises(UsageError, match="from 0 to 383"):
        reference.logits(families.open_model(checkpoint), ids)
