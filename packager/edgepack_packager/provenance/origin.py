"""What both documents name alike: the source, packages, and how JSON is written."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from edgepack.bundle.manifest import Manifest, Proof, Source

Fields = dict[str, object]


def source_url(source: Source) -> str | None:
    """Return a repository of the hub as a package URL, None for a local folder."""
    if source.repository is None:
        return None
    revision = f"@{source.revision}" if source.revision else ""
    return f"pkg:huggingface/{quote(source.repository)}{revision}"


def package_url(name: str, version: str) -> str:
    """Return a Python package as a package URL."""
    return f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version)}"


def engine(proof: Proof) -> tuple[str, str]:
    """Return the package whose engine proved a variant, and its version."""
    name, _, version = proof.engine.rpartition(" ")
    return name, version


def engines(manifest: Manifest) -> list[tuple[str, str]]:
    """Return those of all variants, each once, sorted."""
    return sorted({engine(variant.proof) for variant in manifest.variants if variant.proof})


def encoded(document: Mapping[str, object]) -> bytes:
    """Return a document's bytes: JSON, UTF-8, one-space indent, a final newline."""
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
