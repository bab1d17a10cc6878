"""What a kit says for itself: its script, its units of systemd and its page, filled in for one bundle."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from importlib.resources import files

_PLACE = re.compile(r"@\{([a-z]+)\}")


def filled(name: str, values: Mapping[str, str]) -> str:
    """Return a file of the kit with its ``@{names}`` filled in. Raises ``KeyError`` for a name without a value."""
    text = files("edgepack_ship.kit").joinpath("files", name).read_text("utf-8")
    return _PLACE.sub(lambda found: values[found[1]], text)


def settings(values: Mapping[str, str]) -> str:
    """Return assignments that a shell reads as they are."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
