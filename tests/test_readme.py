"""What the README shows is true: its lines end well, and its table of quantisations is the targets' own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub import Hub

from edgepack.bundle.installed import STORE
from edgepack_packager import source, targets
from edgepack_packager.build import Built
from edgepack_packager.source import catalog

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def lines_of(name: str) -> list[str]:
    """The lines of the block that follows the comment of that name."""
    (block,) = re.findall(rf"<!-- {name} -->\n```sh\n(.*?)```", README, re.DOTALL)
    return block.splitlines()


def all_end_well(lines: list[str], folder: Path, env: dict[str, str]) -> None:
    """Type lines one after the other, in a folder and a shell."""
    (folder / "bin").mkdir()
    command = folder / "bin" / "edgepack"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgepack "$@"\n')
    command.chmod(0o755)
    env = env | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    for line in lines:
        done = subprocess.run(["sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "error:" not in done.stderr, line
        assert done.stdout or ">" in line, line


def test_its_questions_to_the_demo_end_well(demo_bundle: Built, tmp_path: Path) -> None:
    (tmp_path / "demo.edgepack").symlink_to(demo_bundle.path)
    all_end_well(lines_of("ask"), tmp_path, dict(os.environ))


def test_its_way_to_a_device_ends_well(demo_bundle: Built, tmp_path: Path) -> None:
    (tmp_path / "demo.edgepack").symlink_to(demo_bundle.path)
    all_end_well(lines_of("ship"), tmp_path, os.environ | {STORE: str(tmp_path / "store")})


def test_its_way_to_a_bundle_ends_well_without_an_account(tmp_path: Path) -> None:
    """The demo model stands for the one that it names, on a hub of this machine's."""
    entry = catalog.find("smollm2-135m")
    assert entry is not None
    lines = [*lines_of("own"), *lines_of("mac")]
    assert all(entry.alias in line for line in lines[1:])
    with Hub({entry.repository: source.find("demo").folder}) as hub:
        all_end_well(lines, tmp_path, hub.env(tmp_path / "home"))


@pytest.mark.parametrize(("column", "target"), [(1, "gguf"), (2, "onnx"), (3, "mlx")])
def test_its_table_names_every_scheme(column: int, target: str) -> None:
    rows = [
        line.strip("|").split("|")
        for line in README.splitlines()
        if re.match(r"\| (`(f|q)\d+`|own names|other blocks) ", line)
    ]
    named = re.findall(r"\w+", " ".join(row[column] for row in rows))
    endings = [name for name in named if name.startswith("_")]  # what stands for other blocks, after any of the names
    assert set(targets.find(target).schemes) <= {*named, *(name + ending for name in named for ending in endings)}
