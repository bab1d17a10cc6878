"""Loops that numba compiles run whatever the folders that should keep their machine code: each in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOOP = """
import sys
import numpy as np
from numba import njit
from edgepack_packager.jit import compiled


def twice(x):
    for i in range(len(x)):
        x[i] = 2 * x[i]


def kept():
    try:
        njit(cache=True)(twice)
    except RuntimeError:
        return False
    return True


x = np.ones(3)
compiled(twice)(x)
print(x.sum(), kept())
"""


def run(script: Path, **surroundings: str) -> str:
    without = {"NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in without} | surroundings
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A module in a folder where nothing can be kept, for root neither: its ``__pycache__`` is a file."""
    (tmp_path / "__pycache__").touch()
    path = tmp_path / "loop.py"
    path.write_text(LOOP)
    return path


def test_a_host_without_a_folder_to_write_compiles_each_time(script: Path) -> None:
    assert run(script, HOME="/dev/null") == "6.0 False"


def test_a_damaged_folder_is_passed_over(script: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    for content in (None, b"", b"\x80\x04damaged"):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert bool(files) == (content is not None)
        for path in files:
            path.write_bytes(content or b"")
        assert run(script, HOME="/dev/null", NUMBA_CACHE_DIR=str(folder)) == "6.0 True"


def test_processes_that_compile_at_once_all_run(script: Path, tmp_path: Path) -> None:
    surroundings = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    command = [sys.executable, str(script)]
    together = [subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [each.communicate()[0].strip() for each in together] == ["6.0 True"] * 3
