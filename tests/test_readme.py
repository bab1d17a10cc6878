"""What the README shows is true: its Python runs, and its table of quantisations is the targets' own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgepack_packager import targets
from edgepack_packager.build import Built

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_its_python_runs(demo_bundle: Built) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace("demo.edgepack", str(demo_bundle.path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "weights" in done.stdout


@pytest.mark.parametrize(("column", "target"), [(1, "gguf"), (2, "onnx"), (3, "mlx")])
def test_its_table_names_every_scheme(column: int, target: str) -> None:
    rows = [line.strip("|").split("|") for line in README.splitlines() if re.match(r"\| (`(f|q)\d+`|own names) ", line)]
    named = set(re.findall(r"\w+", " ".join(row[column] for row in rows)))
    assert set(targets.find(target).schemes) <= named
