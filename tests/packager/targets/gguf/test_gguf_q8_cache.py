"""llama.cpp with a KV cache of 8 bits, compared with the reference that rounds as it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import RandomWeights, describe
from gguf_decoders import gemma4, rope
from variants import nmse, token_ids

from edgepack.runtime import Options, find
from edgepack_packager import reference, targets
from edgepack_packager.proof import execution
from edgepack_packager.targets import Model, Request, kv_cache
from edgepack_packager.write import write


@pytest.fixture(params=[32, 64, 96, 128, 192, (32, 64)])
def decoder(request: pytest.FixtureRequest) -> Any:
    if isinstance(request.param, tuple):
        return gemma4(head_dims=request.param)
    return describe(head_dim=request.param, rope=rope(dim=request.param))


def test_the_engine_loses_what_the_rule_says(decoder: Any, tmp_path: Path) -> None:
    weights, ids = RandomWeights(decoder), token_ids(decoder, 90)
    target = targets.find("gguf")
    write(weights, [Request(target, "f32", "f32")], tmp_path, Model("tiny", decoder, "f32"))
    exact, kept = reference.logits(weights, ids), reference.logits(weights, ids, cache=kv_cache.blocks)
    session = find("gguf").open(tmp_path / "gguf-f32", decoder, Options(context=128, threads=1, kv_cache="q8"))
    found = session.forward_all(ids)
    session.close()
    assert 0.5 < nmse(found, exact) / nmse(kept, exact) < execution.ROUNDED
    if {each.head_dim for each in decoder.attentions} == {
        32
    }:  # one block whatever the order of its values: the same numbers
        assert nmse(found, kept) < 1e-4 * nmse(kept, exact)
    (tmp_path / "logits").write_bytes(found.astype("<f4").tobytes())
    held = execution.prove(
        target, tmp_path / "gguf-f32", decoder, ids, tmp_path / "logits", kv_cache="q8", scratch=tmp_path
    )
    assert held.passes
    assert not execution.prove(
        target, tmp_path / "gguf-f32", decoder, ids, tmp_path / "logits", kv_cache="f16", scratch=tmp_path
    ).passes


def test_turning_is_undone_and_only_rounding_is_left() -> None:
    x = np.random.default_rng(5).standard_normal((7, 2, 128)).astype(np.float32)
    x[:, :, 3] *= 100  # an outlier takes the precision of its block, and less of it where it is shared
    for part in ("q", "k", "v"):
        assert nmse(kv_cache.blocks(0, part, x), x) < 1e-4
    assert np.array_equal(kv_cache.blocks(0, "mixed", x), x)
