"""A schema as llguidance is given it: what it would get wrong is written in another way, or refused.

It reads bounds as floats that may be off in their last digit, takes those of integers beyond 64 bits for others, and
lets an excluded bound through beside a number that is no integer; constants are rounded to floats; multiples of two
numbers are counted in 32 bits; and it proves of few branches of oneOf that no answer fits two of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from decimal import ROUND_CEILING, Decimal
from itertools import combinations
from typing import Any

from edgepack.errors import SchemaError
from edgepack.structured.bounds import parts
from edgepack.structured.disjoint import Disjoint

_EXACT = 2**53  # up to here each integer is a float
_PLACES = 15  # decimal digits that a float holds whatever they are
_LARGEST = 9_223_372_036_854_770_000  # in 64 bits, and in as many digits
_MULTIPLES = 2**31


def corrected(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema to enforce. Raises ``SchemaError`` for what cannot be."""
    made = deepcopy(schema)
    factors: set[Decimal] = set()
    disjoint = Disjoint(schema)
    for place, part in parts("/", made):
        _bound(place, part)
        for word in ("const", "enum"):
            _check_value(place + word, part.get(word))
        if "multipleOf" in part:
            factors.add(Decimal(repr(part["multipleOf"])))
        if isinstance(part.get("oneOf"), list) and all(disjoint(*pair) for pair in combinations(part["oneOf"], 2)):
            branches = {"anyOf": part.pop("oneOf")}
            if "anyOf" in part:
                part.setdefault("allOf", []).append(branches)
            else:
                part |= branches
    if _together(factors) > _MULTIPLES:
        raise SchemaError(
            "json_schema: its multipleOf together are more than 32 bits hold.", hint="Take smaller numbers, or one."
        )
    return made


def _bound(place: str, part: dict[str, Any]) -> None:
    """Write the bounds of a number within 64 bits, and in digits that are read as they are."""
    for word, sign in (("minimum", 1), ("maximum", -1)):
        excluded = f"exclusive{word.title()}"
        for name in (word, excluded):
            value = part.get(name)
            if value is None or isinstance(value, bool):  # a boolean is draft 4's
                continue
            least = sign * Decimal(repr(value))
            if least > _LARGEST:
                raise SchemaError(f"json_schema: {place}{name} is beyond 64 bits.", hint="Take a smaller number.")
            part[name] = _number(sign * _inward(max(least, Decimal(-_LARGEST))))
        value, integer = part.get(excluded), part.get("type") == "integer"
        if isinstance(value, int) and not isinstance(value, bool) and (sign * value >= 0 or integer):
            bounds = [sign * value + (1 if integer else _step(Decimal(value)))]
            bounds += [sign * Decimal(repr(part[word]))] if word in part else []
            del part[excluded]
            part[word] = _number(sign * Decimal(max(bounds)))


def _inward(least: Decimal) -> Decimal:
    """Return the least number that is not below another, and has few enough digits."""
    if least == least.to_integral_value() and abs(least) <= _EXACT:
        return least
    return (least / _step(least)).to_integral_value(ROUND_CEILING) * _step(least)


def _step(of: Decimal) -> Decimal:
    """Return the unit of the last digit that is read as it is written."""
    return Decimal(1).scaleb(max(of.adjusted() + 1, 0) - _PLACES)


def _number(value: Decimal) -> float:
    return int(value) if value == value.to_integral_value() else float(value)


def _check_value(place: str, value: object) -> None:
    """Raise ``SchemaError`` for a constant with a number that would be another one."""
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_value(place, inner)
    elif isinstance(value, int | float) and not (isinstance(value, bool) or _kept(value)):
        raise SchemaError(
            f"json_schema: {place} has a number of more digits than a float keeps.", hint="Make it a string."
        )


def _kept(value: float) -> bool:
    """Say whether a number is the same one after it was read as a float by few operations, and written."""
    try:
        written = Decimal(repr(float(value)))
    except OverflowError:
        return False
    digits = "".join(map(str, written.as_tuple().digits))
    exponent = int(written.as_tuple().exponent)
    return written == Decimal(repr(value)) and int(digits) <= _EXACT and abs(exponent) <= 22


def _together(factors: Iterable[Decimal]) -> int:
    """Return the least number of which all are divisors, in units of the last digit of any."""
    digits = max((-int(factor.as_tuple().exponent) for factor in factors), default=0)
    return math.lcm(*(int(factor.scaleb(max(digits, 0))) for factor in factors))
