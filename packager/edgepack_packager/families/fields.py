"""Reads single fields of a config.json, each with its type and range checked; an error names the field."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from edgepack.bundle.bounds import MAX_LAYERS
from edgepack.errors import SourceError, UnsupportedModelError, UsageError

FILE = "config.json"

_CORRECT = "Correct the field; a number stands without quotes."

Value = TypeVar("Value")


def is_a(config: Mapping[str, Any], architecture: str, model_type: str) -> bool:
    """Whether a config.json is of one class of several that a family reads: either field may be absent."""
    return config.get("model_type") == model_type or architecture in (config.get("architectures") or ())


def count(config: Mapping[str, Any], name: str, default: int | None = None, least: int = 1) -> int:
    """Return a whole number from ``least`` on; a missing or null field is the default, or an error without one.

    Nothing that is counted in a model reaches 2 ** 31.
    """
    value = _present(config, name, default)
    # bool is a subclass of int, and JSON's true is no count.
    if type(value) is not int or not least <= value < 1 << 31:
        raise SourceError(f"{FILE}: {name} must be a whole number above {least - 1}, not {value!r}.", hint=_CORRECT)
    return value


def layers(config: Mapping[str, Any]) -> int:
    """Return the number of layers. Raises as ``count``, and for more than any model has."""
    found = count(config, "num_hidden_layers")
    if found > MAX_LAYERS:
        raise SourceError(f"{FILE}: num_hidden_layers is {found}, more than {MAX_LAYERS}.", hint=_CORRECT)
    return found


def positive(config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """Return a finite number above 0; a missing or null field is the default, or an error without one."""
    value = _present(config, name, default)
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise SourceError(f"{FILE}: {name} must be a number above 0, not {value!r}.", hint=_CORRECT)
    return float(value)


def flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return true or false; a missing or null field is the default."""
    value = _present(config, name, default)
    if not isinstance(value, bool):
        raise SourceError(f"{FILE}: {name} must be true or false, not {value!r}.", hint=_CORRECT)
    return value


def only(config: Mapping[str, Any], name: str, value: object) -> None:
    """Refuse a model whose field says anything but the one value that is built; a missing or null field says it."""
    found = config.get(name)
    if found is not None and found != value:
        raise UnsupportedModelError(f"{FILE}: {name} is {found!r}; edgepack builds {value!r} only.")


def agreed(statements: Mapping[str, Value]) -> Value | None:
    """Return what all statements, by their fields' names, say; None without any, or where all say None.

    Raises ``SourceError`` that names two which differ.
    """
    places = list(statements)
    for place in places[1:]:
        if statements[place] != statements[places[0]]:
            raise SourceError(
                f"{FILE}: {places[0]} says {statements[places[0]]!r}, {place} says {statements[place]!r}.",
                hint="Remove the one that is wrong.",
            )
    return statements[places[0]] if places else None


def read_context(config: Mapping[str, Any], asked: int | None, default: int | None = None) -> int:
    """Return the context to describe: the one asked for, else the default, else what the model was trained for.

    Raises ``UsageError`` where more is asked for than it was trained for.
    """
    trained = count(config, "max_position_embeddings", least=2)
    if asked is not None and not 0 < asked <= trained:
        raise UsageError(
            f"The context of {asked} tokens is not from 1 to {trained}, which the model was trained for.",
            hint="Choose another --context, or leave it out.",
        )
    return asked or min(default or trained, trained)


def _present(config: Mapping[str, Any], name: str, default: object) -> Any:
    value = config.get(name)
    if value is None:
        value = default
    if value is None:
        raise SourceError(f"{FILE}: the field {name} is missing.", hint="Fetch the model's whole config.json.")
    return value
