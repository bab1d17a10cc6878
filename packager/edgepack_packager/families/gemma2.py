"""The Gemma 2 family: windows on every other layer, softcaps on the scores and on the logits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from edgepack.bundle.decoder import Decoder
from edgepack_packager.families import gemma_like, llama_like
from edgepack_packager.families.fields import count, flag, positive, read_context
from edgepack_packager.families.layers import FULL, SLIDING, read_pattern
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.rope import read_rope

ARCHITECTURES = frozenset({"Gemma2ForCausalLM"})
MODEL_TYPES = frozenset({"gemma2"})
IGNORED = llama_like.IGNORED
source = gemma_like.source

# What Gemma2Config fills in. A null is no absent field: a softcap of null is none.
_DEFAULTS: Mapping[str, Any] = {
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Gemma 2's config.json describes; absent optional fields are as in Gemma2Config."""
    config = {**_DEFAULTS, **config}
    gemma_like.refuse_others(config)
    sizes, heads, length = read_sizes(config), read_heads(config, head_dim=256), read_context(config, context)
    layer = partial(gemma_like.layer, config, heads, softcap=_softcap(config, "attn_logit_softcapping"), qk_norm=None)
    rope = read_rope(config, heads["head_dim"], length)
    kinds = {FULL: layer(rope), SLIDING: layer(rope, count(config, "sliding_window"))}
    return Decoder(
        **sizes,
        family="gemma2",
        architecture="Gemma2ForCausalLM",
        context=length,
        **read_pattern(config, kinds, lambda layer: FULL if layer % 2 else SLIDING),
        tied=flag(config, "tie_word_embeddings", default=True),
        embedding_scale=gemma_like.embedding_scale(config, sizes["hidden_size"]),
        logits_softcap=_softcap(config, "final_logit_softcapping"),
        wide=True,
    )


def _softcap(config: Mapping[str, Any], name: str) -> float | None:
    return None if config[name] is None else positive(config, name)
