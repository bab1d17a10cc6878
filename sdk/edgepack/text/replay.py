"""Replay of the text side: a bundle's own vectors, encoded and rendered again with the libraries of this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgepack.bundle.embedding import Embedding, TextIds
from edgepack.bundle.manifest import Golden, Manifest, Probe
from edgepack.errors import BundleError, UsageError, visible
from edgepack.text.chat import ChatTemplate
from edgepack.text.embedded import ids_of, prompt_of
from edgepack.text.tokenizer import Tokenizer

_CPU_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Replay:
    """The outcome of one vector set. ``checked`` counts the texts or positions compared."""

    name: str
    verdict: Literal["same", "differs", "skipped"]
    checked: int
    reason: str


def replay_text(manifest: Manifest, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[Replay]:
    """Encode the tokenizer's probes, and what is embedded, and render the chat template's conversations, and compare
    with the manifest."""
    probes = manifest.tokenizer.probes
    found = [compared("tokenizer", len(probes), [_probed(tokenizer, probe) for probe in probes])]
    if (embedding := manifest.embedding) is not None:
        texts = embedding.probes
        found.append(compared("texts", len(texts), [_embedded(tokenizer, embedding, each) for each in texts]))
    if manifest.chat is not None and template is not None:
        day = manifest.chat.date.day if manifest.chat.date else None
        problems = _replayed(day, template, tokenizer, manifest.chat.goldens)
        found.append(compared("chat template", len(problems), problems))
        if manifest.chat.tool_use is not None:
            goldens = manifest.chat.tool_use.goldens
            problems = _replayed(day, template.for_tools, tokenizer, goldens)
            found.append(compared("chat template for tools", len(problems), problems))
    return found


def _probed(tokenizer: Tokenizer, probe: Probe) -> str | None:
    ids = tokenizer.encode(probe.text, bos=False, special=probe.special)
    return None if ids == probe.ids else f"{probe.text!r} gives {_first_difference(ids, probe.ids)}"


def _embedded(tokenizer: Tokenizer, embedding: Embedding, probe: TextIds) -> str | None:
    ids = ids_of(tokenizer, embedding, probe.text, prompt_of(embedding, probe.prompt))
    return None if ids == probe.ids else f"{probe.text!r} gives {_first_difference(ids, probe.ids)}"


def _replayed(
    day: str | None, template: ChatTemplate, tokenizer: Tokenizer, goldens: Sequence[Golden]
) -> list[str | None]:
    """Return what differs, a golden each, as far as all of them take the time that one may take three times."""
    problems: list[str | None] = []
    end = time.thread_time() + _CPU_SECONDS
    for golden in goldens:
        if time.thread_time() > end:
            return [*problems, f"{golden.name!r} is not rendered: those before took {_CPU_SECONDS:.0f} s"]
        problems.append(_rendered(day, template, tokenizer, golden))
    return problems


def _rendered(day: str | None, template: ChatTemplate, tokenizer: Tokenizer, golden: Golden) -> str | None:
    """Say how a conversation differs from its golden, None where it does not."""
    try:
        text = template.render(
            golden.messages,
            tools=golden.tools,
            variables=golden.variables,
            add_generation_prompt=golden.add_generation_prompt,
            date=day,
        )
    except UsageError as error:
        return None if visible(golden.refusal or "") == error.message else f"{golden.name!r}: {error.message}"
    except BundleError as error:  # the words are jinja2's own, and may change with its version
        return None if golden.refusal else f"{golden.name!r}: {error.message}"
    if golden.refusal is not None:
        return f"{golden.name!r} is rendered, and was refused: {golden.refusal}"
    if text != golden.text:
        return f"{golden.name!r} is rendered as {_first_difference(text, golden.text)}"
    ids = tokenizer.encode(text, bos=False, special=True)
    return None if ids == golden.ids else f"{golden.name!r} gives {_first_difference(ids, golden.ids)}"


def _first_difference(found: str | list[int], wanted: str | list[int]) -> str:
    place = next(
        (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
    )
    return f"{found[place : place + 8]!r} instead of {wanted[place : place + 8]!r} at index {place}"


def compared(name: str, checked: int, outcomes: list[str | None]) -> Replay:
    """Return the outcome of as many comparisons: a problem each, None where there is none."""
    problems = [outcome for outcome in outcomes if outcome is not None]
    if not problems:
        return Replay(name, "same", checked, "")
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return Replay(name, "differs", checked, problems[0] + more)
