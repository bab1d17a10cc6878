"""Which layer is of which kind: reads ``layer_types``, or a family's rule in its place, into the decoder's pattern."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from edgepack.bundle.decoder import Arrangement, Layer, arranged
from edgepack.errors import SourceError
from edgepack_packager.families import fields
from edgepack_packager.families.fields import FILE

FULL = "full_attention"
SLIDING = "sliding_attention"


def read_pattern(config: Mapping[str, Any], kinds: Mapping[str, Layer], rule: Callable[[int], str]) -> Arrangement:
    """Return the kinds of layers, and the shortest pattern that gives every layer its own.

    ``kinds`` holds them by the names that ``layer_types`` uses; others as in ``read_names``.
    """
    return arranged([kinds[name] for name in read_names(config, kinds, rule)])


def read_names(config: Mapping[str, Any], known: Collection[str], rule: Callable[[int], str]) -> list[str]:
    """Return what ``layer_types`` calls each layer; ``rule`` names a layer where the file has no ``layer_types``.

    Raises ``SourceError`` for a list of another length or with a name that is not ``known``.
    """
    n_layers = fields.layers(config)
    names = config.get("layer_types")
    if names is None:
        names = [rule(layer) for layer in range(n_layers)]
    if not isinstance(names, list) or len(names) != n_layers:
        found = f"{len(names)} names" if isinstance(names, list) else repr(names)
        raise SourceError(f"{FILE}: layer_types must name the kind of each of the {n_layers} layers, not {found}.")
    for layer, name in enumerate(names):
        if not isinstance(name, str) or name not in known:
            raise SourceError(
                f"{FILE}: layer_types[{layer}] is {name!r}; the other fields explain {', '.join(known)} only."
            )
    return names


def window(size: int, context: int) -> int | None:
    """Return a window as the decoder says it: None where it is as long as the context, so that it hides nothing."""
    return size if size < context else None
