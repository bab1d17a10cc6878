"""The SmolLM3 family: which layers rotate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from decoders import Positions, described
from oracle_models import SMOLLM3

from edgepack.bundle.rope import Rope
from edgepack.errors import SourceError, UnsupportedModelError

ROTATING = Positions(Rope(5000000.0, 32))
STILL = Positions(None)


def test_a_one_in_no_rope_layers_means_that_the_layer_rotates() -> None:
    decoder = described(SMOLLM3)
    assert decoder.pattern == (ROTATING, ROTATING, ROTATING, STILL)
    assert [each.rope is not None for each in decoder.attentions] == [True, True, True, False, True]
    assert decoder.ropes == (ROTATING.rope,)
    assert described({**SMOLLM3, "no_rope_layers": [1, 0, 1, 0, 1]}).pattern == (ROTATING, STILL)


@pytest.mark.parametrize(
    ("interval", "pattern"),
    [
        (None, (ROTATING, ROTATING, ROTATING, STILL)),
        (2, (ROTATING, STILL)),
        (1, (STILL,)),
        (9, (ROTATING,)),
        (3, (ROTATING, ROTATING, STILL)),
    ],
)
def test_without_a_list_every_so_many_layers_one_does_not(interval: int | None, pattern: tuple[Positions, ...]) -> None:
    config = {**SMOLLM3, "no_rope_layers": None, "no_rope_layer_interval": interval}
    assert described(config).pattern == pattern


def test_absent_fields_take_the_defaults_of_transformers() -> None:
    absent = ("rope_theta", "tie_word_embeddings", "attention_bias", "mlp_bias")
    decoder = described({key: value for key, value in SMOLLM3.items() if key not in absent})
    assert (decoder.ropes[0].theta, decoder.tied, decoder.qkv_bias, decoder.mlp_bias) == (2e6, True, False, False)


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers must hold a 0 or a 1 for each of the 5 layers"),
    ({"no_rope_layers": [1, 1, 2, 1, 1]}, "no_rope_layers must hold a 0 or a 1"),
    ({"no_rope_layers": 4}, "no_rope_layers must hold a 0 or a 1"),
    ({"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval must be a whole number above 0"),
    ({"layer_types": ["sliding_attention"] * 5}, "layer_types[0] is 'sliding_attention'"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_a_wrong_config_is_refused(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=re.escape(message)):
        described({**SMOLLM3, **fields})


def test_windows_are_refused_by_field() -> None:
    with pytest.raises(UnsupportedModelError, match="use_sliding_window is True"):
        described({**SMOLLM3, "use_sliding_window": True, "sliding_window": 24})
