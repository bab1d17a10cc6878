"""The catalogue: short names of models that edgepack builds, and the repositories that they stand for."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Annotated

import msgspec


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model: its alias, its repository, its weights' number, and its licence as a bundle records it.

    Without a ``revision``, the 40-hex commit to use, a build takes the newest and records which that was.
    """

    alias: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9.-]+$")]
    repository: Annotated[str, msgspec.Meta(pattern=r"^[\w.-]+/[\w.-]+$")]
    parameters: Annotated[int, msgspec.Meta(gt=0)]
    licence: str
    gated: bool = False
    note: str = ""
    revision: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{40}$")] | None = None


class _Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[Entry, ...]


@cache
def entries() -> tuple[Entry, ...]:
    """Return the entries of catalog.toml, in its order."""
    data = (files("edgepack_packager.source") / "catalog.toml").read_bytes()
    return msgspec.toml.decode(data, type=_Catalog).model


def find(name: str) -> Entry | None:
    """Return the entry of an alias, or of a repository's name without its owner, in any case of letters."""
    wanted = name.lower()
    named = {entry.repository.partition("/")[2].lower(): entry for entry in entries()}
    return (named | {entry.alias: entry for entry in entries()}).get(wanted)


def suggestion(name: str) -> str | None:
    """Return a hint with what may have been meant by a name that nothing has: aliases, or a repository."""
    known = {text.lower(): text for entry in entries() for text in (entry.alias, entry.repository)}
    close = [known[text] for text in get_close_matches(name.lower(), known, n=3)]
    return f"Did you mean {' or '.join(close)}? `edgepack models` lists the catalogue." if close else None
