"""What other systems do otherwise than edgepack, whatever their form: sentences for the report and the record."""

from __future__ import annotations

from collections.abc import Iterable

from edgepack.bundle.manifest import Manifest
from edgepack_ship.exports.export import Export


def templated(manifest: Manifest, system: str) -> tuple[str, ...]:
    """Return what differs where a system renders the bundle's Jinja template with an engine and a clock of its own."""
    chat, told = manifest.chat, []
    if chat is None:
        return () if manifest.embedding else ("The model has no chat template: give it texts to continue.",)
    if chat.date is not None:
        told.append(f"{system} prints today's date in prompts, where edgepack prints {chat.date.day} or the day given.")
    if chat.tool_use is not None:
        told.append(f"{system} has one template: the one that the model has for tools is left out.")
    told.append(f"{system} makes control tokens of their names in what users write; edgepack makes text of them.")
    return tuple(told)


def left_behind(asked: Export) -> tuple[str, ...]:
    """Return what differs where a bundle has a draft model, which no other system is handed."""
    return () if asked.bundle.draft is None else ("The draft model stays behind.",)


def missing_stops(asked: Export, found: object, system: str, option: str) -> Iterable[str]:
    """Yield what is to be said where a system ends an answer at fewer tokens than the bundle."""
    ids = found if isinstance(found, list) else [found]
    if missing := [stop.text for stop in asked.manifest.stops if stop.id not in ids]:
        yield f"{system} does not end an answer at {', '.join(missing)}: pass {option}."


def defaults_left_out(asked: Export, system: str) -> Iterable[str]:
    """Yield what is to be said where a system has defaults of its own for sampling."""
    given = asked.manifest.generation
    said = {"temperature": given.temperature, "top_p": given.top_p, "top_k": given.top_k, "min_p": given.min_p}
    words = ", ".join(f"{name} {value:g}" for name, value in said.items())
    yield f"{system} samples by its own defaults unless a call says otherwise; the bundle's are {words}."
