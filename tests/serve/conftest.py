"""The bundles that are served."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from edgepack import open_bundle
from edgepack.bundle import manifest
from edgepack_packager.build import Built


def kept(built: Built, variant: str, out: Path) -> Path:
    """Copy a bundle with one of its variants: a load that has a choice times the engines."""
    others = [each.id for each in built.manifest.variants if each.id != variant]
    shutil.copytree(built.path, out, ignore=shutil.ignore_patterns("manifest.json", *others))
    variants = [each for each in built.manifest.variants if each.id == variant]
    (out / "manifest.json").write_bytes(manifest.encode(msgspec.structs.replace(built.manifest, variants=variants)))
    return open_bundle(out).path


@pytest.fixture(scope="session")
def one_variant(demo_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept(demo_bundle, "onnx-int4_mixed", tmp_path_factory.mktemp("onnx") / "demo.edgepack")


@pytest.fixture(scope="session")
def gguf_variant(demo_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept(demo_bundle, "gguf-q4_k_m", tmp_path_factory.mktemp("gguf") / "demo.edgepack")
