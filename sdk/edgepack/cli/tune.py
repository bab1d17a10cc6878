"""``edgepack tune``: find this device's best settings for a bundle by measuring them."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath
from edgepack.cli.screen import as_json, err, next_step, out, say, steps, styled, table

if TYPE_CHECKING:
    from edgepack.device.tuning import Tuning
    from edgepack.tuning.tune import Trial, TuneReport

Quick = Annotated[
    bool, typer.Option("--quick", help="Measure less: shorter runs, and fewer settings of slow variants.")
]


@examples("edgepack tune demo.edgepack --quick")
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
        next_step("edgepack", "run", str(bundle))
    if report.file is None:
        say(err(), styled("yellow", "The state folder could not be written to: nothing is remembered."))


def show(report: TuneReport) -> None:
    """Print a report: every trial, the best of each variant and the winner marked, what could not be measured, and the
    winner in words."""
    from rich.text import Text

    from edgepack.device.seconds import Turn

    console = out()
    rows = table(
        "variant", "threads", "chunk", "weights", "decode", "prefill", "answer", "±", "",
        right=("threads", "chunk", "decode", "prefill", "answer", "±"),
    )  # fmt: skip
    best, first = {_key(tuning) for tuning in report.tunings}, _key(report.winner)
    previous = ""
    for trial in sorted(report.trials, key=lambda trial: _place(report, trial)):
        remark, style = ("*", "bold") if _key(trial) in best else ("!", "yellow") if trial.reason else ("", "")
        if _key(trial) == first:
            remark = "won"
        rows.add_row(
            trial.variant if trial.variant != previous else "",
            str(trial.threads),
            str(trial.chunk),
            _WEIGHTS[trial.repack],
            *(f"{rate:.1f}" if rate else "-" for rate in (trial.decode_tps, trial.prefill_tps)),
            *_spread(trial),
            remark,
            style=style,
        )
        previous = trial.variant
    how = f"  {len(report.trials)} settings tried, rates in tokens/s, * the best of a variant"
    say(console, styled("bold", report.bundle, how))
    console.print()
    console.print(rows)
    for trial in report.trials:
        if trial.reason:
            say(console, styled("yellow", f"{trial.variant}, {settings(trial)}: {trial.reason}"))
    console.print()
    winner, turn = next(trial for trial in report.trials if _key(trial) == first), Turn()
    answer = " ± ".join(filter(None, _spread(winner)))
    say(
        console,
        Text.assemble(
            ("winner: ", "green"),
            (winner.variant, "bold"),
            f", {settings(winner)}: {answer} to answer ({turn.prompt} + {turn.answer} tokens), "
            f"{winner.decode_tps:.1f} tokens/s",
        ),
    )
    for tuning in report.tunings:
        if tuning.draft_gain is not None:
            say(console, Text(f"{tuning.variant} with its draft model: answers {tuning.draft_gain:.2f}x as fast"))
    for variant, reason in report.undrafted.items():
        say(console, Text(f"{variant} with its draft model: {reason}", "yellow"))
    for rival in report.rivals:
        brings = f"answers {rival.gain:.2f}x as fast as {rival.used}" if rival.gain else rival.reason
        take = f": edgepack engine use {rival.engine}" if rival.faster else ""
        say(console, Text(f"{rival.variant} with {rival.engine}: {brings}{take}", "" if rival.gain else "yellow"))
    if report.busy:
        line = f"Other programs took up to {report.neighbours:.1f} cores meanwhile: tune again when they are done."
        say(console, styled("yellow", line))
    if report.file is not None:
        say(console, Text(f"edgepack.load takes it from now on. Remembered in {report.file}", "dim"))


_WEIGHTS = {None: "by rule", True: "repacked", False: "as stored"}


def settings(of: Trial | Tuning) -> str:
    """Return the settings as people read them."""
    threads = "1 thread" if of.threads == 1 else f"{of.threads} threads"
    weights = "" if of.repack is None else f", weights {_WEIGHTS[of.repack]}"
    return f"{threads}, chunk {of.chunk}{weights}"


def _spread(trial: Trial) -> tuple[str, str]:
    """Return the median of the seconds to an answer, and how far any is from it; nothing of what was measured once."""
    if not trial.runs:
        return "-", ""
    middle = median(run.total for run in trial.runs)
    furthest = max(abs(run.total - middle) for run in trial.runs)
    digits = 3 if middle < 10 else 2
    return f"{middle:.{digits}f} s", f"{furthest:.{digits}f}" if len(trial.runs) > 1 else ""


def _key(of: Trial | Tuning) -> tuple[str, int, int, bool | None]:
    return of.variant, of.threads, of.chunk, of.repack


def _place(report: TuneReport, trial: Trial) -> tuple[bool, float, str]:
    """Return what orders the variants: the fastest first, last what could not be measured. Trials keep their order."""
    from edgepack.device.seconds import Turn, at_rates

    mine = next((tuning for tuning in report.tunings if tuning.variant == trial.variant), None)
    seconds = at_rates(mine.prefill_tps, mine.decode_tps, Turn()).total if mine else 0.0
    return mine is None, seconds, trial.variant
