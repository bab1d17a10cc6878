"""``edgepack fit``: whether a model fits a device, before anything but its config.json is there."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from edgepack.cli import screen
from edgepack.cli.help import examples
from edgepack.cli.options import QUESTION, AsJson, token_count
from edgepack.device.seconds import ANSWER, PROMPT
from edgepack_packager.cli.build_options import Model
from edgepack_packager.cli.models import devices

if TYPE_CHECKING:
    from edgepack.device.seconds import Turn
    from edgepack_packager.fit import Fit, Row
    from edgepack_packager.fit.devices import Device

PLACE = "Place"


DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        "-d",
        help="As pi5-8gb or mac-16gb. Default: this machine.",
        metavar="NAME",
        autocompletion=devices,
        show_default=False,
        rich_help_panel=PLACE,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        "-m",
        help="What the model may take, as 4GB or 4GiB.",
        metavar="SIZE",
        show_default=False,
        rich_help_panel=PLACE,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        "-c",
        help="Tokens to pack and run for, as 4096 or 4k. Default: 4096, or the model's own if less.",
        parser=token_count,
        metavar="TOKENS",
        show_default=False,
        rich_help_panel=QUESTION,
    ),
]
Prompt = Annotated[
    int,
    typer.Option("--prompt-tokens", min=1, help="Tokens before the answer.", metavar="N", rich_help_panel=QUESTION),
]
Answer = Annotated[
    int,
    typer.Option(
        "--answer-tokens", min=1, help="Tokens of the answer to predict for.", metavar="N", rich_help_panel=QUESTION
    ),
]


@examples("edgepack fit smollm2-360m", "edgepack fit qwen3-4b --device pi5-8gb -c 8k", "edgepack fit ./mine -m 2GiB")
def fit(
    model: Model,
    device: DeviceName = None,
    memory: Memory = None,
    context: Context = None,
    prompt_tokens: Prompt = PROMPT,
    answer_tokens: Answer = ANSWER,
    json: AsJson = False,
) -> None:
    """Compute the size and the peak memory of every variant from a model's config alone. Ends with 1 if none fits.

    A model of the catalogue needs no network.
    """
    from edgepack.device.seconds import Turn
    from edgepack.extras import require

    require("edgepack fit", "build")
    from edgepack_packager.fit import fit as compute
    from edgepack_packager.source import read_config

    place = _place(device, memory)
    config = read_config(model)
    turn = Turn(prompt_tokens, answer_tokens)
    found = compute(config, place, context, turn)
    if json:
        screen.as_json(as_mapping(found, model))
    else:
        show(found, model, turn)
    if not found.fits:
        raise typer.Exit(1)


def _place(device: str | None, memory: str | None) -> Device:
    from edgepack.device.hardware import detect
    from edgepack_packager.fit import devices

    named = devices.find(device) if device else None
    if memory:
        return devices.with_memory(devices.read_memory(memory), named)
    return named or devices.this_machine(detect())


def as_mapping(found: Fit, model: str) -> dict[str, Any]:
    """Return the answer as JSON values: every size in bytes, and the command that builds the choice."""
    choice, device = found.choice, found.device
    return {
        "model": model,
        "parameters": found.decoder.n_parameters,
        "context": found.decoder.context,
        "trained_context": found.decoder.trained_context,
        "device": {"name": device.name, "memory": device.memory, "basis": device.basis},
        "fits": found.fits,
        "choice": choice.id if choice else None,
        "command": _command(found, choice, model) if choice else None,
        "variants": [_row(row) for row in found.rows],
        "refused": [asdict(refusal) for refusal in found.refusals],
    }


def _row(row: Row) -> dict[str, Any]:
    values = asdict(row)
    memory = values.pop("memory")
    return {"variant": row.id, **values, "memory": memory | {"total": row.memory.total}, "fits": row.fits}


def show(found: Fit, model: str, turn: Turn) -> None:
    """Print what holds for all variants, a table of them, what cannot be built, and the verdict."""
    from rich.text import Text

    from edgepack.device.memory import human, kv_bytes
    from edgepack.runtime import KvCache

    console = screen.out()
    decoder, device, context = found.decoder, found.device, found.decoder.context
    kinds = sorted(get_args(KvCache))
    caches = ", ".join(f"{human(kv_bytes(decoder, 'gguf', kind, context))} in {kind}" for kind in kinds)
    caches = "none, since a text is evaluated at once" if decoder.at_once else caches
    size = f"{decoder.n_parameters / 1e6:,.1f} M parameters, context {context} of {decoder.trained_context}"
    screen.say(console, Text.assemble((model, "bold"), f"  {size}"))
    screen.say(console, f"{device.name}: {human(device.memory)} for a model ({device.basis})")
    screen.say(console, f"KV cache {caches}\n")
    console.print(_table(found))
    console.print()
    for line in _remarks(found, model):
        screen.say(console, Text(line, "dim"))
    screen.say(console, Text(_verdict(found), "bold"))
    if speed := _at_best(found, turn):
        screen.say(console, speed)
    if found.choice is not None:  # whole, for whoever copies it
        command = _command(found, found.choice, model)
        console.print(Text(f"Build it with: {command}", "bold"), soft_wrap=True)


def _table(found: Fit) -> Any:
    from edgepack.device.memory import human

    right = ("bits", "file bytes", "weights", "peak", "up to")
    rows = screen.table("variant", "bits", "file bytes", "weights", "KV", "peak", "up to", "fits", right=right)
    for row in found.rows:
        if _GROUPED.search(row.scheme) and row is not found.choice:
            continue
        rows.add_row(
            row.id,
            f"{row.bits:.2f}",
            f"{row.file_bytes:,}",
            human(row.memory.weights),
            row.kv_cache,
            human(row.memory.total),
            str(row.fits_context) if row.served else "-",
            "yes" if row.fits else "no" if row.served else "-",
            style="bold" if row is found.choice else None if row.fits else "dim",
        )
    return rows


_GROUPED = re.compile(r"_[bg][0-9]+$")
"""What the name of a scheme ends with whose groups are of another size: a table of all would be twice as long."""


def _remarks(found: Fit, model: str) -> list[str]:
    from edgepack_packager.source import carried

    grouped = [row.id for row in found.rows if _GROUPED.search(row.scheme)]

    absent = sorted({row.target for row in found.rows if not row.served})
    refused: dict[tuple[str, str], list[str]] = {}
    for refusal in found.refusals:
        refused.setdefault((refusal.target, refusal.reason), []).append(refusal.scheme)
    repository = carried(model)
    return [
        *([f"From what the catalogue carries of {repository}; {repository}@main asks the hub."] if repository else []),
        "File bytes are those of the weight files. On top of a GGUF file comes its header, which holds the tokenizer.",
        *([f"{len(grouped)} more in other groups and blocks, as {grouped[0]}: --json has all."] if grouped else []),
        *(f"{target}: no engine serves it on {found.device.name}." for target in absent),
        *(f"{target} {', '.join(schemes)}: {reason}" for (target, reason), schemes in refused.items()),
    ]


def _verdict(found: Fit) -> str:
    from edgepack.device.memory import human

    choice, context = found.choice, found.decoder.context
    if choice is None:
        smallest = min((row for row in found.rows if row.served), key=lambda row: row.memory.total, default=None)
        if smallest is None:
            return f"No: no engine on {found.device.name} serves a target that can be built. Take another device."
        what = f"{smallest.id}, the smallest, needs {human(smallest.memory.total)}"
        return f"No: not one token fits. {what}. Take a smaller model, or a device with more memory."
    needs = f"{choice.id} needs {human(choice.memory.total)}"
    if found.fits:
        return f"Yes: {needs}, and the largest context that fits is {choice.fits_context}."
    return f"No: at {context} tokens {needs}. Take a context of {choice.fits_context} or less, the largest that fits."


def _at_best(found: Fit, turn: Turn) -> str | None:
    """Return what the memory's bandwidth says of the choice's answer, None where it is not known."""
    choice, device = found.choice, found.device
    if choice is None or choice.decode_at_best_s is None or device.bandwidth is None:
        return None
    return (
        f"{turn.answer} tokens of an answer after {turn.prompt} of a prompt take {choice.decode_at_best_s:.2g} s at "
        f"best, since each reads the weights at {device.bandwidth / 1e9:.3g} GB/s or less ({device.bus}). What the "
        "prompt takes is not known."
    )


def _command(found: Fit, choice: Row, model: str) -> str:
    context = min(choice.fits_context, found.decoder.context)
    options = f"-t {choice.target} -q {choice.scheme} -c {context}"
    return f"edgepack build {shlex.quote(model)} {options}"
