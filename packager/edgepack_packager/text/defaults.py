"""The source's defaults of generation: what generation_config.json says, greedy where it does not sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgepack.bundle.manifest import Generation
from edgepack.errors import SourceError
from edgepack_packager.text.files import GENERATION, parsed
from edgepack_packager.text.side import Text

# Of a thought and its answer, where the source has no limit: a thought alone takes some hundreds to some thousands.
_WITH_THOUGHT = 2048


def generation(text: Text, thinks: bool = False) -> Generation:
    """Return the source's defaults of generation; ``thinks``: the model thinks before it answers, in the same limit.

    Raises ``SourceError`` for a value out of range.
    """
    config = parsed(text.files, GENERATION)
    plain = Generation()
    penalty = _number(config, "repetition_penalty", plain.repetition_penalty, 0, math.inf)
    limit = config.get("max_new_tokens")
    if limit is None:
        limit = _WITH_THOUGHT if thinks else plain.max_tokens
    if type(limit) is not int or limit <= 0:
        raise _wrong(f"max_new_tokens must be a whole number above 0, not {limit!r}")
    samples = config.get("do_sample") or False
    if not isinstance(samples, bool):
        raise _wrong(f"do_sample must be true or false, not {samples!r}")
    if not samples:
        return Generation(repetition_penalty=penalty, max_tokens=limit)
    top_k = config.get("top_k") or plain.top_k
    # -1 is how other tools say that all tokens are sampled from.
    if top_k == -1:
        top_k = 0
    if type(top_k) is not int or top_k < 0:
        raise _wrong(f"top_k must be a whole number, not {top_k!r}")
    return Generation(
        # A temperature of 1 is what sampling without one means.
        temperature=_number(config, "temperature", 1.0, 0, math.inf),
        top_p=_number(config, "top_p", plain.top_p, 0, 1),
        top_k=top_k,
        min_p=_number(config, "min_p", plain.min_p, 0, 1),
        repetition_penalty=penalty,
        max_tokens=limit,
    )


def _number(config: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not least <= value <= most or math.isinf(value):
        raise _wrong(f"{name} is out of range: {value!r}")
    return float(value)


def _wrong(what: str) -> SourceError:
    return SourceError(f"{GENERATION}: {what}.", hint="Correct it, or remove it for the usual value.")
