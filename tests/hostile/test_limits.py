"""The children in which the other tests of this folder let the worst happen report it rightly."""

from __future__ import annotations

import os
import signal
import time

import pytest
from limited import in_child

from edgepack.errors import UsageError

pytestmark = pytest.mark.hostile


def refuse() -> None:
    raise UsageError("No.")


def test_each_end_is_told_apart() -> None:
    assert in_child(lambda: 7).text == "7"
    assert in_child(refuse).kind == "UsageError"
    assert in_child(lambda: 1 // 0).kind == "raw ZeroDivisionError"
    assert in_child(lambda: bytearray(2**31), gigabytes=1).kind == "raw MemoryError"
    assert in_child(lambda: os.kill(os.getpid(), signal.SIGSEGV)).kind == "signal SIGSEGV"
    assert in_child(lambda: time.sleep(60), seconds=0.1).kind == "no end"
