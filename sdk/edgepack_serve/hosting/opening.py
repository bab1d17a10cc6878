"""From names and paths to the models of a host: each is opened and planned before the server starts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from edgepack import Bundle, Candidate, Model, load, open_bundle, plan
from edgepack.device.limits import most_sequences
from edgepack.errors import UsageError
from edgepack.loading import has_choice
from edgepack.text import tool_formats
from edgepack.text.opening import template_of
from edgepack_serve.hosting.hosted import Hosted
from edgepack_serve.hosting.settings import Settings

_PARALLEL = (4, 2, 1)
"""How many requests run at a time where nobody says it: the first that fits."""


def hosted(words: Sequence[str], settings: Settings, pinned: Collection[str] = ()) -> list[Hosted]:
    """Return the models for bundles as the command line names them: BUNDLE, or NAME=BUNDLE.

    Raises ``UsageError`` for a name that comes twice, and whatever opening and planning a bundle raises.
    """
    found: dict[str, Hosted] = {}
    for word in words:
        name, where = _named(word)
        bundle = open_bundle(where, verify="sizes")
        name = name or _name_of(where)
        if name in found:
            raise UsageError(f"Two bundles are called {name}.", hint=f"Give one another name: {name}2={where}")
        chosen = _chosen(bundle, settings)
        template = template_of(bundle)
        tools = template is not None and tool_formats.named(template.for_tools.source) is not None
        found[name] = Hosted(name, where, bundle.manifest, bundle.id, chosen, tools, name in pinned)
    for name in pinned:
        if name not in found:
            raise UsageError(f"--pin names {name}, which is not served.", hint=f"It is one of: {', '.join(found)}.")
    return list(found.values())


def opened(hosted: Hosted, asked: Settings) -> Model:
    """Load a model. Raises whatever ``edgepack.load`` raises."""
    return load(
        hosted.where,
        asked.backend,
        asked.context,
        asked.kv_cache,
        variant=asked.variant,
        threads=asked.threads,
        isolate=asked.isolate,
        policy=asked.policy,
        sequences=hosted.parallel,
        runtimes=asked.runtimes,
    )


def _chosen(bundle: Bundle, asked: Settings) -> Candidate:
    """Return what a load would choose now. Engines are timed where there is a choice, as a load does, which takes a
    while. Where nobody says how many requests are to run at a time, it is the most of ``_PARALLEL`` that the model can
    hold and the memory does. Raises as ``Plan.choice``."""
    most = most_sequences(bundle.manifest)
    counts = [each for each in _PARALLEL if each <= most] if asked.parallel is None else [min(asked.parallel, most)]
    for count in counts:
        found = plan(
            bundle,
            context=asked.context,
            backend=asked.backend,
            variant=asked.variant,
            kv_cache=asked.kv_cache,
            sequences=count,
            timed=has_choice(bundle, asked.backend, asked.variant),
            runtimes=asked.runtimes,
        )
        if any(each.eligible for each in found.candidates):
            break
    return found.choice


def _named(word: str) -> tuple[str, str]:
    name, separator, where = word.partition("=")
    if separator and name and "/" not in name and not Path(word).exists():
        return name, where
    return "", word


def _name_of(where: str) -> str:
    """Return what clients call a bundle: the last part of its path, without its ending."""
    return Path(where).resolve().name.removesuffix(".edgepack")
