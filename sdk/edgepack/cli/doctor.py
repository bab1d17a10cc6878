"""``edgepack doctor``: what this machine has, and what each engine makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack.cli.screen import as_json, facts, next_step, out, say, styled, table

if TYPE_CHECKING:
    from rich.table import Table

    from edgepack.measuring.doctor import DoctorReport


@examples("edgepack doctor")
def doctor(json: AsJson = False) -> None:
    """Show the machine's facts and each engine: its version and devices, or why it cannot run and what to install."""
    from edgepack.measuring.doctor import doctor as examine

    report = examine()
    if json:
        as_json(report)
    else:
        show(report)
        if not report.unpacked and any(support.devices for support in report.runtimes.values()):
            next_step("edgepack", "demo")


def show(report: DoctorReport) -> None:
    """Print a report in the order in which it is acted on: what runs, what to do, what to know, and the facts."""
    from rich.text import Text

    console = out()
    able = [name for name, support in report.runtimes.items() if support.devices]
    verdict = styled("green", f"Ready: {', '.join(able)}.") if able else styled("red", "Not ready: nothing runs here.")
    say(console, verdict)
    for number, (reason, command) in enumerate(report.steps, start=1):
        console.print()
        say(console, f"{number}. {reason}")
        console.print(Text.assemble("   ", (command, "bold")), soft_wrap=True)
    if report.notes:
        console.print()
    for note in report.notes:
        say(console, Text(f"note: {note}", "yellow"))
    console.print()
    console.print(_engines(report))
    console.print()
    console.print(_machine(report))


def _engines(report: DoctorReport) -> Table:
    from rich.text import Text

    from edgepack.device.engine import variant

    rows = table("", "engine", "devices", "KV cache", "")
    for name, support in report.runtimes.items():
        engine = support.package or support.version or "-"
        if chosen := variant(engine, support.version or ""):
            engine += f", {chosen}"
        if support.devices:
            kv = ", ".join(support.kv_caches)
            rows.add_row(name, engine, ", ".join(support.devices), kv, Text("ready", "green"))
        else:
            reason = (support.reason or "it cannot run here").rstrip(".")
            rows.add_row(name, engine, "-", "-", Text(reason, "yellow"))
    return rows


def _machine(report: DoctorReport) -> Table:
    from edgepack.device.memory import human

    machine = report.hardware
    quota = "no limit" if machine.quota is None else f"limited to {machine.quota:g} cores"
    return facts(
        [
            ("edgepack", report.edgepack),
            ("Python", report.python),
            ("system", f"{report.platform}, {machine.machine}"),
            ("processor", machine.processor or "unknown"),
            ("cores", f"{machine.physical_cores} physical, {machine.affinity} usable, {quota}"),
            ("threads", f"{report.threads} for an engine"),
            ("memory", f"{human(machine.memory_available)} available of {human(machine.memory_total)}"),
            ("accelerators", ", ".join((*machine.accelerators, *machine.gpus)) or "none"),
            ("telemetry", report.telemetry),
            *((f"{name} types", _types(costs)) for name, costs in report.types.items() if len(costs) > 1),
        ]
    )


def _types(costs: dict[str, float]) -> str:
    """Return what a weight of each type costs, the fastest first: "time of an answer: q4_0 1.0x, q3_k 2.1x"."""
    return "time of an answer: " + ", ".join(f"{name} {times:.1f}x" for name, times in costs.items())
