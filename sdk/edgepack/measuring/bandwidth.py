"""How fast this machine's memory is read: the roof of decoding, measured while nobody else computes, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from edgepack.device.hardware import last_level_cache
from edgepack.device.neighbours import disturbs, look, taken

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUFFER = 256 * 1024 * 1024
TRIES = 3


def read_bandwidth(threads: int, repeats: int = 8) -> float | None:
    """Return the bytes per second that ``threads`` threads move together; None where others are busy all the time.

    It is the best of ``repeats`` rounds of three kernels, none of which holds the GIL or waits for anything but
    memory: a bitwise or of integers, a sum of floats, and a copy, of which the bytes read and those written count, as
    in STREAM (https://www.cs.virginia.edu/stream/). Which of them is the fastest differs between processors and with
    the number of threads. Each buffer is four times the last-level cache, at least 256 MiB.
    """
    import numpy as np

    numbers = np.ones(max(BUFFER, 4 * last_level_cache()) // 8, np.int64)
    parts = np.array_split(numbers, threads)
    copies = np.array_split(np.ones_like(numbers), threads)
    floats = [part.view(np.float64) for part in parts]
    kernels: list[tuple[int, Callable[..., Any], list[list[NDArray[Any]]]]] = [
        (1, np.bitwise_or.reduce, [parts]),
        (1, np.add.reduce, [floats]),
        (2, np.copyto, [copies, parts]),
    ]
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(TRIES):
            before, best = look(), 0.0
            for _ in range(repeats):
                for passes, kernel, arguments in kernels:
                    started = time.perf_counter()
                    list(pool.map(kernel, *arguments))
                    best = max(best, passes * numbers.nbytes / (time.perf_counter() - started))
            if not disturbs(taken(before, look()), threads):
                return best
    return None
