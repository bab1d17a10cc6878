"""``provenance.intoto.json``: how a bundle was built, as an in-toto Statement with SLSA's provenance predicate.

The format is in-toto's Statement v1 and https://slsa.dev/spec/v1.0/provenance. A build on one's own machine reaches
SLSA's first level: the statement is there; only a signature says who vouches for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgepack.bundle.files import DRAFT, MANIFEST, VARIANTS
from edgepack.bundle.manifest import File, Manifest
from edgepack_packager.provenance import origin
from edgepack_packager.provenance.origin import Fields

FILE: Final = "provenance.intoto.json"
BUILD_TYPE: Final = "urn:edgepack:build:1"
BUILDER: Final = "urn:edgepack:packager"


def encode(manifest: Manifest) -> bytes:
    """Return the statement of a manifest, whose files are its subjects; it is not among them itself."""
    recipe = manifest.producer.recipe
    parameters: Fields = {
        "source": {"name": manifest.source.name, "url": origin.source_url(manifest.source)},
        "recipe": {name: value for name, value in recipe.items() if name != "notes"},
        "name": manifest.name,
        "version": manifest.version,
        "sequence": manifest.sequence,
    }
    return origin.encoded(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [_described(name, file) for name, file in _outputs(manifest)],
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": parameters,
                    "resolvedDependencies": list(_inputs(manifest)),
                },
                "runDetails": {
                    "builder": {
                        "id": BUILDER,
                        "version": {"edgepack": manifest.producer.edgepack},
                        "builderDependencies": [
                            {"name": name, "uri": origin.package_url(name, version)}
                            for name, version in sorted(
                                {*manifest.producer.packages.items(), *origin.engines(manifest)}
                            )
                        ],
                    }
                },
            },
        }
    )


def _outputs(manifest: Manifest) -> Iterator[tuple[str, File]]:
    yield from ((file.path, file) for file in manifest.files)
    for variant in manifest.variants:
        yield from ((f"{VARIANTS}/{variant.id}/{file.path}", file) for file in variant.files)


def _inputs(manifest: Manifest) -> Iterator[Fields]:
    source, recipe = manifest.source, manifest.producer.recipe
    if (url := origin.source_url(source)) is not None:
        commit: Fields = {"digest": {"gitCommit": source.revision}} if source.revision else {}
        yield {"name": source.name, "uri": url, **commit}
    yield from (_described(file.path, file) for file in source.files)
    if text := recipe.get("calibrate_sha256"):
        yield {"name": f"calibrate {recipe.get('calibrate')}", "digest": {"sha256": text}}
    for name, id in ((DRAFT, manifest.draft), ("parent", manifest.parent)):
        if id is not None:
            yield {"name": f"{name}/{MANIFEST}", "digest": {"sha256": id}}


def _described(name: str, file: File) -> Fields:
    return {"name": name, "digest": {"sha256": file.sha256}}
