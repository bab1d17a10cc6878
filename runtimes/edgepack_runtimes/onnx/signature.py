"""What edgepack's own graphs read and write, by name and size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.bundle.decoder import Decoder
from edgepack.errors import EngineError
from edgepack.runtime import KvCache
from edgepack_runtimes.onnx.check import other_cache
from edgepack_runtimes.onnx.graph import output_name

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def check_signature(engine: InferenceSession, path: Path, decoder: Decoder, kv_cache: KvCache) -> None:
    """Raise ``EngineError`` unless the graph is this decoder's: buffers are made to the decoder's measure."""
    output = output_name(decoder)
    nodes = (*engine.get_inputs(), *engine.get_outputs())
    shapes = {node.name: node.shape for node in nodes}
    shapes |= {node.name: node.shape for node in engine.get_overridable_initializers()}
    caches = {name: shape for *names, shape in caches_of(decoder) for name in names}
    wanted: dict[str, tuple[int, ...]] = {output: (decoder.outputs,), **caches}
    for key, shape in decoder.states.items():
        wanted |= dict.fromkeys(state_names(*key), shape)
    wanted |= {"input_ids": (), "attention_mask": (), f"{output}_start": (1,)}
    found = {name: tuple(size for size in shape if isinstance(size, int)) for name, shape in shapes.items()}
    if found != wanted:
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise EngineError(f"{path} is not the graph of this decoder: {names[0]} differs.", hint="Build it again.")
    built_in = {"tensor(float)": "f32", "tensor(float16)": "f16", "tensor(int8)": "q8"}
    for node in nodes:
        if node.name in caches and built_in.get(node.type) != kv_cache:
            raise EngineError(
                f"{path} has no KV cache of {kv_cache}: {node.name} is a {node.type}.",
                hint=other_cache(kv_cache),
            )


def caches_of(decoder: Decoder) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Yield where the graph reads and where it writes each cache, by name, and its KV heads and head dimension."""
    for layer, attention in decoder.cached.items():
        for part in ("key", "value"):
            yield (
                f"past_key_values.{layer}.{part}",
                f"present.{layer}.{part}",
                (attention.n_kv_heads, attention.head_dim),
            )


def state_names(part: str, layer: int) -> tuple[str, str]:
    """Return where the graph reads and where it writes what a layer keeps whatever the number of tokens."""
    return f"past_{part}.{layer}", f"present_{part}.{layer}"
