"""What may be asked of a bundle: the contexts, and the types of KV cache, that it and an engine allow. Pure."""

from __future__ import annotations

from typing import Final, get_args

from edgepack.bundle.decoder import Decoder, KvCache
from edgepack.bundle.manifest import Manifest, Variant
from edgepack.device.engine import Support
from edgepack.device.memory import Q8_BLOCK
from edgepack.errors import UsageError

MAX_SEQUENCES: Final = 256
"""Texts that a session may hold at a time: llama.cpp's LLAMA_MAX_SEQ."""


def check_arguments(
    manifest: Manifest,
    context: int | None,
    backend: str | None,
    variant: str | None,
    kv_cache: str | None,
    sequences: int,
) -> None:
    """Raise ``UsageError`` for an argument of ``make_plan`` that no bundle, or not this one, could honour."""
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        raise UsageError(f"context cannot be {context!r}.", hint="It is a number of tokens, at least 1.")
    if kv_cache is not None and kv_cache not in get_args(KvCache):
        raise UsageError(f"kv_cache cannot be {kv_cache!r}.", hint=f"Choose from: {', '.join(get_args(KvCache))}.")
    if isinstance(sequences, bool) or not isinstance(sequences, int) or not 1 <= sequences <= MAX_SEQUENCES:
        raise UsageError(
            f"sequences cannot be {sequences!r}.", hint=f"It is a number of texts at a time, 1 to {MAX_SEQUENCES}."
        )
    if sequences > most_sequences(manifest):
        does = "embeds" if manifest.embedding is not None else "runs as its exporter wrote it"
        raise UsageError(
            f"{manifest.name} {does}, one text at a time: it has no {sequences} sequences.", hint="Leave sequences out."
        )
    held = {v.id: v.runtime for v in manifest.variants}
    if variant is not None and variant not in held:
        raise UsageError(f"{manifest.name} holds no variant {variant!r}.", hint=f"It holds: {', '.join(held)}.")
    if backend is None:
        return
    if backend not in held.values():
        raise UsageError(
            f"{manifest.name} holds no variant for the backend {backend!r}.", hint=f"It holds: {', '.join(held)}."
        )
    if variant is not None and held[variant] != backend:
        raise UsageError(
            f"{variant} runs on {held[variant]!r}, not on {backend!r}.", hint="Name one of the two, or a pair."
        )


def most_sequences(manifest: Manifest) -> int:
    """Return how many texts a model can hold at a time on some engine."""
    return 1 if manifest.embedding is not None or manifest.decoder.exported else MAX_SEQUENCES


def context_limit(manifest: Manifest) -> tuple[int, bool]:
    """Return the largest context that the bundle allows, and whether a proof covers it."""
    context = manifest.context
    if not context.verified:
        return context.profile, False
    return min(context.profile, context.verified), True


def kv_caches(variant: Variant, support: Support | None, decoder: Decoder) -> tuple[KvCache, ...]:
    """Return the types of KV cache that a variant can have: the one that is built in, or what its runtime offers."""
    if variant.kv_cache:
        return (variant.kv_cache,)
    offered = support.kv_caches if support else ()
    return tuple(kind for kind in offered if whole_blocks(kind, variant.runtime, decoder))


def whole_blocks(kind: KvCache, runtime: str, decoder: Decoder) -> bool:
    """Say whether a runtime can keep heads in a type of KV cache: those that are no whole blocks of q8, it cannot."""
    block = Q8_BLOCK.get(runtime, 1)
    return kind != "q8" or all(each.head_dim % block == 0 for each in decoder.attentions)


def default_kv_cache(scheme: str, offered: tuple[KvCache, ...]) -> KvCache:
    """Return the KV cache's type for a variant's scheme: exact for f32 weights, else the smaller one if offered."""
    wanted: KvCache = "f32" if scheme == "f32" else "f16"
    return wanted if wanted in offered or not offered else offered[0]
