"""Loops that numba compiles. Whatever is wrong with the folder that keeps the machine code, they run.

numba keeps the code beside the module, or in the user's cache folder, under the digest of the source and the kind of
processor, and puts it there whole or not at all: builds that compile at once write the same. Importing numba takes half
a second, so that only what runs a loop imports this. A fused multiply-add is never made: results are the same on every
processor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pickle import UnpicklingError
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])

_OPTIONS = {"nogil": True, "error_model": "numpy"}


def compiled(function: Function) -> Function:
    """Compile a function at its first call, or load what an earlier process compiled."""
    try:
        kernel = njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder that can be written: a read-only installation and a user without a home
        return cast(Function, njit(**_OPTIONS)(function))

    @wraps(function)
    def call(*arguments: Any) -> object:
        nonlocal kernel
        try:
            return kernel(*arguments)
        except (OSError, EOFError, UnpicklingError):  # the folder is full, or what it kept is damaged
            kernel = njit(**_OPTIONS)(function)
            return kernel(*arguments)

    return cast(Function, call)


def inlined(function: Function) -> Function:
    """Let compiled functions take this one in."""
    return cast(Function, njit(inline="always", error_model="numpy")(function))
