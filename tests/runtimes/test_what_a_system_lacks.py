"""What keeps an engine from a machine is said with the next step that helps there."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgepack.device.hardware import Hardware
from edgepack_runtimes.gguf import GgufRuntime, library, selfcheck
from edgepack_runtimes.mlx import MlxRuntime
from edgepack_runtimes.onnx import OnnxRuntime, engine

PC = Hardware("linux", "x86_64", 4, 8, None, 16 << 30, 8 << 30)
MISSING = "libgomp.so.1: cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("said", "command"),
    [
        ('ID=debian\nVERSION_ID="12"', "apt-get install libgomp1"),
        ("ID=ubuntu\nID_LIKE=debian", "apt-get install libgomp1"),
        ("ID=fedora", "dnf install libgomp"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "dnf install libgomp"),
        ("ID=alpine", "apk add libgomp"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"', "zypper install libgomp1"),
        ("no such file", "apt-get install libgomp1"),
    ],
)
def test_the_command_for_openmp_is_the_systems_own(said: str, command: str, tmp_path: Path) -> None:
    if "=" in said:
        (tmp_path / "os-release").write_text(said)
    assert library.openmp_line(tmp_path / "os-release") == command


def test_a_system_without_openmp_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> None:
        raise OSError(MISSING)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    monkeypatch.setattr(selfcheck, "recall", lambda *question: None)
    monkeypatch.setattr(selfcheck.process, "can_start", lambda: False)
    support = GgufRuntime().probe(PC)
    assert support.devices == ()
    assert "needs the system's libgomp.so.1, which is not installed" in (support.reason or "")
    assert support.install == library.openmp_line()


@pytest.mark.parametrize("runtime", [GgufRuntime, MlxRuntime])
def test_a_32_bit_python_is_told_to_be_64_bit(
    runtime: type[GgufRuntime | MlxRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "maxsize", (1 << 31) - 1)
    for each in library.ENGINES:
        monkeypatch.setitem(selfcheck._verdicts, each, selfcheck.Verdict((), reason="not installed"))
    support = runtime().probe(PC)
    assert "This Python is 32-bit" in (support.reason or "")
    assert support.install is None
    assert "32-bit" in (engine.unavailable(PC) or "")


@pytest.mark.parametrize("machine", ["x86_64", "arm64"])
def test_the_cpu_package_over_the_gpu_package_is_seen(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia = replace(PC, machine=machine, accelerators=("cuda",))
    monkeypatch.setattr(engine, "_is_installed", lambda distribution: True)
    support = OnnxRuntime().probe(nvidia)
    assert support.devices == ("cpu",)
    assert support.reason == "The package onnxruntime was installed over onnxruntime-gpu, and is built without CUDA."
    assert (support.install or "").startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install")


def test_what_is_left_of_a_removed_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    support = OnnxRuntime().probe(PC)
    assert "onnxruntime could not be imported" in (support.reason or "")
    assert support.install == engine.INSTALL


def test_a_selfcheck_without_any_place_for_a_file_keeps_nobody_from_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*arguments: object, **options: object) -> int:
        raise OSError("No usable temporary directory")

    wheel = library.ENGINES[-1]
    assert "cpu" in selfcheck.examine(wheel).devices
    monkeypatch.setattr(tempfile, "TemporaryDirectory", nowhere)
    assert "cpu" in selfcheck.examine(wheel).devices
    monkeypatch.setattr(os, "memfd_create", nowhere)
    assert "cpu" in selfcheck.examine(wheel).devices
