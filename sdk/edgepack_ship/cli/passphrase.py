"""The passphrase of a private key: from the environment, or asked for where a person sits; never shown."""

from __future__ import annotations

import os
import sys

VARIABLE = "EDGEPACK_KEY_PASSPHRASE"


def given(*, twice: bool = False) -> str | None:
    """Return the passphrase, ``twice`` where a slip of the fingers would lose a key; None where nobody can be asked."""
    import typer

    if found := os.environ.get(VARIABLE):
        return found
    if not sys.stdin.isatty():
        return None
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True))
