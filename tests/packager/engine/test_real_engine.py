"""llama.cpp compiled, installed beside nothing, and run: it computes what the wheel computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgepack_packager.build import Built
from edgepack_packager.engine import build as building

pytestmark = pytest.mark.engine

PROGRAM = """
import json, sys
import numpy as np
from edgepack.bundle.files import open_bundle
from edgepack.runtime import Options
from edgepack_runtimes.gguf import GgufRuntime
bundle = open_bundle(sys.argv[1])
runtime, ids = GgufRuntime(), list(range(5, 45))
logits = {}
for variant in ("gguf-f32", "gguf-q4_k_m"):
    spins = (None, True, False) if sys.argv[2] == "edgepack-llama" else (None,)
    for spin in spins:
        session = runtime.open(bundle.variant_path(variant), bundle.manifest.decoder, Options(256, 2, "f32", spin=spin))
        found = session.forward_all(ids).tolist()
        assert logits.setdefault(variant, found) == found
        session.close()
rows = np.sin(np.arange(64 * 1024, dtype=np.float32)).reshape(64, 1024)
print(json.dumps([runtime.engine_version(), logits, [
    runtime.quantize(name, rows).tobytes().hex() for name in ("q4_k", "q5_k", "q6_k", "q4_0", "q8_0")
]]))
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of this machine as a folder to put before others on the path."""
    given = os.environ.get("EDGEPACK_ENGINE_SOURCE")
    folder = tmp_path_factory.mktemp("engine")
    name = "x86-64-v3" if building.detect().machine == "x86_64" else "arm64"
    wheel = building.build(name, source=Path(given) if given else None, out=folder).wheel
    assert wheel is not None
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(bundle: Built, *, first: Path | None, engine: str) -> tuple[str, dict[str, list[list[float]]], list[str]]:
    path = os.pathsep.join([*([str(first)] if first else []), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path, "EDGEPACK_ENGINE_GGUF": engine}
    command = [sys.executable, "-c", PROGRAM, str(bundle.path), engine]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    version, logits, encoded = json.loads(done.stdout)
    return version, logits, encoded


def test_it_computes_what_the_wheel_computes(engine: Path, demo_bundle: Built) -> None:
    version, logits, encoded = run(demo_bundle, first=engine, engine="edgepack-llama")
    wheel, expected, as_wheel = run(demo_bundle, first=None, engine="xllamacpp")
    assert "edgepack-llama" in version
    assert (".v3.g" in version) or ("+arm64.g" in version)
    assert version != wheel
    for variant, limit in (("gguf-f32", 1e-10), ("gguf-q4_k_m", 1e-3)):
        ours, theirs = np.array(logits[variant]), np.array(expected[variant])
        assert ((ours - theirs) ** 2).sum() / (theirs**2).sum() <= limit
    assert encoded == as_wheel  # the packager's bytes do not depend on the engine


def test_it_needs_no_library_of_openmp(engine: Path) -> None:
    for library in (engine / "edgepack_llama" / "lib").iterdir():
        assert b"libgomp" not in library.read_bytes()
        assert b"libomp" not in library.read_bytes()
