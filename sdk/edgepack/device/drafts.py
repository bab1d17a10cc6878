"""Which variant of a bundle's draft model guesses for which of its own, and what that adds to the memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgepack.bundle.manifest import Manifest
from edgepack.device.engine import Options
from edgepack.device.limits import context_limit, whole_blocks
from edgepack.device.memory import Payload, draft_bytes
from edgepack.device.tuning import DRAFT_PAYS, Tuning
from edgepack.errors import UsageError


@dataclass(frozen=True, slots=True)
class Draft:
    """The variant of the bundle's draft model that guesses for a candidate, on the same device, and how it is opened:
    ``options.context`` is at most what the draft model allows."""

    variant: str
    options: Options


@dataclass(frozen=True, slots=True)
class Small:
    """A variant of the draft model: what is loaded, and the most tokens that it may see."""

    variant: str
    payload: Payload
    limit: int

    def plan(self, options: Options) -> Draft:
        """Return how it is opened beside a variant with these options."""
        return Draft(self.variant, replace(options, context=min(options.context, self.limit)))

    def bytes(self, options: Options) -> int:
        """Return what it adds to the memory beside a variant with these options."""
        return draft_bytes(self.payload, self.plan(options).options)


def check_draft(manifest: Manifest, asked: bool | None, small: Manifest | None, sequences: int) -> None:
    """Raise ``UsageError`` for a draft that is asked for and is not there, and for another value than a truth."""
    if asked is not None and not isinstance(asked, bool):
        raise UsageError(f"draft cannot be {asked!r}.", hint="It is True, False or None.")
    if asked and small is None:
        raise UsageError(
            f"{manifest.name} holds no draft model.", hint="Build it with one: edgepack build MODEL --draft SMALL"
        )
    if asked and sequences > 1:
        raise UsageError("A draft model guesses for one text at a time.", hint="Leave out draft, or sequences.")


def find_draft(
    small: Manifest | None,
    asked: bool | None,
    variant: str,
    payload: Payload,
    options: Options,
    tuning: Tuning | None,
) -> Small | None:
    """Return what is to guess for a variant that is loaded as ``payload`` with ``options``; None where nothing is.

    ``small`` describes the draft model, which guesses for one text at a time. Its variant of the same id is taken, or
    else the first for the same engine and KV cache. Where nobody asked, one is taken if it was measured to pay.
    """
    pays = tuning is not None and (tuning.draft_gain or 0) >= DRAFT_PAYS
    if small is None or options.sequences > 1 or not (pays if asked is None else asked):
        return None
    fitting = [
        each
        for each in small.variants
        if each.runtime == payload.runtime
        and each.kv_cache in (None, options.kv_cache)
        and whole_blocks(options.kv_cache, each.runtime, small.decoder)
    ]
    if not fitting:
        return None
    chosen = next((each for each in fitting if each.id == variant), fitting[0])
    loaded = replace(
        payload,
        decoder=small.decoder,
        scheme=chosen.quantization.scheme,
        weights=chosen.weights_bytes,
        loading=chosen.loading_bytes,
        rows=small.tokenizer.rows,
    )
    return Small(chosen.id, loaded, context_limit(small)[0])
