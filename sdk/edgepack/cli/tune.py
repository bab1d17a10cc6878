"""``edgepack tune``: find this device's best settings for a bundle by measuring them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.screen import AsJson, BundlePath, as_json, err, out, say, steps, styled, table

if TYPE_CHECKING:
    from edgepack.device.tuning import Tuning
    from edgepack.tuning.tune import Trial, TuneReport

Quick = Annotated[
    bool, typer.Option("--quick", help="Measure less: shorter runs, and fewer settings of slow variants.")
]


def tune(bundle: BundlePath, quick: Quick = False, json: AsJson = False) -> None:
    """Measure each variant with other threads, weight layouts and chunks, and remember the best for this device."""
    from edgepack.bundle.files import open_bundle
    from edgepack.tuning.tune import tune as measure

    opened = open_bundle(bundle, verify="sizes")
    with steps() as progress:
        task = progress.add_task("Measuring", total=None)

        def watch(trial: Trial, done: int, total: int) -> None:
            progress.update(task, description=f"{trial.variant}, {settings(trial)}", completed=done, total=total)

        report = measure(opened, quick=quick, watch=watch)
    if json:
        as_json(report)
    else:
        show(report)
    if report.file is None:
        say(err(), styled("yellow", "The state folder could not be written to: nothing is remembered."))


def show(report: TuneReport) -> None:
    """Print a report: every trial, the best of each variant marked, what could not be measured, and the winner."""
    from rich.text import Text

    console = out()
    rows = table(
        "variant", "device", "threads", "chunk", "weights", "decode", "prefill", "4 for 1", "",
        right=("threads", "chunk", "decode", "prefill", "4 for 1"),
    )  # fmt: skip
    best = {_key(tuning) for tuning in report.tunings}
    previous = ""
    for trial in sorted(report.trials, key=lambda trial: _place(report, trial)):
        remark, style = (
            ("best", "bold") if _key(trial) in best else (trial.reason or "", "yellow" if trial.reason else "")
        )
        rows.add_row(
            trial.variant if trial.variant != previous else "",
            trial.device or "-",
            str(trial.threads),
            str(trial.chunk),
            _WEIGHTS[trial.repack],
            *(f"{rate:.1f}" if rate else "-" for rate in (trial.decode_tps, trial.prefill_tps)),
            f"{trial.batch_cost:.2f}x" if trial.batch_cost else "-",
            remark,
            style=style,
        )
        previous = trial.variant
    say(console, styled("bold", report.bundle, f"  {len(report.trials)} settings tried, rates in tokens/s"))
    console.print()
    console.print(rows)
    console.print()
    winner = report.winner
    say(
        console,
        Text.assemble(
            ("winner: ", "green"),
            (winner.variant, "bold"),
            f", {settings(winner)}: {winner.decode_tps:.1f} tokens/s, the median over its chunks",
        ),
    )
    for tuning in report.tunings:
        if tuning.draft_gain is not None:
            say(console, Text(f"{tuning.variant} with its draft model: answers {tuning.draft_gain:.2f}x as fast"))
    for variant, reason in report.undrafted.items():
        say(console, Text(f"{variant} with its draft model: {reason}", "yellow"))
    if report.file is not None:
        say(console, Text(f"edgepack.load takes it from now on. Remembered in {report.file}", "dim"))


_WEIGHTS = {None: "by rule", True: "repacked", False: "as stored"}


def settings(of: Trial | Tuning) -> str:
    """Return the settings as people read them."""
    threads = "1 thread" if of.threads == 1 else f"{of.threads} threads"
    weights = "" if of.repack is None else f", weights {_WEIGHTS[of.repack]}"
    return f"{threads}, chunk {of.chunk}{weights}"


def _key(of: Trial | Tuning) -> tuple[str, int, int, bool | None]:
    return of.variant, of.threads, of.chunk, of.repack


def _place(report: TuneReport, trial: Trial) -> tuple[bool, float, str]:
    """Return what orders the variants: the fastest first, last what could not be measured. Trials keep their order."""
    speed = next((tuning.decode_tps for tuning in report.tunings if tuning.variant == trial.variant), 0.0)
    return speed == 0.0, -speed, trial.variant
