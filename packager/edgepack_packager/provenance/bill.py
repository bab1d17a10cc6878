"""``aibom.cdx.json``: what a bundle is made of, as a machine-learning bill of materials of CycloneDX 1.7.

The format is https://cyclonedx.org/docs/1.7/json/. The model is the bill's subject, with its source as an ancestor;
each variant is a component that was made of it, with what the proof measured in its model card.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from edgepack.bundle.files import DRAFT, VARIANTS
from edgepack.bundle.manifest import File, License, Loss, Manifest, Source, Variant
from edgepack.bundle.receipt import Receipt
from edgepack_packager.provenance import origin
from edgepack_packager.provenance.origin import Fields

FILE: Final = "aibom.cdx.json"

_NORMAL: Final = 1.96
"""Standard errors to both sides that hold 95 of 100 means."""

_MODEL: Final = "machine-learning-model"


def encode(manifest: Manifest, receipt: Receipt | None) -> bytes:
    """Return the bill of a manifest and its receipt; its serial number follows from the rest of it."""
    bill: Fields = {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": list(_tools(manifest))},
            "component": _model(manifest),
        },
        "components": [
            *(_variant(manifest, each, receipt) for each in manifest.variants),
            *(
                _package("framework", name, version) | {"bom-ref": f"engine:{name}@{version}"}
                for name, version in origin.engines(manifest)
            ),
            *_others(manifest),
        ],
        "dependencies": list(_dependencies(manifest)),
    }
    digest = hashlib.sha256(origin.encoded(bill)).hexdigest()
    return origin.encoded({**bill, "serialNumber": uuid5(NAMESPACE_URL, f"urn:edgepack:aibom:{digest}").urn})


def _tools(manifest: Manifest) -> Iterator[Fields]:
    yield _package("application", "edgepack", manifest.producer.edgepack)
    yield from (_package("library", name, version) for name, version in manifest.producer.packages.items())


def _package(kind: str, name: str, version: str) -> Fields:
    return {"type": kind, "name": name, "version": version, "purl": origin.package_url(name, version)}


def _model(manifest: Manifest) -> Fields:
    decoder = manifest.decoder
    task = "text-generation" if manifest.embedding is None else "feature-extraction"
    return {
        "type": _MODEL,
        "bom-ref": "model",
        "name": manifest.name,
        "version": manifest.version,
        "licenses": _licences(manifest.license),
        "components": [_file(file.path, file) for file in manifest.files],
        "pedigree": {"ancestors": [_source(manifest.source) | {"components": _parts(manifest.source)}]},
        "modelCard": {
            "modelParameters": {
                "task": task,
                "architectureFamily": decoder.family,
                "modelArchitecture": decoder.architecture,
                "inputs": [{"format": "string"}],
                "outputs": [{"format": "string" if manifest.embedding is None else "vector"}],
            }
        },
        "properties": _properties(
            parameters=decoder.n_parameters, context=manifest.context.profile, sequence=manifest.sequence
        ),
    }


def _source(source: Source) -> Fields:
    url = origin.source_url(source)
    revision: Fields = {"version": source.revision} if source.revision else {}
    return {"type": _MODEL, "name": source.repository or source.name, **revision} | ({"purl": url} if url else {})


def _parts(source: Source) -> list[Fields]:
    return [_file(file.path, file) for file in source.files]


def _file(name: str, file: File) -> Fields:
    return {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": file.sha256}]}


def _licences(licence: License) -> list[Fields]:
    named: Fields = {"name" if licence.id.startswith("LicenseRef-") else "id": licence.id}
    url: Fields = {"url": licence.url} if licence.url and re.fullmatch(r"https://[!-~]+", licence.url) else {}
    return [{"license": {**named, **url, "acknowledgement": "declared"}}]


def _variant(manifest: Manifest, variant: Variant, receipt: Receipt | None) -> Fields:
    made = variant.quantization
    return {
        "type": _MODEL,
        "bom-ref": f"variant:{variant.id}",
        "name": variant.id,
        "version": manifest.version,
        "licenses": _licences(manifest.license),
        "components": [_file(f"{VARIANTS}/{variant.id}/{file.path}", file) for file in variant.files],
        "pedigree": {
            "ancestors": [_source(manifest.source)],
            "notes": f"Converted to {variant.target} and quantised to {made.scheme}, {made.bits:g} bits a weight.",
        },
        "modelCard": {
            "quantitativeAnalysis": {"performanceMetrics": [*_metrics(variant), *_held_out(variant, receipt)]}
        },
        "properties": _properties(
            target=variant.target, scheme=made.scheme, proven=str(variant.proof is not None).lower()
        ),
    }


def _metrics(variant: Variant) -> Iterator[Fields]:
    proof = variant.proof
    if proof is None:
        return
    for gate in proof.gates:
        yield {"type": gate.name, "value": repr(gate.value), "slice": f"gate: {gate.holds} {gate.limit!r}"}
    for part, loss in proof.loss.items():
        yield from _losses(part, loss)
    if proof.vectors:
        for kind, value in (("cosine", proof.vectors.cosine), ("least cosine", proof.vectors.least)):
            yield {"type": kind, "value": repr(value), "slice": f"vectors of {proof.vectors.texts} texts"}


def _losses(part: str, loss: Loss) -> Iterator[Fields]:
    where = f"{loss.tokens} tokens of {part}"
    yield _metric("KL divergence (nats)", loss.kl, loss.kl_error, where)
    yield _metric("top-1 agreement", loss.top1, loss.top1_error, where)
    yield _metric("perplexity ratio", loss.perplexity, loss.perplexity_error, where)


def _held_out(variant: Variant, receipt: Receipt | None) -> Iterator[Fields]:
    measured = receipt.of(variant.id) if receipt else None
    if receipt is None or measured is None:
        return
    lost, where = measured.lost, f"{receipt.text.tokens} held-out tokens of {receipt.text.name}"
    yield _metric("KL divergence (nats)", lost.kl, lost.kl_error, where)
    yield _metric("top-1 agreement", lost.top1, lost.top1_error, where)
    yield _metric("perplexity ratio", lost.ratio, lost.ratio_error, where)


def _metric(kind: str, value: float, error: float, where: str) -> Fields:
    low, high = (f"{value + side * _NORMAL * error:.6g}" for side in (-1, 1))
    return {
        "type": kind,
        "value": repr(value),
        "slice": where,
        "confidenceInterval": {"lowerBound": low, "upperBound": high},
    }


def _others(manifest: Manifest) -> Iterator[Fields]:
    recipe = manifest.producer.recipe
    digests = {
        "data": (f"calibration: {recipe.get('calibrate')}", recipe.get("calibrate_sha256")),
        _MODEL: (f"{DRAFT}/manifest.json", manifest.draft),
    }
    for kind, (name, digest) in digests.items():
        if digest:
            yield {"type": kind, "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}


def _dependencies(manifest: Manifest) -> Iterator[Fields]:
    yield {"ref": "model", "dependsOn": [f"variant:{each.id}" for each in manifest.variants]}
    for each in manifest.variants:
        engines = ["engine:{}@{}".format(*origin.engine(each.proof))] if each.proof else []
        yield {"ref": f"variant:{each.id}", "dependsOn": engines}


def _properties(**values: object) -> list[Fields]:
    return [{"name": f"edgepack:{name}", "value": str(value)} for name, value in values.items()]
