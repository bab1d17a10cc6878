"""The random models that embed, and their bundles for all engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from embedding_models import MODELS

from edgepack_packager.build import Built, build
from edgepack_packager.recipe import Recipe

BACKENDS = ("gguf", "mlx", "onnx")
BUILT = {name: ("mlx",) if name == "gemma" else BACKENDS for name in MODELS}
"""The targets that each is built for: the attention of the others sees no token after its own."""


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {name: make(tmp_path_factory.mktemp("sources") / name) for name, make in MODELS.items()}


@pytest.fixture(scope="session")
def bundles(sources: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Built]:
    out = tmp_path_factory.mktemp("bundles")
    quants = {"last": ("f32", "q8", "q4")}
    return {
        name: build(str(folder), Recipe(BUILT[name], quants.get(name, ("f32",))), out / f"{name}.edgepack")
        for name, folder in sources.items()
    }
