"""Reads a model's rope from config.json, in the spelling of transformers 4, of transformers 5, or in both.

Version 4 writes ``rope_theta``, ``partial_rotary_factor`` and, where there is scaling, ``rope_scaling`` with a ``type``
or ``rope_type``. Version 5 writes ``rope_parameters``, which holds all of it. Where a file has both, they must say the
same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.bundle.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    Rope,
    YarnScaling,
)
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.families.fields import FILE, agreed, count, flag, positive
from edgepack_packager.families.layers import FULL, SLIDING

_GENERAL = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}
_FIELDS: Mapping[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        *("factor", "attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate"),
        "original_max_position_embeddings",
    },
    "dynamic": {"factor", "original_max_position_embeddings"},
    "proportional": set(),
    "longrope": {"short_factor", "long_factor", "factor", "attention_factor", "original_max_position_embeddings"},
}
_OLD_NAMES = {"su": "longrope"}

# What a section may hold of other kinds and still be plain: trainers save a section again with all that they know.
# transformers reads none of it; a factor that would stretch something is too much to pass over.
_IDLE: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("factor", "attention_factor", "mscale", "mscale_all_dim"), (1,)),
    **dict.fromkeys(("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"), ()),
    **dict.fromkeys(("original_max_position_embeddings", "max_position_embeddings", "truncate"), ()),
}


@dataclass(frozen=True, slots=True)
class Spelling:
    """Where a config.json states a rope, and which ropes its family builds.

    ``theta`` and ``scaling`` are version 4's fields (None: it has none), ``parameters`` is version 5's section, with a
    dot before a nested one. ``partial``: the family may rotate a part of each head. ``others`` are fields of a section
    that the family reads itself.
    """

    theta: str | None = "rope_theta"
    scaling: str | None = "rope_scaling"
    parameters: str = "rope_parameters"
    default_theta: float = 10000.0
    kinds: tuple[str, ...] = ("default", "linear", "llama3", "yarn", "dynamic")
    partial: bool = False
    others: frozenset[str] = frozenset()


PLAIN = Spelling()

_BY_TYPE: Mapping[str, Spelling] = {
    FULL: Spelling(
        theta=None,
        scaling=None,
        parameters=f"rope_parameters.{FULL}",
        default_theta=1_000_000.0,
        kinds=("proportional", "default"),
        partial=True,
    ),
    SLIDING: Spelling(theta=None, scaling=None, parameters=f"rope_parameters.{SLIDING}", kinds=("default",)),
}


@dataclass(frozen=True, slots=True)
class _LongRope:
    """Longrope as a source states it, for every context."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    magnitude: float
    original_context: int

    def at(self, context: int) -> LongRopeScaling:
        """Return the scaling that transformers gives every position of a sequence as long as the context."""
        factors = self.long if context > self.original_context else self.short
        return LongRopeScaling(factors, self.magnitude, self.original_context)


Stated = LinearScaling | Llama3Scaling | YarnScaling | ProportionalScaling | _LongRope | None


def read_rope(config: Mapping[str, Any], head_dim: int, context: int, spelling: Spelling = PLAIN) -> Rope:
    """Return the rope of a model for sequences of up to ``context`` tokens.

    Raises ``UnsupportedModelError`` for a type that is not built, ``SourceError`` where two fields contradict.
    """
    dim = _dim(config, head_dim, spelling)
    stated = _scaling(config, dim, spelling)
    theta = _stated(config, spelling, "rope_theta", spelling.theta) or spelling.default_theta
    if isinstance(stated, ProportionalScaling):
        return Rope(theta, head_dim, stated if dim < head_dim else None)
    return Rope(theta, dim, stated.at(context) if isinstance(stated, _LongRope) else stated)


def read_ropes(config: Mapping[str, Any], head_dims: Mapping[str, int], context: int, part: float) -> dict[str, Rope]:
    """Return the ropes of both types of layers, where ``rope_parameters`` has one for each and no other spelling is.

    That of layers without window turns a ``part`` of the pairs where the file states no ropes. ``head_dims`` are the
    sizes of heads by type. Raises as ``read_rope``, and ``UnsupportedModelError`` for what is of no type.
    """
    stated = config.get("rope_parameters")
    if stated is None:
        stated = {FULL: {"rope_type": "proportional", "partial_rotary_factor": part}}
    if not isinstance(stated, dict) or stated.keys() - _BY_TYPE.keys():
        unknown = sorted(stated.keys() - _BY_TYPE.keys())[0] if isinstance(stated, dict) else repr(stated)
        raise UnsupportedModelError(f"{FILE}: rope_parameters has {unknown}, beside {' and '.join(_BY_TYPE)}.")
    config = {**config, "rope_parameters": stated}
    return {name: read_rope(config, head_dims[name], context, spelling) for name, spelling in _BY_TYPE.items()}


