"""The random models that embed, and their bundles for all engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from embedding_models import MODELS

from edgepack_packager.build import Built, build
from edgepack_packager.recipe import Recipe

BACKENDS = ("gguf", "mlx", "onnx")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {name: make(tmp_path_factory.mktemp("sources") / name) for name, make in MODELS.items()}


@pytest.fixture(scope="session")
def bundles(sources: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Built]:
    out = tmp_path_factory.mktemp("bundles")
    quants = dict.fromkeys(("last", "gemma"), ("f32", "q8", "q4"))
    return {
        name: build(str(folder), Recipe(BACKENDS, quants.get(name, ("f32",))), out / f"{name}.edgepack")
        for name, folder in sources.items()
    }
