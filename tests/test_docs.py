"""The Python in the guide runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgepack_packager.build import Built

GUIDE = (Path(__file__).parents[1] / "docs" / "sdk.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code: str, demo_bundle: Built, tmp_path: Path) -> None:
    (tmp_path / "demo.edgepack").symlink_to(demo_bundle.path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
