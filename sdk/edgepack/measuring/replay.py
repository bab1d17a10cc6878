"""Replay: a bundle's own vectors, run again on this machine: tokenizer, chat template and each variant's self-test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgepack.bundle import Bundle
from edgepack.device.hardware import Hardware
from edgepack.device.planning import default_kv_cache, kv_caches
from edgepack.errors import BundleError, EdgepackError, UsageError
from edgepack.loading import Runtimes, find, probe_all
from edgepack.manifest import Golden, Manifest, Probe, SelfTest, Variant
from edgepack.runtime import Options, Support
from edgepack.text.chat import ChatTemplate
from edgepack.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Replay:
    """The outcome of one vector set. ``checked`` counts the texts or positions compared."""

    name: str
    verdict: Literal["same", "differs", "skipped"]
    checked: int
    reason: str


def replay_text(manifest: Manifest, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[Replay]:
    """Encode the tokenizer's probes and render the chat template's conversations, and compare with the manifest."""
    probes = manifest.tokenizer.probes
    found = [_compared("tokenizer", len(probes), [_probed(tokenizer, probe) for probe in probes])]
    if manifest.chat is not None and template is not None:
        day = manifest.chat.date.day if manifest.chat.date else None
        problems = [_rendered(day, template, tokenizer, golden) for golden in manifest.chat.goldens]
        found.append(_compared("chat template", len(problems), problems))
        if manifest.chat.tool_use is not None:
            goldens = manifest.chat.tool_use.goldens
            problems = [_rendered(day, template.for_tools, tokenizer, golden) for golden in goldens]
            found.append(_compared("chat template for tools", len(problems), problems))
    return found


def _probed(tokenizer: Tokenizer, probe: Probe) -> str | None:
    ids = tokenizer.encode(probe.text, bos=False, special=probe.special)
    return None if ids == probe.ids else f"{probe.text!r} gives {_first_difference(ids, probe.ids)}"


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
        return None if golden.refusal == error.message else f"{golden.name!r}: {error.message}"
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


def replay_variant(bundle: Bundle, variant: Variant, hardware: Hardware, runtimes: Runtimes | None = None) -> Replay:
    """Run a variant's self-test through its engine and compare the likeliest token at every position that has one.

    An engine that is not here, or a variant without a self-test, is skipped with its reason; an engine that fails
    differs.
    """
    if variant.self_test is None:
        return Replay(variant.id, "skipped", 0, "it has no self-test: it was built unproven")
    support = probe_all(hardware, {variant.runtime}, runtimes).get(variant.runtime)
    if support is None or not support.devices:
        reason = support.reason if support else f"no runtime called {variant.runtime!r} is registered"
        return Replay(variant.id, "skipped", 0, (reason or "its engine offers no device here").rstrip("."))
    test = variant.self_test
    if not test.ids or len(test.ids) != len(test.top1):
        return Replay(variant.id, "differs", 0, "its self-test has no ids, or not one answer for each")
    try:
        problems, checked = _run(bundle, variant, test, hardware, support, runtimes)
    except (EdgepackError, ValueError) as error:
        return Replay(variant.id, "differs", 0, str(error))
    return _compared(variant.id, checked, problems)


def _run(
    bundle: Bundle,
    variant: Variant,
    test: SelfTest,
    hardware: Hardware,
    support: Support,
    runtimes: Runtimes | None,
) -> tuple[list[str | None], int]:
    kv = default_kv_cache(variant.quantization.scheme, kv_caches(variant, support))
    options = Options(context=len(test.ids), threads=hardware.threads, kv_cache=kv)
    session = find(variant.runtime, runtimes).open(bundle.variant_path(variant.id), bundle.manifest.decoder, options)
    try:
        likeliest = session.forward_all(test.ids).argmax(axis=1)
    finally:
        session.close()
    wanted = [(place, top) for place, top in enumerate(test.top1) if top is not None]
    wrong = [(place, top) for place, top in wanted if int(likeliest[place]) != top]
    problems: list[str | None] = [
        f"token {likeliest[place]} instead of {top} after position {place}" for place, top in wrong
    ]
    return problems, len(wanted)


def _compared(name: str, checked: int, outcomes: list[str | None]) -> Replay:
    problems = [outcome for outcome in outcomes if outcome is not None]
    if not problems:
        return Replay(name, "same", checked, "")
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return Replay(name, "differs", checked, problems[0] + more)
