"""Reads a model's rope from config.json, in the spelling of transformers 4, of transformers 5, or in both.

Version 4 writes ``rope_theta`` and, where there is scaling, ``rope_scaling`` with a ``type`` or ``rope_type``.
Version 5 writes ``rope_parameters``, which holds all of it. Where a file has both, they must say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.decoder import LinearScaling, Llama3Scaling, Rope
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.families.fields import FILE, count, only, positive

Scaling = LinearScaling | Llama3Scaling | None

# The theta of a configuration that names none.
DEFAULT_THETA = 10000.0

_GENERAL = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}
_FIELDS: Mapping[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def read_rope(config: Mapping[str, Any], head_dim: int) -> Rope:
    """Return the rope of a model that rotates whole heads.

    Raises ``UnsupportedModelError`` for a type that is not built, ``SourceError`` where two fields contradict.
    """
    sections = {name: _section(config, name) for name in ("rope_scaling", "rope_parameters")}
    given = {name: section for name, section in sections.items() if section is not None}
    thetas = {f"{name}.rope_theta": _theta(section, name) for name, section in given.items()}
    thetas["rope_theta"] = _theta(config, None)
    scalings = {name: _scaling(section, name) for name, section in given.items()}
    for place in ({"": config} | given).values():
        only(place, "partial_rotary_factor", 1.0)
    theta = _agreed({place: value for place, value in thetas.items() if value is not None})
    return Rope(theta=DEFAULT_THETA if theta is None else theta, dim=head_dim, scaling=_agreed(scalings))


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    section = config.get(name)
    if section is not None and not isinstance(section, dict):
        raise SourceError(f"{FILE}: {name} must be an object, not {section!r}.")
    return section


def _theta(place: Mapping[str, Any], section: str | None) -> float | None:
    if place.get("rope_theta") is None:
        return None
    return positive(_named(place, section), f"{section}.rope_theta" if section else "rope_theta")


def _scaling(section: Mapping[str, Any], name: str) -> Scaling:
    kinds = {key: section[key] for key in ("rope_type", "type") if section.get(key) is not None}
    kind = _agreed({f"{name}.{key}": value for key, value in kinds.items()})
    if kind is None:
        raise SourceError(f"{FILE}: {name} has no rope_type.", hint="Fetch the model's whole config.json.")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise UnsupportedModelError(
            f"{FILE}: {name}.rope_type is {kind!r}, which edgepack does not build.",
            hint=f"It builds: {', '.join(_FIELDS)}.",
        )
    unknown = sorted(section.keys() - _GENERAL - _FIELDS[kind])
    if unknown:
        raise UnsupportedModelError(f"{FILE}: {name}.{unknown[0]} has no meaning for the rope type {kind}.")
    if kind == "default":
        return None
    named = _named(section, name)
    factor = positive(named, f"{name}.factor")
    if kind == "linear":
        return LinearScaling(factor)
    low, high = positive(named, f"{name}.low_freq_factor"), positive(named, f"{name}.high_freq_factor")
    if high <= low:
        raise SourceError(f"{FILE}: {name}.high_freq_factor ({high:g}) must exceed low_freq_factor ({low:g}).")
    return Llama3Scaling(factor, low, high, count(named, f"{name}.original_max_position_embeddings"))


def _named(place: Mapping[str, Any], section: str | None) -> Mapping[str, Any]:
    """The same fields under their full names, so that an error names the section too."""
    return {f"{section}.{key}": value for key, value in place.items()} if section else place


def _agreed(statements: Mapping[str, Any]) -> Any:
    """Return what all statements say, None without any. Raises ``SourceError`` that names two which differ."""
    places = list(statements)
    for place in places[1:]:
        if statements[place] != statements[places[0]]:
            raise SourceError(
                f"{FILE}: {places[0]} says {statements[places[0]]!r}, {place} says {statements[place]!r}.",
                hint="Remove the one that is wrong.",
            )
    return statements[places[0]] if places else None
