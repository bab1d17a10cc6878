"""The structural gate: the same family, writer and engine, on an f32 slice of the model, against the reference.

Nothing is quantised, so what differs is a fault of the graph: a rope scaling that was lost, rows in another order,
an epsilon, a head. Random weights show a rope fault at 2e-6 only, hence a limit close to what fp32 can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack.manifest import Gate
from edgepack_packager import reference
from edgepack_packager.proof import compare, engine
from edgepack_packager.proof.gates import gate
from edgepack_packager.proof.slice import cut
from edgepack_packager.targets import Model, Request, Target
from edgepack_packager.weights import Weights
from edgepack_packager.write import write

SCHEME = "f32"


def prove(targets: Sequence[Target], weights: Weights, ids: Sequence[int], scratch: Path) -> dict[str, Gate]:
    """Return the structural gate of each target, by its name."""
    part, part_ids = cut(weights, ids)
    expected = reference.logits(part, part_ids)
    model = Model(name="slice", decoder=part.decoder, dtype=SCHEME)
    requests = [Request(target, SCHEME, SCHEME) for target in targets]
    gates = {}
    with TemporaryDirectory(dir=scratch) as folder:
        write(part, requests, Path(folder), model)
        for request in requests:
            place, runtime = Path(folder, request.id), request.target.runtime
            cache = request.target.kv_cache or "f32"
            with engine.logits(runtime, place, part.decoder, part_ids, cache, scratch) as (_, rows):
                gates[request.target.name] = gate(
                    "structure.nmse", compare.nmse(rows, expected), "<=", request.target.nmse(part.decoder)
                )
    return gates
