"""What a server is: how it is recognised, which options it honours, in which dialect. The servers are data of this."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgepack_connect.capabilities import Fields, Kind
from edgepack_connect.forms import Form

_NUMBERS = re.compile(r"\d{1,9}(?:\.\d{1,9})*")


class Probe(Protocol):
    """Asks a server what it is: each question is asked once."""

    async def get(self, path: str) -> Mapping[str, Any] | None:
        """Return the JSON object that stands there, None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Offered:
    """A model that a server has, and the tokens of its context, None where it does not say."""

    name: str
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a probe found: the version in the server's words, None where it does not say, and its models."""

    version: str | None
    models: Sequence[Offered]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A kind of server. ``chat`` and ``text`` are the options that it honours of each."""

    name: str
    chat: Fields
    text: Fields
    form: Form
    recognise: Callable[[Probe], Awaitable[Found | None]]

    def fields(self, kind: Kind) -> Fields:
        """Return the options that it honours of a kind of question."""
        return self.chat if kind == "chat" else self.text


def numbers(version: str | None) -> tuple[int, ...] | None:
    """Return the numbers of a version, as (0, 32, 1) of "v0.32.1.dev4" and (11434,) of "b11434-abc"."""
    found = None if version is None else _NUMBERS.search(version)
    return None if found is None else tuple(map(int, found[0].split(".")))


def text_of(answer: Mapping[str, Any] | None, name: str) -> str | None:
    """Return a field that is a text, None for anything else."""
    value = None if answer is None else answer.get(name)
    return value[:200] if isinstance(value, str) else None


def count_of(answer: Mapping[str, Any] | None, name: str) -> int | None:
    """Return a field that is a count, None for anything else."""
    value = None if answer is None else answer.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def objects(answer: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """Return the objects of a list, none for anything else."""
    value = None if answer is None else answer.get(name)
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


async def listed(probe: Probe, context: str = "max_model_len") -> list[Offered]:
    """Return the models of /v1/models; ``context`` is the field that has the tokens of one's context."""
    models = objects(await probe.get("/v1/models"), "data")
    return [Offered(name, count_of(each, context)) for each in models if (name := text_of(each, "id")) is not None]


async def owned_by(probe: Probe, owner: str) -> bool:
    """Say whether a model of the list belongs to an owner of this name, as some servers call themselves."""
    return any(each.get("owned_by") == owner for each in objects(await probe.get("/v1/models"), "data"))
