"""The structural gate: the same family, writer and engine, on an f32 slice of the model, against the reference.

Nothing is quantised, so what differs is a fault of the graph: a rope scaling that was lost, rows in another order,
an epsilon, a head. Random weights show a rope fault at 2e-6 only, hence a limit close to what fp32 can reach.

A target that rounds in the attention is compared with a reference that rounds there too. A sum that two of them make in
another order may then round to the next number: where float32 is off by some millionths, that is a few hundredths of
what the rounding costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack.bundle.manifest import Gate
from edgepack.errors import EngineError
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import compare, engine
from edgepack_packager.proof.gates import gate
from edgepack_packager.proof.slice import cut
from edgepack_packager.targets import Model, Request, Target
from edgepack_packager.targets.kv_cache import Cache
from edgepack_packager.write import write

SCHEME = "f32"
_OTHERWISE_ROUNDED = 0.25
"""Of what rounding costs, as a mean square: 12 times the error before it over the step of f16, 0.02 measured."""


def prove(
    targets: Sequence[Target], weights: Weights, ids: Sequence[int], scratch: Path
) -> dict[str, Gate | EngineError]:
    """Return the structural gate of each target, or why its engine gave no logits, by the target's name."""
    part, part_ids = cut(weights, ids)
    exact = reference.logits(part, part_ids)
    scales = reference.cache_scales(part, part_ids) if any(target.kv_cache == "q8" for target in targets) else {}
    model = Model(name="slice", decoder=part.decoder, dtype=SCHEME, cache_scales=scales)
    requests = [Request(target, SCHEME, SCHEME) for target in targets]
    gates: dict[str, Gate | EngineError] = {}
    with TemporaryDirectory(dir=scratch) as folder:
        write(part, requests, Path(folder), model)
        for request in requests:
            place, target = Path(folder, request.id), request.target
            cache = target.kv_cache or "f32"
            with closing(target.read(place, part.decoder)) as reader:
                expected, limit = expectation(target, part, part_ids, exact, reader.cache(cache))
            try:
                with engine.logits(target.runtime, place, part.decoder, part_ids, cache, scratch) as (_, rows):
                    gates[target.name] = gate("structure.nmse", compare.nmse(rows, expected), "<=", limit)
            except EngineError as error:
                gates[target.name] = error
    return gates


def expectation(
    target: Target, weights: Weights, ids: Sequence[int], exact: Float32, cache: Cache | None
) -> tuple[Float32, float]:
    """Return the logits that an exact variant must have, and how far off they may be; ``exact`` are the reference's,
    ``cache`` what the variant's KV cache rounds."""
    limit = target.nmse(weights.decoder)
    if cache is None:
        return exact, limit
    rounded = reference.logits(weights, ids, cache=cache)
    return rounded, limit + _OTHERWISE_ROUNDED * compare.nmse(rounded, exact)
