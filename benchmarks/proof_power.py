"""What the proof sees: damage in the weights of a real model, and the rounding of its engines.

    python benchmarks/proof_power.py FOLDER

The first table damages the first layers of the model, as a broken converter would, writes them in each scheme of 4
bits, and gives the tensor gate whose figure is the most times its limit, and how many times: more than 1 is a miss. The
second runs sound variants of the same layers by their engines: how far an engine is from the reference with the
variant's own weights, and the limit, which is twice what rounding at the engine's places costs the reference. The third
lets engines run a damaged variant in a sound one's place: how many times its limit that distance is, over the first ids
of the probe, in so many as ``COUNTS`` says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from damage import DAMAGE, Change, Damaged

from edgepack.bundle.manifest import Gate
from edgepack_packager import families, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import engine, execution, probe, tensors
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write

LAYERS, ROWS = 4, 4096
COUNTS = (16, 32, execution.TOKENS)
ENGINES = ("one layer x 1.1", "every v x 1.2", "a head is not read", "q and k interleaved")


class Beginning:
    """The first layers of a model, and the first rows of its vocabulary."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        whole = weights.decoder
        self.decoder = replace(whole, n_layers=min(LAYERS, whole.n_layers), n_vocab=min(ROWS, whole.n_vocab))
        self.dtype = weights.dtype

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return self._weights.rows(name, start, stop)


def sound(weights: Weights, name: str, start: int, stop: int) -> Float32:
    return weights.rows(name, start, stop)


def requests_of(source: Weights, *bits: int) -> list[Request]:
    """Return what asks for all schemes of so many nominal bits, of every target."""
    model = Model("power", source.decoder, source.dtype)
    found = [targets.find(name) for name in targets.names()]
    names = [(target, scheme) for target in found for scheme, width in target.schemes.items() if width in bits]
    return [Request(target, scheme, target.scheme(scheme, model)) for target, scheme in names]


def furthest(gates: Sequence[Gate]) -> str:
    """Return the gate whose figure is the most times its limit, and how many times that is."""
    shares = {each.name: each.value / each.limit if each.limit else 0 if each.passes else inf for each in gates}
    name = max(shares, key=lambda each: shares[each])
    return f"{name.removeprefix('tensors.')} {shares[name]:.3g}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    with open_checkpoint(parser.parse_args().folder) as checkpoint:
        source = Beginning(families.open_model(checkpoint))
        model = Model("power", source.decoder, source.dtype)
        few = requests_of(source, 4)
        print("| weights |", " | ".join(request.id for request in few), "|\n|---|" + "---|" * len(few))
        for name, change in {"sound": sound, **DAMAGE}.items():
            with TemporaryDirectory() as folder:
                write(Damaged(source, change), few, Path(folder), model)
                cells = [held(request, Path(folder, request.id), source) for request in few]
            print(f"| {name} |", " | ".join(cells), "|", flush=True)
        print("\n| variant | engine | limit |\n|---|---|---|")
        ids = probe.make(source.decoder, None).ids[: execution.TOKENS]
        for request in requests_of(source, 16, 8, 4):
            with TemporaryDirectory() as folder:
                write(source, [request], Path(folder), model)
                place, logits, target = Path(folder, request.id), Path(folder, "logits"), request.target
                engine.run(target.runtime, place, source.decoder, ids, "f32", logits)
                heard = execution.prove(target, place, source.decoder, ids, logits, kv_cache="f32", scratch=place)
                print(f"| {request.id} | {heard.value:.2g} | {heard.limit:.2g} |", flush=True)
        print("\n| an engine runs |", " | ".join(request.id for request in few), "|\n|---|" + "---|" * len(few))
        for name in ("sound", *ENGINES):
            cells = [run(request, source, {"sound": sound, **DAMAGE}[name], model, ids) for request in few]
            print(f"| {name} |", " | ".join(cells), "|", flush=True)


def run(request: Request, source: Weights, change: Change, model: Model, ids: Sequence[int]) -> str:
    """Return how many times its limit the engine gate is, by ``COUNTS``, where the engine runs what was changed."""
    with TemporaryDirectory() as folder:
        place, other, logits = Path(folder, "sound"), Path(folder, "changed"), Path(folder, "logits")
        write(source, [request], place, model)
        write(Damaged(source, change), [request], other, model)
        engine.run(request.target.runtime, other / request.id, source.decoder, ids, "f32", logits)
        found = [
            execution.prove(
                request.target, place / request.id, source.decoder, ids[:n], logits, kv_cache="f32", scratch=place
            )
            for n in COUNTS
        ]
        return ", ".join(f"{each.value / each.limit:.2g}" for each in found)


def held(request: Request, variant: Path, source: Weights) -> str:
    """Return the tensor gate that is furthest beyond its limit, or closest to it."""
    found = tensors.prove(request.target, variant, source, lambda _: None)
    return furthest([finding.gate for finding in found.findings])


if __name__ == "__main__":
    main()
