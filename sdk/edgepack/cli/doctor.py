"""``edgepack doctor``: what this machine has, and what each engine makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack.cli.screen import as_json, facts, next_step, out, say, table

if TYPE_CHECKING:
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
        if any(support.devices for support in report.runtimes.values()):
            next_step("edgepack", "demo")


def show(report: DoctorReport) -> None:
    """Print a report: the machine, the engines, and what to act on."""
    from rich.text import Text

    from edgepack.device.memory import human

    machine = report.hardware
    quota = "no limit" if machine.quota is None else f"limited to {machine.quota:g} cores"
    console = out()
    console.print(
        facts(
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
            ]
        )
    )
    rows = table("engine", "version", "devices", "KV cache", "")
    for name, support in report.runtimes.items():
        if support.devices:
            kv = ", ".join(support.kv_caches)
            rows.add_row(name, support.version or "-", ", ".join(support.devices), kv, Text("ready", "green"))
        else:
            reason = (support.reason or "it cannot run here").rstrip(".")
            rows.add_row(name, support.version or "-", "-", "-", Text(reason, "yellow"))
    console.print()
    console.print(rows)
    if report.installs:
        console.print()
        console.print("To install on this machine:")
        for name, command in report.installs.items():
            console.print(Text.assemble(f"  {name:<6}", (command, "bold")), soft_wrap=True)
    if report.notes:
        console.print()
    for note in report.notes:
        say(console, Text(f"note: {note}", "yellow"))
