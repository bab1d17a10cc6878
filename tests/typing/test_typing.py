"""The types that an application sees: its script passes the strictest checker, and does what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("user_script.py")
STRICT = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error"}


def test_the_script_runs() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    assert "Hello!" in done.stdout
    assert "<Result" in done.stdout


@pytest.mark.oracle
def test_the_script_passes_pyright_strict(tmp_path: Path) -> None:
    script = tmp_path / SCRIPT.name  # away from the sources, as an application is
    script.write_text(SCRIPT.read_text("utf-8"), "utf-8")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(STRICT))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    report = json.loads(done.stdout)
    told = [f"{each['range']['start']['line'] + 1}: {each['message']}" for each in report["generalDiagnostics"]]
    assert (report["summary"]["filesAnalyzed"], told) == (1, [])
