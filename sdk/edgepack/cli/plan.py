"""``edgepack plan``: which variant would run here, on what, with how much memory, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import (
    QUESTION,
    AsJson,
    Backend,
    BundlePath,
    Context,
    Draft,
    KvCache,
    Sequences,
    Strict,
    Variant,
    Warm,
)
from edgepack.cli.screen import as_json, next_step, out, say, styled, table, use_of
from edgepack.cli.spelling import spelled
from edgepack.device.seconds import ANSWER, PROMPT

if TYPE_CHECKING:
    from edgepack.bundle.files import Bundle
    from edgepack.device.planning import Plan


Prompt = Annotated[
    int,
    typer.Option(
        "--prompt-tokens", min=1, help="Tokens of the prompt to rank for.", metavar="N", rich_help_panel=QUESTION
    ),
]
Answer = Annotated[
    int,
    typer.Option(
        "--answer-tokens", min=1, help="Tokens of the answer to rank for.", metavar="N", rich_help_panel=QUESTION
    ),
]


@examples("edgepack plan demo.edgepack", "edgepack plan demo.edgepack -c 8k --parallel 4")
def plan(
    bundle: BundlePath,
    backend: Backend = None,
    variant: Variant = None,
    context: Context = None,
    kv_cache: KvCache = None,
    strict: Strict = False,
    draft: Draft = None,
    warm: Warm = None,
    sequences: Sequences = 1,
    prompt_tokens: Prompt = PROMPT,
    answer_tokens: Answer = ANSWER,
    json: AsJson = False,
) -> None:
    """Show every variant of a bundle, ranked for this machine, with its reason and its memory."""
    from edgepack.bundle.files import open_bundle
    from edgepack.device.seconds import Turn
    from edgepack.loading import plan as make

    opened = open_bundle(bundle, verify="sizes")
    made = make(
        opened,
        backend=backend,
        variant=variant,
        context=context,
        kv_cache=kv_cache,
        strict=strict,
        draft=draft,
        warm=warm,
        sequences=sequences,
        turn=Turn(prompt_tokens, answer_tokens),
    )
    if json:
        as_json(as_mapping(made))
    else:
        show(opened, made)
    made.choice  # noqa: B018 - raises the reason where nothing can run
    if not json:
        next_step("edgepack", use_of(opened.manifest), str(bundle))


def as_mapping(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON values, with each candidate's total memory and whether it can run."""
    candidates = []
    for candidate in plan.candidates:
        values = asdict(candidate) | {"eligible": candidate.eligible}
        values["memory"]["total"] = candidate.memory.total
        candidates.append(values)
    return asdict(plan) | {"candidates": candidates}


def show(bundle: Bundle, plan: Plan) -> None:
    """Print a plan: a line of what holds for all, a table of the candidates, and the reason of each."""
    from rich.text import Text

    from edgepack.device.memory import human

    console = out()
    first = plan.candidates[0] if plan.candidates else None
    proven = "verified" if plan.proven else "unproven"
    say(console, styled("bold", bundle.manifest.name, f"  context {plan.context} of {plan.limit} ({proven})"))
    if first is not None:
        free = first.memory.available
        memory = "memory unknown" if free is None else f"{human(free)} of memory available"
        say(console, f"{memory}, {first.options.threads} thread(s) for the engine")
    rows = table(
        "", "variant", "device", "bits", "KV", "weights", "KV cache", "working", "total",
        right=("bits", "weights", "KV cache", "working", "total"),
    )  # fmt: skip
    for rank, candidate in enumerate(plan.candidates, 1):
        of = candidate.memory
        rows.add_row(
            str(rank) if candidate.eligible else "-",
            candidate.variant,
            candidate.device or "-",
            f"{candidate.bits:.2f}",
            candidate.options.kv_cache,
            *(human(count) for count in (of.weights, of.kv_cache, of.total - of.weights - of.kv_cache, of.total)),
            style="bold" if rank == 1 and candidate.eligible else None if candidate.eligible else "dim",
        )
    console.print()
    console.print(rows)
    console.print()
    reasons = table("", "")
    reasons.show_header = False
    for rank, candidate in enumerate(plan.candidates, 1):
        style = "" if candidate.eligible else "dim"
        chosen = "chosen: " if rank == 1 and candidate.eligible else ""
        reasons.add_row(Text(candidate.variant, style), Text(f"{chosen}{candidate.reason}", style))
        if candidate.warm is not None:
            reasons.add_row("", Text(spelled(str(candidate.warm)), style))
        if candidate.hint:
            reasons.add_row("", Text(spelled(candidate.hint), style))
    console.print(reasons)
    if not plan.tuned:
        console.print()
        seconds = plan.candidates[0].seconds if plan.candidates else None
        rule = "a prediction" if seconds and seconds.certain else "rule"
        line = (
            f"Ranked by {rule}: this device has not been tuned for the bundle. Measure it: edgepack tune {bundle.path}"
        )
        say(console, Text(line, "dim"))
