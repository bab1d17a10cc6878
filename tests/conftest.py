"""Fixtures that many tests share. Bundles are built once a session, by the real build."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from models import LLAMA3, make_llama

from edgepack import open_bundle
from edgepack.bundle import manifest
from edgepack_packager.build import Built, Recipe, build

# The gate tries the same examples each time; `pytest --hypothesis-profile=default` searches for new ones.
settings.register_profile("gate", derandomize=True)
settings.load_profile("gate")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--share 0.1`` runs a tenth of what the tests in ``tests/hostile`` try."""
    parser.addoption("--share", type=float, default=1.0, help="the part of the hostile inputs that is tried")


@pytest.fixture(scope="session")
def portion(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many of so many hostile inputs this run tries: at least one."""
    share: float = request.config.getoption("--share")
    return lambda whole: max(1, round(whole * share))


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """Ctrl-C is heard here, and by every program that a test starts, also where a shell started the tests in the
    background and had it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP as a terminal sends it, where the tests were started by nohup too, which has it ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What edgepack remembers of bundles goes to a folder of the tests' own."""
    os.environ["EDGEPACK_STATE"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def build_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What builds remember of each other goes to a folder of the tests' own."""
    os.environ["EDGEPACK_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real tokenizers, vectors and models; its licences keep it out of this repository."""
    place = os.environ.get("EDGEPACK_SHARED")
    if not place:
        pytest.skip("EDGEPACK_SHARED names no folder")
    return Path(place)


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The demo model for all three targets, exact and in 4 bits."""
    out = tmp_path_factory.mktemp("demo") / "demo.edgepack"
    return build("demo", Recipe(("gguf", "mlx", "onnx"), ("f32", "q4")), out)


@pytest.fixture(scope="session")
def one_variant(demo_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with one of its variants: a load that has a choice times the engines, for seconds on a busy machine."""
    out, variant = tmp_path_factory.mktemp("one") / "demo.edgepack", "onnx-int4_mixed"
    others = [each.id for each in demo_bundle.manifest.variants if each.id != variant]
    shutil.copytree(demo_bundle.path, out, ignore=shutil.ignore_patterns("manifest.json", *others))
    kept = [each for each in demo_bundle.manifest.variants if each.id == variant]
    (out / "manifest.json").write_bytes(manifest.encode(msgspec.structs.replace(demo_bundle.manifest, variants=kept)))
    return open_bundle(out).path


@pytest.fixture(scope="session")
def sharded_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random, sharded, untied fp16 Llama with llama3 rope."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    return make_llama(folder, seed=11, dtype="f16", shards=3, tied=False, hidden=256, intermediate=512, rope=LLAMA3)
