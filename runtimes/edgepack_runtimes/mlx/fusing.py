"""Functions whose steps a GPU takes in one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import mlx.core as mx

Elementwise = TypeVar("Elementwise", bound=Callable[..., object])


def in_one_kernel(function: Elementwise) -> Elementwise:
    """Fuse the steps of a function where a GPU runs it.

    For a processor mlx would start a C++ compiler, and load what it makes from the folder for temporary files. Its own
    activations are compiled too, so they are spelt out here.
    """
    return cast(Elementwise, mx.compile(function, shapeless=True)) if mx.metal.is_available() else function
