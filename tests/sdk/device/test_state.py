"""What is remembered in the state folder, and what is not taken for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgepack.device.state import circumstances, read_kept


def test_a_file_is_read_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "found"
    with pytest.raises(OSError, match="No such file"):
        read_kept(place)
    os.mkfifo(place)
    with pytest.raises(OSError, match="not what edgepack wrote"):  # and nobody waits for its other end
        read_kept(place)
    place.unlink()
    place.write_bytes(b"{}")
    assert read_kept(place) == b"{}"
    os.truncate(place, 1 << 40)
    with pytest.raises(OSError, match="not what edgepack wrote"):
        read_kept(place)


def test_another_name_of_the_interpreter_is_no_other_circumstance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = circumstances("a fact")
    (tmp_path / "python").symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert circumstances("a fact") == before
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert circumstances("a fact") != before
