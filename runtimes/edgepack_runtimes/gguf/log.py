"""llama.cpp's log goes to the Python logger ``edgepack.gguf`` and nowhere else.

The reason of a failed load is only in that log, and so is where a model went, so ``errors`` and ``lines`` collect it. A
callback may come from any thread.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from edgepack.errors import visible

logger: Final = logging.getLogger("edgepack.gguf")
# Without a handler of its own, logging would print warnings of an unconfigured program to stderr.
logger.addHandler(logging.NullHandler())

_CONTINUED: Final = 5
# enum ggml_log_level. The engine's "info" is a page per load, which is debug output for whoever embeds it.
_LEVELS: Final = {0: logging.DEBUG, 1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}


class _Sink(threading.local):
    """What one thread has logged: an unfinished line, and lists that collect lines from some level on."""

    def __init__(self) -> None:
        self.level = logging.DEBUG
        self.line = ""
        self.lists: list[tuple[int, list[str]]] = []


_sink = _Sink()


def _receive(level: int, text: bytes | None, _: int | None) -> None:
    if level != _CONTINUED:
        _flush()
        _sink.level = _LEVELS.get(level, logging.DEBUG)
    wanted = min((least for least, _ in _sink.lists), default=logging.WARNING)
    if _sink.level < wanted and not logger.isEnabledFor(_sink.level):
        return
    _sink.line += (text or b"").decode(errors="replace")
    if _sink.line.endswith("\n"):
        _flush()


def _flush() -> None:
    line, _sink.line = visible(_sink.line.strip()), ""  # it may hold what the file says of itself
    if not line.strip("."):  # a load draws its progress as dots
        return
    for least, lines in _sink.lists:
        if _sink.level >= least:
            lines.append(line)
    logger.log(_sink.level, "%s", line)


_callback: Final = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_receive)


def install(native: ctypes.CDLL) -> None:
    """Route the library's log into Python until the interpreter exits, and to nothing from then on."""
    native.llama_log_set(ctypes.cast(_callback, ctypes.c_void_p), None)
    atexit.register(_silence, native)


def _silence(native: ctypes.CDLL) -> None:
    # Null would restore the library's own printing to stderr. A function that ignores its arguments and touches
    # nothing is a sink that needs no interpreter.
    native.llama_log_set(ctypes.cast(native.llama_max_devices, ctypes.c_void_p), None)


def errors() -> AbstractContextManager[list[str]]:
    """Collect the error lines that this thread's calls log."""
    return _collect(logging.ERROR)


def lines() -> AbstractContextManager[list[str]]:
    """Collect all lines that this thread's calls log."""
    return _collect(logging.DEBUG)


@contextmanager
def _collect(least: int) -> Iterator[list[str]]:
    collected: list[str] = []
    _sink.lists.append((least, collected))
    try:
        yield collected
    finally:
        _flush()
        _sink.lists.pop()