def original_context(config: Mapping[str, Any], head_dim: int, spelling: Spelling = PLAIN) -> int | None:
    """Return the context beyond which every position rotates differently; None for a rope that never changes."""
    scaling = _scaling(config, _dim(config, head_dim, spelling), spelling)
    if isinstance(scaling, _LongRope) and scaling.short != scaling.long:
        return scaling.original_context
    return None


def _sections(config: Mapping[str, Any], spelling: Spelling) -> dict[str, Mapping[str, Any]]:
    """The sections that the file has, by their full names."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in (spelling.scaling, spelling.parameters):
        section = _section(config, name) if name else None
        if name and section:  # an empty one states nothing
            found[name] = {key: value for key, value in section.items() if value is not None}
    return found


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    section: Mapping[str, Any] | None = config
    path = name.split(".")
    for depth, key in enumerate(path, start=1):
        section = section.get(key) if section is not None else None
        if section is not None and not isinstance(section, dict):
            raise SourceError(f"{FILE}: {'.'.join(path[:depth])} must be an object, not {section!r}.")
    return section


def _stated(config: Mapping[str, Any], spelling: Spelling, field: str, top: str | None) -> float | None:
    """Return the number that the sections state as ``field`` and the top level as ``top``, None where none does."""
    places = {f"{name}.{field}": _named(section, name) for name, section in _sections(config, spelling).items()}
    if top:
        places[top] = config
    return agreed({name: positive(place, name) for name, place in places.items() if place.get(name) is not None})


def _dim(config: Mapping[str, Any], head_dim: int, spelling: Spelling) -> int:
    """How many elements of a head rotate: transformers rounds head_dim times the factor down."""
    factor = _stated(config, spelling, "partial_rotary_factor", "partial_rotary_factor") or 1.0
    if factor != 1 and not spelling.partial:
        raise UnsupportedModelError(f"{FILE}: partial_rotary_factor is {factor!r}; edgepack builds 1.0 only.")
    dim = int(head_dim * factor) if factor <= 1 else 0
    if not dim or dim % 2:
        raise SourceError(
            f"{FILE}: partial_rotary_factor ({factor:g}) must leave an even part of the {head_dim} elements of a head."
        )
    return dim


def _scaling(config: Mapping[str, Any], dim: int, spelling: Spelling) -> Stated:
    sections = _sections(config, spelling)
    return agreed({name: _read(config, section, name, dim, spelling) for name, section in sections.items()})


def _read(config: Mapping[str, Any], section: Mapping[str, Any], name: str, dim: int, spelling: Spelling) -> Stated:
    kind = _kind(section, name, spelling)
    known = _GENERAL | _FIELDS[kind] | spelling.others
    unknown = sorted(key for key in section.keys() - known if not _is_idle(key, section[key]))
    if unknown:
        raise UnsupportedModelError(
            f"{FILE}: {name}.{unknown[0]} has no meaning for the rope type {kind}.",
            hint=f"Correct the rope_type, or remove {unknown[0]} from config.json.",
        )
    named = _named(section, name)
    match kind:
        case "linear":
            factor = positive(named, f"{name}.factor")
            return None if factor == 1 else LinearScaling(factor)
        case "llama3":
            return _llama3(config, named, name)
        case "longrope":
            return _longrope(config, named, name, dim)
        case "yarn":
            return _yarn(config, named, name)
        case "proportional":
            return ProportionalScaling(dim // 2)
    return None  # dynamic scaling begins beyond the trained context, which is never packed


def _is_idle(key: str, value: object) -> bool:
    return key in _IDLE and (not _IDLE[key] or value in _IDLE[key])


def _kind(section: Mapping[str, Any], name: str, spelling: Spelling) -> str:
    """Return the type of a section: ``rope_type`` goes before the older ``type``, as in transformers."""
    key = next((key for key in ("rope_type", "type") if key in section), None)
    if key is None:
        # Beside a theta alone, nothing is stretched.
        if all(each in _GENERAL or _is_idle(each, section[each]) for each in section):
            return "default"
        raise SourceError(
            f"{FILE}: {name} has no rope_type.", hint=f"Add the rope_type to it, or remove {name} from config.json."
        )
    kind = section[key]
    known = _OLD_NAMES.get(kind, kind) if isinstance(kind, str) else None
    if known not in spelling.kinds:
        raise UnsupportedModelError(
            f"{FILE}: {name}.{key} is {kind!r}, which edgepack does not build.",
            hint=f"For this architecture it builds: {', '.join(spelling.kinds)}.",
        )
    return known


def _llama3(config: Mapping[str, Any], named: Mapping[str, Any], name: str) -> Llama3Scaling:
    factor = positive(named, f"{name}.factor")
    low, high = positive(named, f"{name}.low_freq_factor"), positive(named, f"{name}.high_freq_factor")
    if high <= low:
        raise SourceError(f"{FILE}: {name}.high_freq_factor ({high:g}) must exceed low_freq_factor ({low:g}).")
    return Llama3Scaling(factor, low, high, _original(config, named, name))


def _yarn(config: Mapping[str, Any], named: Mapping[str, Any], name: str) -> YarnScaling:
    """Read YaRN; where no magnitude is given it follows from the factor s and a scale m: 0.1 m ln(s) + 1.

    With mscale and mscale_all_dim it is the one's over the other's. Without an original context it is the trained one,
    as in transformers.
    """
    trained = count(config, "max_position_embeddings")
    original = _stated_original(config, named, name) or trained
    factor = positive(named, f"{name}.factor", default=trained / original)
    fields = [f"{name}.mscale", f"{name}.mscale_all_dim"]
    above, below = (positive(named, field) for field in fields) if all(map(named.get, fields)) else (1.0, 0.0)
    computed = _stretched(factor, above) / _stretched(factor, below)
    return YarnScaling(
        factor=factor,
        original_context=original,
        beta_fast=positive(named, f"{name}.beta_fast", default=32.0),
        beta_slow=positive(named, f"{name}.beta_slow", default=1.0),
        magnitude=positive(named, f"{name}.attention_factor", default=computed),
        whole=flag(named, f"{name}.truncate", default=True),
    )


def _stretched(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def _longrope(config: Mapping[str, Any], named: Mapping[str, Any], name: str, dim: int) -> _LongRope:
    """Read longrope (arXiv:2402.13753); where no magnitude is given, it follows from how far the context was stretched.

    transformers: sqrt(1 + ln(stretch) / ln(original context)), and 1 where nothing was stretched.
    """
    original, trained = _original(config, named, name), count(config, "max_position_embeddings")
    stretch = positive(named, f"{name}.factor", default=trained / original)
    computed = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    return _LongRope(
        short=_factors(named, f"{name}.short_factor", dim),
        long=_factors(named, f"{name}.long_factor", dim),
        magnitude=positive(named, f"{name}.attention_factor", default=computed),
        original_context=original,
    )


def _factors(named: Mapping[str, Any], name: str, dim: int) -> tuple[float, ...]:
    values = named.get(name)
    if not isinstance(values, list) or len(values) != dim // 2:
        found = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
        raise SourceError(f"{FILE}: {name} must list {dim // 2} numbers, one for each rotated pair, not {found}.")
    return tuple(positive({f"{name}[{i}]": value}, f"{name}[{i}]") for i, value in enumerate(values))


def _original(config: Mapping[str, Any], named: Mapping[str, Any], name: str) -> int:
    """The context before scaling, which must be stated."""
    return _stated_original(config, named, name) or count(named, f"{name}.original_max_position_embeddings")


def _stated_original(config: Mapping[str, Any], named: Mapping[str, Any], name: str) -> int | None:
    """The context before scaling: Phi writes it at the top level, others into the section."""
    field = "original_max_position_embeddings"
    places = {f"{name}.{field}": named, field: config}
    return agreed({place: count(where, place) for place, where in places.items() if where.get(place) is not None})


def _named(section: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The same fields under their full names, so that an error names the section too."""
    return {f"{name}.{key}": value for key, value in section.items()}
