"""What an exporter's ``model.onnx`` says of itself: its inputs, its outputs, and the weights that it holds.

The runtime checks the graph before an engine sees it; here it is read for the manifest and for the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from msgspec.structs import replace

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.exported import Exported
from edgepack.errors import BuildError, UnsupportedModelError
from edgepack.runtime import KvCache
from edgepack_packager.exporting.config import names
from edgepack_packager.exporting.weights import digest
from edgepack_packager.targets.onnx.layout import DATA_FILE, GRAPH_FILE

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto, ValueInfoProto

_FLOAT: Final = 1
_EXTERNAL: Final = 1


class OnnxPayload:
    """See ``exporting.Payload``."""

    name: ClassVar[str] = "onnx"
    runtime: ClassVar[str] = "onnx"
    kv_cache: ClassVar[KvCache | None] = None
    files: ClassVar[tuple[str, ...]] = (GRAPH_FILE, DATA_FILE)
    weights: ClassVar[str] = DATA_FILE

    def floor(self, decoder: Decoder) -> str:
        """Return the oldest onnxruntime that the runtime takes."""
        return "1.27"

    def described(self, folder: Path, decoder: Decoder, exporter: str, n_parameters: int) -> Decoder:
        """Return a decoder with what the graph in a folder says: its inputs and outputs, and the sizes of a KV cache.

        Raises ``UnsupportedModelError`` where they are not a decoder's with a cache of keys and values.
        """
        model = _load(folder)
        given = {value.name: _sizes(value) for value in model.graph.input}
        made = {value.name: _sizes(value) for value in model.graph.output}
        graph = names(decoder.n_layers, positions="position_ids" in given)
        wanted = {name for name in (graph.ids, graph.mask, graph.positions) if name}
        wanted |= {cell.past for cell in graph.cells}
        results = {graph.logits, *(cell.present for cell in graph.cells)}
        if odd := [*(wanted ^ given.keys()), *(results ^ made.keys())]:
            raise UnsupportedModelError(
                f"{exporter} wrote a graph of {decoder.architecture} that no runtime here can drive: "
                f"{min(odd)} is not among its inputs and outputs, or should not be.",
                hint="Keys and values of each layer, ids, a mask and positions are what a session has.",
            )
        sizes = {tuple(given[cell.past]) for cell in graph.cells}
        if len(sizes) > 1 or len(found := sizes.pop()) != 2 or made[graph.logits] != [decoder.n_vocab]:
            raise UnsupportedModelError(
                f"{exporter} wrote a graph of {decoder.architecture} with other sizes than config.json's."
            )
        kv_heads, head_dim = found
        told = Exported(exporter=exporter, n_parameters=n_parameters, graph=graph)
        (layer,) = decoder.kinds
        layer = replace(layer, mixer=replace(layer.mixer, n_kv_heads=kv_heads, head_dim=head_dim))
        return replace(decoder, kinds=(layer,), exported=told)

    def digests(self, folder: Path) -> Iterator[bytes]:
        """Yield the digest of each tensor of float32."""
        data = np.memmap(folder / DATA_FILE, np.uint8, "r")
        model = _load(folder)
        constants = (each.t for node in model.graph.node for each in node.attribute if each.HasField("t"))
        for tensor in (*model.graph.initializer, *constants):
            if tensor.data_type == _FLOAT:
                yield digest(_bytes(tensor, data))


def _bytes(tensor: TensorProto, data: np.memmap[tuple[int], np.dtype[np.uint8]]) -> bytes | memoryview:
    if tensor.data_location != _EXTERNAL:
        return bytes(tensor.raw_data)
    place = {entry.key: entry.value for entry in tensor.external_data}
    start = int(place["offset"])
    return data[start : start + int(place["length"])].data


def _load(folder: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model: ModelProto = onnx.load(str(folder / GRAPH_FILE), load_external_data=False)
    except DecodeError as error:
        raise BuildError(f"The exporter's {GRAPH_FILE} is not a model: {error}.") from None
    return model


def _sizes(value: ValueInfoProto) -> list[int]:
    return [size.dim_value for size in value.type.tensor_type.shape.dim if size.HasField("dim_value")]
