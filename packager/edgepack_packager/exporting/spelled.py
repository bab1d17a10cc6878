"""Payloads of mlx-lm: a config.json and the weights as its model class spells them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import msgspec

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.exported import Exported
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint import CONFIG, SINGLE
from edgepack_packager.checkpoint.safetensors import SafetensorsFile
from edgepack_packager.exporting.weights import digest


class MlxPayload:
    """See ``exporting.Payload``."""

    name: ClassVar[str] = "mlx"
    runtime: ClassVar[str] = "mlx"
    kv_cache: ClassVar[KvCache | None] = "f32"
    files: ClassVar[tuple[str, ...]] = (CONFIG, SINGLE)
    weights: ClassVar[str] = SINGLE

    def floor(self, decoder: Decoder) -> str:
        """Return the version of mlx that the payloads were proven with."""
        return "0.32.4"

    def described(self, folder: Path, decoder: Decoder, exporter: str, n_parameters: int) -> Decoder:
        """Return a decoder without a graph: mlx-lm's model code is what runs it."""
        told = Exported(exporter=exporter, n_parameters=n_parameters)
        return msgspec.structs.replace(decoder, exported=told)

    def digests(self, folder: Path) -> Iterator[bytes]:
        """Yield the digest of each tensor."""
        with closing(SafetensorsFile(folder / SINGLE)) as file:
            for name, entry in file.entries.items():
                yield digest(file.rows(name, 0, entry.shape[0]).tobytes())
