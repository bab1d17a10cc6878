"""The models that the reference is held to transformers with: random ones, stories-260K and the demo model."""

from __future__ import annotations

import hashlib
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from oracle_models import ORACLE_MODELS

from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint

POSITIONS = 300

DEMO = Path(str(files("edgepack_packager"))) / "demo_model"


def names() -> list[str]:
    """Return the names of all models."""
    return [*ORACLE_MODELS, "stories-260K", *(["demo"] if (DEMO / "config.json").exists() else [])]


def params() -> list[object]:
    """Return the names as pytest parameters, the shared one marked."""
    return [pytest.param(name, marks=pytest.mark.shared) if name == "stories-260K" else name for name in names()]


def folder(name: str, scratch: Path) -> Path:
    """Return a model's folder; a random model is made in ``scratch``. Skips where the shared data is not there."""
    if name in ORACLE_MODELS:
        return ORACLE_MODELS[name].make(scratch / name)
    if name == "demo":
        return DEMO
    place = os.environ.get("EDGEPACK_SHARED")
    if not place:
        pytest.skip("EDGEPACK_SHARED names no folder")
    return Path(place) / "models" / name


def context(name: str) -> int | None:
    """Return the context that a model is described for; None leaves it to its family."""
    return ORACLE_MODELS[name].context if name in ORACLE_MODELS else None


def ids(name: str, folder: Path) -> list[int]:
    """Return ``POSITIONS`` random token ids of a model, or as many as it is described for, the same at every call."""
    with open_checkpoint(folder) as checkpoint:
        decoder = families.describe(checkpoint.config, context(name))
    count = min(POSITIONS, decoder.context)
    return [int(id) for id in np.random.default_rng(0).integers(0, decoder.n_vocab, count)]


def digest(folder: Path) -> str:
    """Return one sha256 over all weight files and config.json: golden logits belong to exactly these."""
    with open_checkpoint(folder) as checkpoint:
        paths = [folder / "config.json", *checkpoint.files]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
