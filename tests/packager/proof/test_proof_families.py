"""The proof over every family: each target is exact past every window and rope boundary, or says why it cannot be.

And the structural gate hears a fault in every special feature, whichever engine runs the broken payload.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import golden_models
import numpy as np
import pytest
from decoders import Alike, Positions, RandomWeights, changed, describe
from msgspec import UNSET
from msgspec.structs import replace
from oracle_models import ORACLE_MODELS

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Gate
from edgepack.errors import UnsupportedModelError
from edgepack_packager import families, reference, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import compare, engine, probe, slice, structure
from edgepack_packager.targets import FixesKvCache, Model, Request, Target, Written, kv_cache
from edgepack_packager.write import write

TARGETS = ("gguf", "mlx", "onnx", "onnx with an f16 cache")
# What an engine has no exact formulation for: llama.cpp runs windows of Phi, Qwen and Mistral as full attention, and
# its EXAONE 4 has heads that together are as wide as the hidden size, and windows in 64 layers alone. Its LFM2 has no
# biases, nothing of it is LFM3's, and the heads of its Qwen3.5 are of one size.
REFUSED = {
    *((name, "gguf") for name in ("phi3-4k", "qwen2-window", "mistral", "ministral", "exaone4", "exaone4-full")),
    *((name, "gguf") for name in ("lfm2-biased", "lfm3", "qwen3.5")),
}

Change = Callable[[str, Float32], Float32]


def target_of(name: str) -> Target:
    found = targets.find(name.split()[0])
    if name.endswith("f16 cache"):
        assert isinstance(found, FixesKvCache)
        return found.with_kv_cache("f16")
    return found


@contextmanager
def opened(name: str, tmp_path: Path) -> Iterator[Weights]:
    with open_checkpoint(golden_models.folder(name, tmp_path)) as checkpoint:
        yield families.open_model(checkpoint, ORACLE_MODELS[name].context)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ORACLE_MODELS)
def test_a_family_is_exact_past_every_boundary(name: str, target: str, tmp_path: Path) -> None:
    chosen = target_of(target)
    with opened(name, tmp_path) as weights:
        decoder = weights.decoder
        model = Model(name, decoder, weights.dtype)
        if (name, target) in REFUSED:
            with pytest.raises(
                UnsupportedModelError,
                match=r"window|heads that together|biases in convolutions|heads of values|gate on each head",
            ):
                chosen.scheme("f32", model)
            return
        ids = probe.make(decoder, None).ids
        assert len(ids) > max((*decoder.windows, 0)) or not decoder.windows
        rounds = kv_cache.half if chosen.kv_cache else None
        expected, exact = structure.expectation(chosen, weights, ids, reference.logits(weights, ids), rounds)
        limits = {"f32": exact} | {scheme: exact + limit for scheme, limit in halves(chosen.name, weights).items()}
        requests = [Request(chosen, scheme, scheme) for scheme in limits]
        write(weights, requests, tmp_path, model)
        for request in requests:
            cache = chosen.kv_cache or "f32"
            with engine.logits(chosen.runtime, tmp_path / request.id, decoder, ids, cache, tmp_path) as (_, rows):
                assert compare.nmse(rows, expected) <= limits[request.scheme], request.id
        (gate,) = structure.prove([chosen], weights, ids, tmp_path).values()
        assert isinstance(gate, Gate)
        assert gate.passes, gate


def halves(target: str, weights: Weights) -> dict[str, float]:
    """The 16-bit scheme to try, and its limit. Weights that no 16-bit type holds are rounded to f16.

    ggml also rounds the activations to the type of 16-bit weights, which costs more than the weights do.
    """
    if weights.decoder.wide or weights.dtype == "bf16":
        # onnx stores no bf16, and f16 holds neither bf16's smallest numbers nor a wide model's activations.
        return {"gguf": {"bf16": 1e-3}, "mlx": {"bf16": 1e-5}}.get(target, {}) if weights.dtype == "bf16" else {}
    # Where mlx rounds the gains of norms too, a delta rule makes 1.2e-5 of it: so does the reference with such gains.
    return {"f16": 2e-5 if target == "gguf" or (target == "mlx" and weights.decoder.correcting) else 1e-5}


class Planted:
    """Weights as a broken converter would write them."""

    def __init__(self, weights: Weights, decoder: Decoder, change: Change) -> None:
        self._weights, self._change = weights, change
        self.decoder, self.dtype = decoder, weights.dtype

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return self._change(name, self._weights.rows(name, start, stop))


def as_it_is(name: str, rows: Float32) -> Float32:
    return rows


def without_the_one(name: str, rows: Float32) -> Float32:
    return rows - np.float32(1) if name.endswith("norm") else rows


def without_bias(name: str, rows: Float32) -> Float32:
    return np.zeros_like(rows) if name.endswith("attention.k.bias") else rows


def without_qk_norm(name: str, rows: Float32) -> Float32:
    return np.ones_like(rows) if name.endswith(("q_norm", "k_norm")) else rows


def without_norm_bias(name: str, rows: Float32) -> Float32:
    return np.zeros_like(rows) if name.endswith("norm.bias") else rows


def root_mean_squares(decoder: Decoder) -> dict[str, Any]:
    return {"norm": UNSET}


def larger_epsilon(decoder: Decoder) -> dict[str, Any]:
    return {"norm_eps": 2 * decoder.norm_eps}


def unscaled(decoder: Decoder) -> dict[str, Any]:
    return {"embedding_scale": 1.0}


def other_parity(decoder: Decoder) -> dict[str, Any]:
    return {"pattern": (*Alike(decoder).pattern[1:], Alike(decoder).pattern[0])}


def no_windows(decoder: Decoder) -> dict[str, Any]:
    return {"pattern": tuple(Positions(kind.rope) for kind in Alike(decoder).pattern)}


def one_rope(decoder: Decoder) -> dict[str, Any]:
    return {"pattern": tuple(Positions(decoder.ropes[-1], kind.window) for kind in Alike(decoder).pattern)}


def whole_heads_rotate(decoder: Decoder) -> dict[str, Any]:
    rope = replace(decoder.ropes[0], dim=decoder.attentions[0].head_dim, scaling=None)
    return {"pattern": tuple(Positions(rope, kind.window) for kind in Alike(decoder).pattern)}


def unread_rope(decoder: Decoder) -> dict[str, Any]:
    rope = replace(decoder.ropes[0], theta=10000.0, scaling=None)
    return {"pattern": tuple(Positions(rope, kind.window) for kind in Alike(decoder).pattern)}


def other_factors(decoder: Decoder) -> dict[str, Any]:
    rope = decoder.ropes[0]
    scaling: Any = rope.scaling
    swapped = replace(scaling, factors=tuple(factor + 0.5 for factor in scaling.factors))
    return {"pattern": (Positions(replace(rope, scaling=swapped)),)}


def no_magnitude(decoder: Decoder) -> dict[str, Any]:
    rope = decoder.ropes[0]
    scaling: Any = rope.scaling
    return {"pattern": (Positions(replace(rope, scaling=replace(scaling, magnitude=1.0))),)}


def no_softcap(decoder: Decoder) -> dict[str, Any]:
    return {"attention_softcap": None}


def no_logits_softcap(decoder: Decoder) -> dict[str, Any]:
    return {"logits_softcap": None}


def inverted_nope(decoder: Decoder) -> dict[str, Any]:
    (rope,) = decoder.ropes
    return {"pattern": tuple(Positions(None if kind.rope else rope, kind.window) for kind in Alike(decoder).pattern)}


def unchanged(decoder: Decoder) -> dict[str, Any]:
    return {}


FAULTS: dict[str, tuple[str, Callable[[Decoder], dict[str, Any]], Change]] = {
    "norms without their one": ("gemma2", unchanged, without_the_one),
    "windows on the other layers": ("gemma2", other_parity, as_it_is),
    "no windows": ("gemma2", no_windows, as_it_is),
    "embeddings not scaled": ("gemma2", unscaled, as_it_is),
    "scores not capped": ("gemma2", no_softcap, as_it_is),
    "logits not capped": ("gemma2", no_logits_softcap, as_it_is),
    "global rope on local layers": ("gemma3", one_rope, as_it_is),
    "no norms of q and k": ("qwen3", unchanged, without_qk_norm),
    "a bias dropped": ("qwen2", unchanged, without_bias),
    "the biases of the norms dropped": ("stablelm", unchanged, without_norm_bias),
    "RMSNorms in place of LayerNorms": ("stablelm", root_mean_squares, as_it_is),
    "another epsilon in LayerNorms": ("stablelm", larger_epsilon, as_it_is),
    "whole heads rotated": ("phi4", whole_heads_rotate, as_it_is),
    "other factors": ("phi3-long", other_factors, as_it_is),
    "no magnitude": ("phi3-long", no_magnitude, as_it_is),
    "rope on the other layers": ("smollm3", inverted_nope, as_it_is),
    "rope_parameters not read": ("v5-spelling", unread_rope, as_it_is),
}


@pytest.mark.parametrize("norm", ["layer", UNSET])
def test_half_of_the_rows_of_a_slice_are_as_small_as_epsilon_to_its_norms(norm: Any) -> None:
    weights = RandomWeights(describe(norm=norm, tied=False))
    weights.tensors["embedding"] += np.float32(30)
    part, _ = slice.cut(weights, range(64))
    rows = part.rows("embedding", 0, 64).astype(np.float64)
    seen = rows.var(axis=1) if norm else np.square(rows).mean(axis=1)
    assert seen[::2].mean() > 0.5
    assert 0.4 < seen[1::2].mean() / part.decoder.norm_eps < 2.5


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fault", FAULTS)
def test_structure_hears(fault: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong, change = FAULTS[fault]
    run = engine.logits

    def broken_write(part: Weights, requests: Sequence[Request], folder: Path, model: Model) -> list[Written]:
        decoder = changed(part.decoder, **wrong(part.decoder))
        return write(Planted(part, decoder, change), requests, folder, dataclasses.replace(model, decoder=decoder))

    def deceived(runtime: str, variant: Path, decoder: Decoder, *rest: Any) -> Any:
        # The runtimes hold a payload's numbers against the manifest's: let both be wrong, so that the logits must tell.
        return run(runtime, variant, changed(decoder, **wrong(decoder)), *rest)

    with opened(name, tmp_path) as weights:
        ids = probe.make(weights.decoder, None).ids
        monkeypatch.setattr(structure, "write", broken_write)
        monkeypatch.setattr(engine, "logits", deceived)
        try:
            (found,) = structure.prove([target_of(target)], weights, ids, tmp_path).values()
        except UnsupportedModelError as error:
            pytest.skip(f"no such payload can be written: {error}")
    assert isinstance(found, Gate)
    assert found.value > 100 * found.limit, found
