"""One packing job of ``pack.py``, in a process of its own: do it, then print its cost as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from edgepack_packager import families
from edgepack_packager.build import build
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Weights, blocks
from edgepack_packager.progress import Silent
from edgepack_packager.recipe import Quality, Recipe
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf.layout import place
from edgepack_packager.text import read_text
from edgepack_packager.write import write
from edgepack_runtimes.gguf import GgufRuntime


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Weights, Model]]:
    """Yield a checkpoint's weights and what the targets need to know of it."""
    with open_checkpoint(folder) as checkpoint:
        weights = families.open_model(checkpoint)
        text = read_text(folder, checkpoint.config, weights.decoder)
        yield weights, Model(folder.name, weights.decoder, weights.dtype, checkpoint.config, text)


class Phases(Silent):
    """Adds up what each stage of a build costs: CPU seconds of this process, and of children that have ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}
        self._title, self._start = "Preparing", _spent()

    def stage(self, title: str, total: int) -> None:
        """End the stage that runs, and begin the next."""
        own, children = (now - then for now, then in zip(_spent(), self._start, strict=True))
        before = self.seconds.get(self._title, (0.0, 0.0))
        self.seconds[self._title] = before[0] + own, before[1] + children
        self._title, self._start = title, _spent()


def _spent() -> tuple[float, float]:
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own, children = (one.ru_utime + one.ru_stime for one in usage)
    return own, children


def quantize_only(folder: Path, scheme: str) -> None:
    """Run the engine's quantiser over the same blocks, in one thread, and drop what it returns."""
    engine = GgufRuntime()
    with opened(folder) as (weights, model):
        kinds = {name: tensor.kind for name, tensor in place(model.decoder, scheme).canonical.items()}
        for name, start, stop in blocks(weights.decoder):
            rows = weights.rows(name, start, stop)
            if rows.ndim == 2:
                engine.quantize(kinds[name], rows)


def main() -> None:
    """Run the job that the arguments name: STAGE MODEL OUT TARGET[,TARGET] QUANT [QUALITY]."""
    stage, model, out, targets, quant, *quality = sys.argv[1:]
    recipe = Recipe(tuple(targets.split(",")), (quant,), quality=cast(Quality, quality[0]) if quality else None)
    phases = Phases()
    start = time.perf_counter()
    if stage == "write":
        with opened(Path(model)) as (weights, facts):
            write(weights, recipe.requests(facts), Path(out), facts)
    elif stage == "ggml":
        quantize_only(Path(model), quant)
    else:
        build(model, recipe, Path(out), progress=phases)
        phases.stage("", 0)
    cost = {
        "cpu_s": sum(_spent()),
        "wall_s": time.perf_counter() - start,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "phases": phases.seconds,
    }
    print(json.dumps(cost))


if __name__ == "__main__":
    main()
