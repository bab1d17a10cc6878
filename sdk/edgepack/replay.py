"""Replay: a bundle's own vectors, run again on this machine: tokenizer, chat template and each variant's self-test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgepack.bundle import Bundle
from edgepack.errors import EdgepackError
from edgepack.hardware import Hardware
from edgepack.loading import Runtimes, find, probe_all, text_side
from edgepack.manifest import SelfTest, Variant
from edgepack.planning import default_kv_cache
from edgepack.runtime import Options, Support


@dataclass(frozen=True, slots=True)
class Replay:
    """The outcome of one vector set. ``checked`` counts the texts or positions compared."""

    name: str
    verdict: Literal["same", "differs", "skipped"]
    checked: int
    reason: str


def replay_text(bundle: Bundle) -> list[Replay]:
    """Encode the tokenizer's probes and render the chat template's conversations, and compare the token ids."""
    tokenizer, template = text_side(bundle)
    probes = bundle.manifest.tokenizer.probes
    wrong = [p.text for p in probes if tokenizer.encode(p.text, bos=False) != p.ids]
    found = [_compared("tokenizer", len(probes), [f"{text!r} gives other ids" for text in wrong])]
    if bundle.manifest.chat is not None and template is not None:
        goldens, problems = bundle.manifest.chat.goldens, []
        for golden in goldens:
            text = template.render(golden.messages)
            if text != golden.text:
                problems.append(f"renders {text!r}")
            elif tokenizer.encode(text, special=True) != golden.ids:
                problems.append(f"{text!r} gives other ids")
        found.append(_compared("chat template", len(goldens), problems))
    return found


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
) -> tuple[list[str], int]:
    kv = default_kv_cache(variant.quantization.scheme, support.kv_caches)
    options = Options(context=len(test.ids), threads=hardware.threads, kv_cache=kv)
    session = find(variant.runtime, runtimes).open(bundle.variant_path(variant.id), bundle.manifest.decoder, options)
    try:
        likeliest = session.forward_all(test.ids).argmax(axis=1)
    finally:
        session.close()
    wanted = [(place, top) for place, top in enumerate(test.top1) if top is not None]
    wrong = [(place, top) for place, top in wanted if int(likeliest[place]) != top]
    problems = [f"token {likeliest[place]} instead of {top} after position {place}" for place, top in wrong]
    return problems, len(wanted)


def _compared(name: str, checked: int, problems: list[str]) -> Replay:
    if not problems:
        return Replay(name, "same", checked, "")
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return Replay(name, "differs", checked, problems[0] + more)
