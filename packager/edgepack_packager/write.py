"""Write any number of variants in one read of the source, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage

import numpy as np

from edgepack.errors import BuildError
from edgepack_packager.checkpoint.weights import Float32, Weights, blocks
from edgepack_packager.targets import Model, Request, Writer, Written


def write(
    weights: Weights,
    requests: Sequence[Request],
    folder: Path,
    model: Model,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Written]:
    """Write each requested variant into ``folder/<id>`` and return what the writers report, in the same order.

    Every block of the source is read once and given to all writers, which work on it while the next one is read.
    ``advance`` is told the elements of each block. Raises ``BuildError`` where the disk cannot hold the variants.
    """
    with ExitStack() as stack:
        writers = [_open(request, folder / request.id, model, stack) for request in requests]
        _check_space(folder)
        pool = stack.enter_context(ThreadPoolExecutor(len(writers)))
        working: list[Future[None]] = []
        for name, start, stop in blocks(weights.decoder):
            rows = weights.rows(name, start, stop)
            _wait(working)
            working = [pool.submit(writer.write, name, start, rows) for writer in writers]
            advance(rows.size)
        _wait(working)
        return [writer.finish() for writer in writers]


def _wait(working: list[Future[None]]) -> None:
    for done in working:
        done.result()


def _open(request: Request, folder: Path, model: Model, stack: ExitStack) -> Writer:
    folder.mkdir(parents=True)
    fed = request.fed(model.decoder, model.dtype)
    feedback = {name: each for name, each in model.feedback.items() if name in fed}
    model = replace(model, forms=request.forms, importance=_importance(request, model), feedback=feedback)
    writer = request.target.open(folder, model, request.scheme)
    stack.callback(writer.abort)
    return writer


def _importance(request: Request, model: Model) -> Mapping[str, Float32]:
    """Return what errors count where a request's scales are searched: without a text, one column as much as another."""
    match request.scales:
        case "own":
            return {}
        case "searched":
            shapes = model.decoder.tensors()
            return {name: np.ones(shape[1], np.float32) for name, shape in shapes if len(shape) == 2}
        case "calibrated":
            return model.importance


def _check_space(folder: Path) -> None:
    """The files have their full size already, but no blocks yet: compare what they miss with what is free.

    Windows tells of no blocks, and has given a file its space when it has a size.
    """
    files = [file.stat() for file in folder.rglob("*") if file.is_file()]
    missing = sum(max(0, file.st_size - file.st_blocks * 512) for file in files if hasattr(file, "st_blocks"))
    free = disk_usage(folder).free
    if missing > free:
        raise BuildError(
            f"{folder} has {free / 1e6:.0f} MB free and the variants need {missing / 1e6:.0f} MB.",
            hint="Free some space, or choose another place with --out.",
        )
