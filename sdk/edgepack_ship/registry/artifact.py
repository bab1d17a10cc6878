"""The OCI artifact that holds a bundle: a ModelPack manifest, its configuration, and a layer for each file.

The media types and annotations are those of the CNCF's model-spec, version 1. Bytes in and values out. A layer is the
file itself, neither packed nor compressed: its digest is the one in the bundle's manifest, equal files of several
bundles are one blob, and a part of it can be asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from posixpath import splitext
from typing import Annotated

import msgspec

from edgepack.bundle.files import MANIFEST, SIGNATURE, VARIANTS
from edgepack.bundle.manifest import Size
from edgepack.errors import TransferError
from edgepack_ship.contents import Contents

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
DOC = "application/vnd.cncf.model.doc.v1.raw"
FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
"""What ``oras`` takes for a file's name."""

MAX_ARTIFACT = 4 << 20
"""The bytes that registries take of a manifest, at the least and mostly at the most."""

# Of a variant's files, what an engine reads beside the weights.
_TEXTS = (".json", ".jinja", ".txt", ".model", ".toml", ".yaml")

Digest = Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$")]


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A blob by its digest."""

    media_type: str
    digest: Digest
    size: Size
    annotations: dict[str, str] | None = None


class Artifact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """The manifest of an artifact. What others put beside these fields is passed over."""

    schema_version: int
    media_type: str | None = None
    artifact_type: str | None = None
    config: Descriptor
    layers: list[Descriptor]
    annotations: dict[str, str] | None = None

    def layer(self, path: str) -> Descriptor | None:
        """Return the layer that is annotated with a path, None without one. Raises ``TransferError`` for two."""
        found = {each.digest: each for each in self.layers if path in _paths(each)}
        if len(found) > 1:
            raise TransferError(f"The registry's artifact has two layers called {path}.", hint="Push the bundle again.")
        return next(iter(found.values()), None)

    def digests(self) -> frozenset[str]:
        """Return the digests of all layers."""
        return frozenset(each.digest for each in self.layers)


@dataclass(frozen=True, slots=True)
class Composed:
    """An artifact that is to be pushed: the bytes of its manifest and of the blobs that are in memory, by digest, and
    the bundle's files that are its other layers, by digest as well, with path and size."""

    manifest: bytes
    held: Mapping[str, bytes]
    files: Mapping[str, tuple[str, int]]

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def digest_of(data: bytes) -> str:
    """Return the digest of bytes as registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compose(contents: Contents, signature: bytes | None, variants: Sequence[str]) -> Composed:
    """Return the artifact of a bundle with the named variants; the same bundle gives the same bytes."""
    texts = {**contents.manifests(), **({} if signature is None else {SIGNATURE: signature})}
    files = contents.files(variants)
    licences = set(contents.manifest.license.files)
    layers = [_layer(path, file.sha256, file.size, _media_type(path, licences)) for path, file in files.items()]
    layers += [
        _layer(path, hashlib.sha256(data).hexdigest(), len(data), _media_type(path, licences))
        for path, data in texts.items()
    ]
    config = _config(contents, variants, layers)
    about = contents.manifest
    artifact = Artifact(
        schema_version=2,
        media_type=OCI_MANIFEST,
        artifact_type=MODEL,
        config=Descriptor(CONFIG, digest_of(config), len(config)),
        layers=layers,
        annotations={
            TITLE: about.name,
            "org.opencontainers.image.version": about.version,
            "org.opencontainers.image.licenses": about.license.id,
        },
    )
    held = {digest_of(data): data for data in (config, *texts.values())}
    return Composed(_json(artifact), held, {f"sha256:{file.sha256}": (path, file.size) for path, file in files.items()})


def decode(data: bytes, place: str) -> Artifact:
    """Return the artifact of a manifest's bytes. Raises ``TransferError`` for anything else, such as an image index."""
    try:
        return msgspec.json.decode(data, type=Artifact)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise TransferError(
            f"{place} is no artifact that holds a bundle: {error}.", hint="Check the repository and the tag."
        ) from None


def _paths(layer: Descriptor) -> tuple[str | None, ...]:
    annotations = layer.annotations or {}
    return annotations.get(FILEPATH), annotations.get(TITLE)


def _layer(path: str, sha256: str, size: int, media_type: str) -> Descriptor:
    return Descriptor(media_type, f"sha256:{sha256}", size, {FILEPATH: path, TITLE: path})


def _media_type(path: str, licences: set[str]) -> str:
    end = splitext(path)[1]
    if path in licences or end == ".md" or path == SIGNATURE or path.split("/")[0] == "evidence":
        return DOC
    if path == MANIFEST or end in _TEXTS or VARIANTS not in path.split("/"):
        return WEIGHT_CONFIG
    return WEIGHT


def _config(contents: Contents, variants: Sequence[str], layers: list[Descriptor]) -> bytes:
    """Return the model's configuration, as the spec's schema has it; what several variants differ in is left out."""
    about = contents.manifest
    chosen = [each for each in about.variants if each.id in variants]
    targets, schemes = {each.target for each in chosen}, {each.quantization.scheme for each in chosen}
    capabilities = {"inputTypes": ["text"], "outputTypes": ["embedding" if about.embedding else "text"]}
    technical: dict[str, object] = {"capabilities": capabilities}
    if len(targets) == 1:
        technical["format"] = targets.pop()
    if len(schemes) == 1:
        technical["quantization"] = schemes.pop()
    descriptor = {"name": about.name, "version": about.version, "licenses": [about.license.id]}
    if about.source.revision:
        descriptor["revision"] = about.source.revision
    digests = [each.digest for each in layers]
    return _json({"descriptor": descriptor, "config": technical, "modelfs": {"type": "layers", "diffIds": digests}})


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)
