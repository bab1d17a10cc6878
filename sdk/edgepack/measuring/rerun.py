"""A result of ``generate`` again, from what it says of its own making, and what differs.

With the same bundle, engine and threads nothing may differ; elsewhere the first token that does is told, beside what is
not the same here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edgepack.bundle.files import open_bundle
from edgepack.decoding.repro import Repro, Setup
from edgepack.decoding.results import Result
from edgepack.decoding.sample import Sampling
from edgepack.errors import BundleError, UsageError
from edgepack.isolation import isolate
from edgepack.loading import open_candidate, plan
from edgepack.prefix import common_length
from edgepack.runtime import Options
from edgepack.trust.admitting import admit_bundle


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a result's JSON says: how it was made, and what it was."""

    repro: Repro
    sampling: Sampling
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rerun:
    """A result again. ``first_difference`` is the index of the first token that differs, None where all are the same;
    ``changed`` names what is not the same here as (then, now)."""

    result: Result
    same: bool
    first_difference: int | None
    changed: dict[str, tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"result": self.result.to_dict()}


def read_result(path: Path) -> Recorded:
    """Read a result from a file of its JSON. Raises ``FileNotFoundError``, and ``UsageError`` for another file."""
    try:
        document = json.loads(path.read_bytes())
        repro = msgspec.convert(document["repro"], Repro)
        token_ids = msgspec.convert(document["token_ids"], tuple[int, ...])
        if document["finish_reason"] == "cancelled":  # it would go on otherwise
            repro = replace(repro, max_tokens=max(1, len(token_ids)))
        return Recorded(repro, Sampling(**document["sampling"]), token_ids)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a result: {type(error).__name__}: {error}.", hint="Write one with: edgepack run --json"
        ) from None


def rerun(recorded: Recorded, bundle: Path | None = None) -> Rerun:
    """Load what a result was made with and make it again.

    ``bundle`` is where the bundle lies now, without it where it lay then. Raises ``BundleError`` for another bundle,
    and as ``load``.
    """
    then = recorded.repro.setup
    opened = open_bundle(bundle or Path(then.bundle), verify="sizes")
    if opened.id != then.bundle_id:
        raise BundleError(
            f"{opened.path} is not the bundle that the result was made with: its id is {opened.id[:12]}, "
            f"not {then.bundle_id[:12]}.",
            hint="Name the right one with --bundle.",
        )
    admit_bundle(opened)
    choice = plan(
        opened,
        context=then.context,
        backend=then.backend,
        variant=then.variant,
        kv_cache=then.kv_cache,
        draft=then.draft is not None,
    ).choice
    draft = choice.draft and replace(choice.draft, options=_options(choice.draft.options, then))
    again = replace(choice, options=_options(choice.options, then), draft=draft)
    with open_candidate(opened, again, isolate=isolate.available()) as model:
        result = model._repeat(recorded.repro, recorded.sampling)
        return _compared(recorded, result, model.setup)


def _options(planned: Options, then: Setup) -> Options:
    return replace(planned, threads=then.threads, chunk=then.chunk, repack=then.repack, spin=then.spin)


def _compared(recorded: Recorded, result: Result, now: Setup) -> Rerun:
    same = recorded.token_ids == result.token_ids
    first = None if same else common_length(recorded.token_ids, result.token_ids)
    return Rerun(result, same, first, _changed(recorded.repro.setup.to_dict(), now.to_dict()))


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    flat = [{**setup, **setup["packages"], "packages": None, "bundle": None} for setup in (then, now)]
    names = dict.fromkeys((*flat[0], *flat[1]))
    pairs = {name: (str(flat[0].get(name)), str(flat[1].get(name))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
