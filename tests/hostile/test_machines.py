"""Machines that lack what others have: the command answers there, or says in one true sentence what is missing."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepack_packager.build import Built

pytestmark = pytest.mark.hostile

MIB = 1 << 20
NO_ROOM = 77

# Everything is read-only and no place can be written; "$HIDE" is covered by a folder that is empty and read-only too.
SEAL = f"""
mount --make-rprivate / || exit {NO_ROOM}
cut -d' ' -f5 /proc/self/mountinfo | while read -r place; do
  case "$place" in /proc*|/sys*|/dev*) ;; *) mount -o remount,bind,ro "$place" 2>/dev/null ;; esac
done
if touch "$PROBE" 2>/dev/null; then exit {NO_ROOM}; fi
for place in $HIDE; do if [ -d $place ]; then mount -t tmpfs -o ro tmpfs $place || exit {NO_ROOM}; fi; done
cd / && exec "$@"
"""


def run(
    bundle: Path, backend: str, *before: str, preexec: Callable[[], None] | None = None, **env: str
) -> tuple[int, str]:
    """Ask a bundle in a process of its own; return the exit code and all that it said."""
    words = [*before, sys.executable, "-m", "edgepack", "run", str(bundle), "hi", "--backend", backend]
    words += ["--threads", "1", "--max-tokens", "3"]
    whole = {name: value for name, value in (os.environ | env).items() if value != "absent"}
    ended = subprocess.run(
        words, capture_output=True, text=True, env=whole, preexec_fn=preexec, timeout=120, check=False
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("backend", ["gguf", "onnx", "mlx"])
@pytest.mark.parametrize("megabytes", range(130, 400, 30))
def test_a_small_address_space_is_enough_or_named(backend: str, megabytes: int, demo_bundle: Built) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * MIB, megabytes * MIB))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    code, said = run(demo_bundle.path, backend, preexec=small)
    assert code == 0 or (code == 1 and "memory" in said and said.count("error:") == 1), (code, said)
    assert "pip install" not in said
    assert "complete" not in said
    if megabytes >= 370:
        assert code == 0, said


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs mounts of its own")
@pytest.mark.parametrize("backend", ["gguf", "onnx", "mlx"])
@pytest.mark.parametrize("hidden", ["", "/sys", "/dev/shm", "/proc"])
def test_a_root_that_nobody_writes_answers(backend: str, hidden: str, demo_bundle: Built, tmp_path: Path) -> None:
    apart = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    env = {"PROBE": str(tmp_path / "probe"), "HIDE": hidden, "EDGEPACK_STATE": "/none/at/all", "HOME": "absent"}
    code, said = run(demo_bundle.path, backend, *apart, "sh", "-c", SEAL, "sh", **env)
    if code == NO_ROOM or "unshare:" in said:
        pytest.skip("this system makes no root that is read-only")
    assert code == 0 or (hidden == "/proc" and "Ensure /proc is mounted" in said), said


@pytest.mark.parametrize("backend", ["gguf", "onnx", "mlx"])
def test_a_small_stack_is_enough(backend: str, demo_bundle: Built) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (256 * 1024, 256 * 1024))

    code, said = run(demo_bundle.path, backend, preexec=small)
    assert code == 0, said


@pytest.mark.parametrize("backend", ["gguf", "onnx", "mlx"])
def test_a_user_without_a_home_is_answered(backend: str, demo_bundle: Built) -> None:
    code, said = run(demo_bundle.path, backend, HOME="absent", EDGEPACK_STATE="absent", XDG_STATE_HOME="absent")
    assert code == 0, said
