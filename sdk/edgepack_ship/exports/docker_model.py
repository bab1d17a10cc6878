"""Docker Model Runner: an OCI image layout of the model, ready to be pushed to any registry.

Media types and the config are those of ``spec.md`` and ``config.md`` of docker/model-spec; Model Runner itself reads
``rootfs.diff_ids`` besides (``pkg/distribution/types/config.go`` of docker/model-runner), so that both are written. The
layout is that of the OCI image specification, ``image-layout.md``. A blob is not compressed, so that its digest is the
file's.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgepack.bundle.files import VARIANTS, listed
from edgepack.bundle.manifest import Variant
from edgepack.text.chat import TEMPLATE
from edgepack_ship.exports.differences import left_behind, templated
from edgepack_ship.exports.export import GGUF, Export, Made, as_json, write_text

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.docker.ai.model.config.v0.1+json"
WEIGHTS = "application/vnd.docker.ai.gguf.v3"
LICENCE = "application/vnd.docker.ai.license"
CHAT_TEMPLATE = "application/vnd.docker.ai.chat.template.jinja"
REFERENCE = "org.opencontainers.image.ref.name"
TAG = "latest"

Descriptor = dict[str, str | int]


def write(asked: Export, folder: Path) -> Made:
    """Write oci-layout, index.json and the blobs: the weights, the licence, the template, the config, the manifest."""
    variant = asked.variant("gguf")
    model = f"{VARIANTS}/{variant.id}/{GGUF}"
    kinds = {model: WEIGHTS, **dict.fromkeys(asked.manifest.license.files, LICENCE)}
    kinds |= dict.fromkeys(asked.shared(TEMPLATE), CHAT_TEMPLATE)
    known = listed(asked.manifest)
    layers = [_descriptor(kind, known[name].sha256, known[name].size) for name, kind in kinds.items()]
    blobs = {known[name].sha256: name for name in kinds}  # two licences may be one file
    asked.copy({name: f"blobs/sha256/{digest}" for digest, name in blobs.items()}, folder)
    config = _blob(folder, CONFIG, as_json(_config(asked, variant, known[model].size, layers)))
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    root = _blob(folder, MANIFEST, as_json(manifest))
    write_text(folder / "oci-layout", as_json({"imageLayoutVersion": "1.0.0"}))
    tagged = root | {"annotations": {REFERENCE: TAG}}
    write_text(folder / "index.json", as_json({"schemaVersion": 2, "manifests": [tagged]}))
    differs = (
        "Model Runner samples by its own defaults unless a request says otherwise: the artifact has no place for them.",
        *templated(asked.manifest, "Model Runner"),
        *left_behind(asked),
    )
    name = asked.name.lower()
    use = (f"oras cp --from-oci-layout .:{TAG} REGISTRY/{name}:{TAG}", f"docker model run REGISTRY/{name}:{TAG}")
    return Made(variant.id, differs, use)


def _config(asked: Export, variant: Variant, size: int, layers: list[Descriptor]) -> dict[str, object]:
    manifest = asked.manifest
    scheme = variant.quantization.scheme.upper()
    about = {"general.name": manifest.name, "general.architecture": manifest.decoder.family}
    return {
        "config": {
            "format": "gguf",
            "format_version": "3",
            "gguf": about,
            "architecture": manifest.decoder.family,
            "quantization": scheme,
            "size": str(size),
            "context_size": asked.context,
        },
        "descriptor": {},
        "rootfs": {"type": "rootfs", "diff_ids": [layer["digest"] for layer in layers]},
        "files": [{"diffID": layer["digest"], "type": layer["mediaType"]} for layer in layers],
    }


def _blob(folder: Path, kind: str, text: str) -> Descriptor:
    data = text.encode()
    digest = hashlib.sha256(data).hexdigest()
    write_text(folder / "blobs" / "sha256" / digest, text)
    return _descriptor(kind, digest, len(data))


def _descriptor(kind: str, sha256: str, size: int) -> Descriptor:
    return {"mediaType": kind, "digest": f"sha256:{sha256}", "size": size}
