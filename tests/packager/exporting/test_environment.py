"""The environment of an exporter: what is locked, said before, made once and whole, and refused without a network."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgepack.errors import SourceError, UsageError
from edgepack_packager import exporting, programs
from edgepack_packager.exporting import environment
from edgepack_packager.exporting.environment import Lock

LOCKS = [exporter.lock for exporter in exporting.EXPORTERS]


class Heard:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, title: str, total: int) -> None:
        self.said.append(title)

    def advance(self, steps: int = 1) -> None:
        pass

    def warn(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lock:
    """A lock whose environment is yet to be made, on a machine that it has wheels for."""
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    monkeypatch.delenv(environment.OFFLINE, raising=False)
    monkeypatch.setattr(environment.sys, "platform", "linux")
    monkeypatch.setattr(environment.sys, "version_info", (3, 11, 7))
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    return LOCKS[0]


def fetching(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[Sequence[str]]:
    commands: list[Sequence[str]] = []

    def to_end(command: Sequence[str]) -> bytes:
        commands.append(command)
        if error is not None:
            raise error
        return b""

    monkeypatch.setattr(programs, "to_end", to_end)
    return commands


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.exporter)
def test_a_lock_names_versions_and_digests_and_no_place(lock: Lock) -> None:
    lines = [line for line in lock.data.decode().splitlines() if not line.startswith("#")]
    entry = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.+]*( ; [^/]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [line for line in lines if not entry.fullmatch(line)] == []
    assert [line for line in lines if line.startswith(("nvidia", "triton", "cuda"))] == []
    torch = [line for line in lines if line.startswith("torch==")]
    assert torch == ["torch==2.13.0 ; sys_platform == 'darwin' \\", "torch==2.13.0+cpu ; sys_platform == 'linux' \\"]


def test_it_is_said_then_made_and_then_kept(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fetching(monkeypatch)
    heard = Heard()
    python = environment.ready(lock, heard)
    assert python.exists()
    assert python == lock.python
    assert "263.2 MiB to download, 1.1 GiB on the disk" in heard.said[0]
    assert sorted({"--require-hashes", "--no-deps"} & {*commands[0]}, reverse=True) == ["--require-hashes", "--no-deps"]
    assert ":all:" in commands[0]
    assert environment.ready(lock, Heard()) == python
    assert len(commands) == 1


def test_one_that_cannot_be_fetched_leaves_nothing(lock: Lock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failure = subprocess.CalledProcessError(1, "pip", b"ERROR: No matching distribution found for torch==2.13.0+cpu\n")
    fetching(monkeypatch, failure)
    with pytest.raises(SourceError, match=r"pip cannot make the environment of optimum: .*torch") as raised:
        environment.ready(lock, Heard())
    assert "without CUDA" in str(raised.value.hint)
    assert list((tmp_path / "state" / "exporters").iterdir()) == []


@pytest.mark.parametrize("switch", ["1", "true", "ON"])
def test_no_network_is_asked_where_it_is_switched_off(switch: str, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fetching(monkeypatch)
    monkeypatch.setenv(environment.OFFLINE, switch)
    with pytest.raises(SourceError, match="yet to be made"):
        environment.ready(lock, Heard())
    assert commands == []
    monkeypatch.delenv(environment.OFFLINE)
    made = environment.ready(lock, Heard())
    monkeypatch.setenv(environment.OFFLINE, switch)
    assert environment.ready(lock, Heard()) == made


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.setattr(environment.sys, "platform", "win32"),
        lambda m: m.setattr(environment.sys, "version_info", (3, 13, 0)),
        lambda m: m.setattr(environment.platform, "machine", lambda: "aarch64"),
    ],
)
def test_a_machine_without_wheels(
    change: Callable[[pytest.MonkeyPatch], None], lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    with pytest.raises(UsageError, match="no packages locked"):
        environment.refuse(lock)


def test_without_pip_or_uv(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(programs.shutil, "which", lambda name: None)
    with pytest.raises(SourceError, match="neither pip nor uv"):
        environment.ready(lock, Heard())


def test_another_build_may_make_it_meanwhile(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_end(command: Sequence[str]) -> bytes:
        monkeypatch.setattr(programs, "to_end", lambda command: b"")
        assert environment.ready(lock, Heard()) == lock.python
        return b""

    monkeypatch.setattr(programs, "to_end", to_end)
    assert environment.ready(lock, Heard()).exists()


def test_another_python_has_another_environment(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lock.folder
    monkeypatch.setattr(environment.sys, "version", "4.0")
    assert lock.folder != before
