"""The onnx side of edgepack without what Windows lacks, hidden from every process: a simulation, on another system.

It shows that nothing of it stands in the way: no module, no function, no flag. What Windows does otherwise, with paths,
open files and ends of lines, only Windows can show.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgepack_packager import positions
from edgepack_packager.build import Built

HERE = Path(__file__).parent

USE = """
import asyncio, sys
import edgepack
bundle = sys.argv[1]
with edgepack.load(bundle, backend="onnx", verify="always") as model:
    assert model.backend == "onnx"
    chat = model.chat(system="You are brief.")
    print(chat.send("What is edgepack?", max_tokens=8).usage.completion_tokens)
    print(model.generate("A year:", regex="[12][0-9]{3}").text)
    print(model.generate("A number:", json_schema={"type": "integer"}, max_tokens=8).text)
    with model.stream("Once", max_tokens=4) as stream:
        print(len(list(stream)))
    print(asyncio.run(model.agenerate("Once", max_tokens=3)).usage.completion_tokens)
"""


def windows(*command: str, state: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "EDGEPACK_STATE": str(state)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)


def test_the_simulation_hides_what_it_should(tmp_path: Path) -> None:
    code = "import os, sys; print(hasattr(os, 'pread'), hasattr(os, 'sched_getaffinity'), sys.modules.get('fcntl', 1))"
    assert windows("-c", code, state=tmp_path).stdout.split() == ["False", "False", "None"]


def test_a_bundle_is_loaded_and_used(demo_bundle: Built, tmp_path: Path) -> None:
    done = windows("-c", USE, str(demo_bundle.path), state=tmp_path)
    assert done.returncode == 0, done.stderr
    count, year, number, pieces, other = done.stdout.split()
    assert (int(count), len(year), other) == (8, 4, "3")
    assert int(number) or number == "0"
    assert int(pieces) >= 1


@pytest.mark.parametrize(
    "words",
    [
        ["doctor"],
        ["plan", "BUNDLE"],
        ["inspect", "BUNDLE"],
        ["verify", "BUNDLE", "--replay"],
        ["run", "BUNDLE", "Hello", "--backend", "onnx", "--max-tokens", "4"],
        ["bench", "BUNDLE", "--backend", "onnx", "--json"],
    ],
)
def test_commands_work(words: list[str], demo_bundle: Built, tmp_path: Path) -> None:
    given = [str(demo_bundle.path) if word == "BUNDLE" else word for word in words]
    done = windows("-m", "edgepack", *given, state=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_demo_is_built(tmp_path: Path) -> None:
    out = tmp_path / "demo.edgepack"
    done = windows(
        "-m", "edgepack", "build", "demo", "-t", "onnx", "-q", "q4", "-o", str(out), state=tmp_path / "state"
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []
    verified = windows("-m", "edgepack", "verify", str(out), "--replay", state=tmp_path / "state")
    assert verified.returncode == 0, verified.stderr


def test_files_are_read_and_written_at_a_place(tmp_path: Path) -> None:
    """By the calls of Windows, as by those of other systems."""
    code = (
        "import os, sys; from edgepack_packager.positions import read_at, write_at\n"
        "file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "print(write_at(file, b'abc\\r\\n', 4), read_at(file, 3, 5), read_at(file, 9, 100), hasattr(os, 'pread'))"
    )
    assert windows("-c", code, str(tmp_path / "file"), state=tmp_path).stdout.strip() == "5 b'bc\\r' b'' False"
    assert (tmp_path / "file").read_bytes() == b"\0\0\0\0abc\r\n"
    with (tmp_path / "file").open("rb") as file:
        assert positions.read_at(file.fileno(), 3, 5) == b"bc\r"
