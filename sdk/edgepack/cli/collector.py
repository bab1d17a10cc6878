"""The garbage collector of a command.

What a command imports and loads stays to its end. Looking through it again and again, while there is ever more of it,
is a good part of the processor time of a short command.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def resting() -> Iterator[None]:
    """Let nothing be collected inside the block, which makes what stays."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
