"""The catalogue: short names of models that edgepack builds, and the repositories that they stand for.

``configs.json`` carries what ``edgepack fit`` reads of each model's config.json, so that it needs no network and no
account; ``benchmarks/refresh_catalogue.py`` writes it.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

import msgspec


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model: its alias, its repository, its weights' number, and its licence as a bundle records it.

    ``released`` is the month in which it was published. ``accepts`` is what its chat template takes besides turns, as
    far as it is known before it is fetched; a pretrained model has none. One that ``embeds`` writes no text. Without a
    ``revision``, the 40-hex commit to use, a build takes the newest and records which that was.
    """

    alias: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9.-]+$")]
    repository: Annotated[str, msgspec.Meta(pattern=r"^[\w.-]+/[\w.-]+$")]
    parameters: Annotated[int, msgspec.Meta(gt=0)]
    licence: str
    released: Annotated[str, msgspec.Meta(pattern=r"^20\d\d-(0[1-9]|1[0-2])$")]
    gated: bool = False
    note: str = ""
    accepts: tuple[Literal["system", "tools", "thinking"], ...] = ()
    embeds: bool = False
    revision: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{40}$")] | None = None


class Carried(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the catalogue carries of a config.json, and the commit of the repository that it was read at.

    ``revision`` is None where it was put together from published facts instead. Such a one has every size; it may lack
    what no size depends on, as the base of a rope.
    """

    config: dict[str, Any]
    revision: str | None = None


class _Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[Entry, ...]


@cache
def entries() -> tuple[Entry, ...]:
    """Return the entries of catalog.toml, the newest first; those of a month in its order."""
    data = (files("edgepack_packager.source") / "catalog.toml").read_bytes()
    found = msgspec.toml.decode(data, type=_Catalog).model
    return tuple(sorted(found, key=lambda entry: entry.released, reverse=True))


@cache
def configs() -> dict[str, Carried]:
    """Return what is carried of each model's config.json, by its alias."""
    data = (files("edgepack_packager.source") / "configs.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, Carried])


def carried(name: str) -> tuple[Entry, Carried] | None:
    """Return the entry of an alias or a repository, and its config; None for any other name, and for a revision."""
    entry = find(name) or next((each for each in entries() if each.repository.lower() == name.lower()), None)
    return None if entry is None or entry.alias not in configs() else (entry, configs()[entry.alias])


def find(name: str) -> Entry | None:
    """Return the entry of an alias, or of a repository's name without its owner, in any case of letters."""
    wanted = name.lower()
    named = {entry.repository.partition("/")[2].lower(): entry for entry in entries()}
    return (named | {entry.alias: entry for entry in entries()}).get(wanted)


def nearest(name: str) -> list[str]:
    """Return up to three aliases or repositories that may have been meant by a name that nothing has."""
    known = {text.lower(): text for entry in entries() for text in (entry.alias, entry.repository)}
    return [known[text] for text in get_close_matches(name.lower(), known, n=3)]


def suggestion(name: str) -> str | None:
    """Return a hint with what may have been meant by a name that nothing has."""
    close = nearest(name)
    return f"Did you mean {' or '.join(close)}? `edgepack models` lists the catalogue." if close else None
