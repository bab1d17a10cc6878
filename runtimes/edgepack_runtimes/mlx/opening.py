"""From a variant's folder to a session of mlx: the types of its numbers, and what holds its texts."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from edgepack.bundle.decoder import Decoder
from edgepack.errors import EngineError
from edgepack.runtime import Options, Session
from edgepack_runtimes.mlx.load import load_model
from edgepack_runtimes.mlx.parallel import ParallelSession
from edgepack_runtimes.mlx.payload import Payload, read_payload
from edgepack_runtimes.mlx.session import HiddenSession, MlxSession


def open_session(variant: Path, decoder: Decoder, options: Options) -> Session:
    """Check and load a variant on the calling thread. Raises ``EngineError`` with the reason."""
    payload = read_payload(variant, decoder)
    device = mx.Device(mx.gpu if mx.metal.is_available() else mx.cpu)
    try:
        with mx.stream(device):
            model = load_model(variant, payload, decoder, _float_type(payload, options, device))
            mx.clear_cache()  # of what was read in 16 bits and is wider now
            cache_type = _cache_type(decoder, options, payload)
            if options.sequences > 1:
                texts = [MlxSession(model, decoder, options, cache_type, device) for _ in range(options.sequences)]
                return ParallelSession(model, texts, decoder, options, device)
            kind = HiddenSession if decoder.headless else MlxSession
            return kind(model, decoder, options, cache_type, device)
    except (RuntimeError, ValueError, MemoryError) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(f"mlx cannot load {variant}: {error}") from None


def _float_type(payload: Payload, options: Options, device: mx.Device) -> mx.Dtype:
    """Return the type of all that is not packed: the payload's, or float32 with a float32 cache.

    On a GPU 16-bit weights keep their type under such a cache: widened, they would take twice the memory.
    """
    if options.kv_cache == "f32" and (payload.packings or device == mx.cpu):
        return mx.float32
    return {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}[payload.float_type]


def _cache_type(decoder: Decoder, options: Options, payload: Payload) -> mx.Dtype:
    """Return the KV cache's type. bfloat16 has the range of float32, which activations may need."""
    if options.kv_cache == "f32":
        return mx.float32
    return mx.bfloat16 if payload.float_type == "BF16" or decoder.wide else mx.float16
