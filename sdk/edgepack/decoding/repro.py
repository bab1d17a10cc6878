"""What it takes to get a result again: plain data beside every result. ``edgepack replay`` reads it back.

The same bundle, engine, threads and steps give the same logits to the last bit, and the same seed then the same text.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgepack.bundle.bounds import Count
from edgepack.decoding.cache import Trail
from edgepack.text.thoughts import Thought

LIBRARIES = ("edgepack", "numpy", "tokenizers", "jinja2", "llguidance")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a model was loaded as. ``engine`` is the runtime's own version, ``packages`` the libraries above it,
    ``draft`` the variant of the draft model, None without one. Of more ``sequences`` than one, an engine evaluates
    several in a step, and may round otherwise than for one alone."""

    bundle: str
    bundle_id: str
    variant: str
    backend: str
    engine: str | None
    device: str
    context: Count
    kv_cache: str
    threads: Count
    chunk: Count
    repack: bool | None
    machine: str
    packages: dict[str, str]
    spin: bool | None = None
    draft: str | None = None
    sequences: Count = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Repro:
    """One generation: what was asked for, in token ids, and what stood in the KV cache before it.

    ``cached`` are the steps that evaluated the first tokens of the prompt, as (tokens kept of a step, tokens evaluated
    in it, how many such steps); the rest was evaluated in steps of ``setup.chunk``. ``rolls_from``: the tokens that a
    full context kept, None where it was not to roll; ``draft``: the draft model guessed. ``thought``: how the
    text began whose model thinks, of at most ``thinking_tokens``; None where it was all answer. The sampling
    with its seed is the result's own.
    """

    setup: Setup
    prompt_ids: tuple[int, ...]
    at_start: bool
    cached: Trail
    max_tokens: int
    stop: tuple[str, ...]
    constraint: dict[str, Any] | None
    prompt_lookup: bool
    rolls_from: int | None
    draft: bool = False
    thought: Thought | None = None
    thinking_tokens: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def machine() -> str:
    """Return the system and the processor's architecture, as "linux x86_64"."""
    return f"{platform.system().lower()} {platform.machine().lower()}"


def packages() -> dict[str, str]:
    """Return the versions of the libraries that decide a text beside the engine."""
    return {name: found or "unknown" for name, found in versions(LIBRARIES).items()}


def versions(libraries: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of libraries; None for one whose metadata is not there: a frozen application may lack it."""
    found: dict[str, str | None] = {}
    for name in libraries:
        found[name] = None
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
