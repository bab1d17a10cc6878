"""What the proof sees: damage in the weights of a real model, and the rounding of its engines.

    python benchmarks/proof_power.py FOLDER [--quant q4]

The first table damages the first layers of the model, as a broken converter would, writes them for each target, and
gives of each tensor gate its figure over its limit, at the place where it is tightest: more than 1 is a miss. The
second runs sound variants of the same layers by their engines: how far an engine is from the reference with the
variant's own weights, and the limit, which is twice what rounding at the engine's places costs the reference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from damage import DAMAGE, Damaged

from edgepack.bundle.manifest import Gate
from edgepack_packager import families, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import engine, execution, probe, tensors
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write

LAYERS, ROWS = 4, 4096


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


def written(quant: str, source: Weights, damaged: Weights, folder: Path) -> list[Request]:
    """Write a variant of damaged weights for every target, and return what was written."""
    model = Model("power", source.decoder, source.dtype)
    found = [targets.find(name) for name in targets.names()]
    requests = [Request(target, quant, target.scheme(quant, model)) for target in found]
    write(damaged, requests, folder, model)
    return requests


def shares(gates: Sequence[Gate]) -> str:
    """Return each gate's figure over its limit; with a limit of 0, whether it holds."""
    told = []
    for each in gates:
        share = each.value / each.limit if each.limit else 0.0 if each.passes else float("inf")
        told.append(f"{each.name.removeprefix('tensors.')} {share:.3g}")
    return ", ".join(told)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quant", default="q4")
    asked = parser.parse_args()
    with open_checkpoint(asked.folder) as checkpoint:
        source = Beginning(families.open_model(checkpoint))
        print("| weights | variant | figures over their limits | |\n|---|---|---|---|")
        for name, change in {"sound": sound, **DAMAGE}.items():
            with TemporaryDirectory() as folder:
                for request in written(asked.quant, source, Damaged(source, change), Path(folder)):
                    found = tensors.prove(request.target, Path(folder, request.id), source, lambda _: None)
                    gates = [finding.gate for finding in found.findings]
                    verdict = "holds" if all(gate.passes for gate in gates) else "caught"
                    print(f"| {name} | {request.id} | {shares(gates)} | {verdict} |", flush=True)
        print("\n| variant | engine | limit |\n|---|---|---|")
        ids = probe.make(source.decoder, None).ids[: execution.TOKENS]
        for quant in ("f16", "q8", asked.quant):
            with TemporaryDirectory() as folder:
                for request in written(quant, source, source, Path(folder)):
                    target, place = request.target, Path(folder, request.id)
                    logits = Path(folder, "logits")
                    engine.run(target.runtime, place, source.decoder, ids, "f32", logits)
                    held = execution.prove(
                        target, place, source.decoder, ids, logits, kv_cache="f32", scratch=Path(folder)
                    )
                    print(f"| {request.id} | {held.value:.2g} | {held.limit:.2g} |", flush=True)


if __name__ == "__main__":
    main()
