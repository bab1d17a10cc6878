"""What a variant needs of a device's memory, for those who decide which devices get it.

The figures are those of ``edgepack plan``, with a KV cache of f16 where the engine has one. What an app may take of a
device no maker publishes: the share is an assumption, which an app replaces by what the system tells it there
(``os_proc_available_memory()`` on iOS, ``ActivityManager.MemoryInfo`` on Android).
"""

from __future__ import annotations

from collections.abc import Iterable

from edgepack.bundle.manifest import Manifest, Variant
from edgepack.device.engine import Options
from edgepack.device.limits import context_limit
from edgepack.device.memory import Payload, largest_context, needed
from edgepack.runtime import KvCache

GIB = 1 << 30
CONTEXTS = (1024, 2048, 4096, 8192)
PHONES = (4, 6, 8, 12, 16)
"""GiB of memory that phones and tablets are sold with."""
_SHARE = 0.5
_THREADS = 4


def figures(manifest: Manifest, variant: Variant, contexts: Iterable[int]) -> dict[int, int]:
    """Return the bytes that a load and a full context take, by the tokens of context."""
    return {context: _bytes(manifest, variant, context) for context in contexts}


def report(manifest: Manifest, variant: Variant) -> dict[str, object]:
    """Return the figures of some contexts, and the largest context of each size of device, 0 where not even one token
    fits, as JSON values."""
    limit, _ = context_limit(manifest)
    contexts = [context for context in CONTEXTS if context <= limit] or [limit]
    devices = [
        {
            "memory_gib": size,
            "assumed_for_the_app": int(size * GIB * _SHARE),
            "largest_context": largest_context(
                lambda context: _bytes(manifest, variant, context), limit, int(size * GIB * _SHARE)
            ),
        }
        for size in PHONES
    ]
    return {
        "variant": variant.id,
        "weights_bytes": variant.weights_bytes,
        "kv_cache": _kv_cache(variant),
        "bytes_by_context": {str(context): size for context, size in figures(manifest, variant, contexts).items()},
        "devices": devices,
        "basis": "as edgepack plan counts: weights, KV cache, working memory and engine; an app is assumed to get half "
        "of the device's memory, which the system tells it exactly",
    }


def _bytes(manifest: Manifest, variant: Variant, context: int) -> int:
    payload = Payload(
        manifest.decoder,
        variant.runtime,
        variant.quantization.scheme,
        variant.weights_bytes,
        manifest.tokenizer.rows,
    )
    return needed(payload, Options(context, _THREADS, _kv_cache(variant))).total


def _kv_cache(variant: Variant) -> KvCache:
    """Return the type of the KV cache: the one that is built in, f32 of a graph without one, else f16."""
    return variant.kv_cache or ("f32" if variant.runtime == "onnx" else "f16")
