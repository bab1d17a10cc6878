"""The bundle that the examples are run with."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from edgepack import open_bundle
from edgepack.bundle import manifest
from edgepack_packager.build import Built

VARIANT = "onnx-int4_mixed"


@pytest.fixture(scope="session")
def one_variant(demo_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with one of its variants: a load that has a choice times the engines, for seconds on a busy machine."""
    out = tmp_path_factory.mktemp("examples") / "demo.edgepack"
    others = [each.id for each in demo_bundle.manifest.variants if each.id != VARIANT]
    shutil.copytree(demo_bundle.path, out, ignore=shutil.ignore_patterns("manifest.json", *others))
    kept = [each for each in demo_bundle.manifest.variants if each.id == VARIANT]
    (out / "manifest.json").write_bytes(manifest.encode(msgspec.structs.replace(demo_bundle.manifest, variants=kept)))
    return open_bundle(out).path
