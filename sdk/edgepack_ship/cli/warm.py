"""``edgepack warm``: a bundle that has read its system prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath, Context, Date, KvCache
from edgepack_ship.cli import SHIP
from edgepack_ship.cli.options import Force

System = Annotated[
    Path, typer.Option("--system", help="The file of the system prompt, in UTF-8.", metavar="FILE", show_default=False)
]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        help="A variant to keep warm; several may be given. Default: the one that a load here chooses.",
        metavar="ID",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The new bundle's folder.", metavar="FOLDER")]


@examples("edgepack warm demo.edgepack --system concierge.txt -o warm.edgepack", heading=SHIP)
def warm(
    bundle: BundlePath,
    system: System,
    out: Out,
    variant: Variants = None,
    context: Context = None,
    kv_cache: KvCache = None,
    date: Date = None,
    force: Force = False,
    json: AsJson = False,
) -> None:
    """Seal what an engine has in its cache after a system prompt beside a variant, for devices like this one."""
    from dataclasses import asdict

    from edgepack.cli import screen, textfile
    from edgepack.cli.interrupts import Interrupts
    from edgepack.device.memory import human
    from edgepack_ship.warming import keep_warm

    text = textfile.read(system).removesuffix("\n")  # as run --system-file reads it
    with Interrupts():
        made = keep_warm(bundle, text, out, variant or (), context=context, kv_cache=kv_cache, date=date, force=force)
    if json:
        screen.as_json(asdict(made))
        return
    console = screen.out()
    screen.say(console, screen.styled("bold", made.path, f"  sha256:{made.id}"))
    for each in made.variants:
        what = f"{each.tokens} of {each.common} tokens in {human(each.bytes)}"
        screen.say(console, f"{each.variant}: {what}, for this engine on devices with this processor")
    screen.next_step("edgepack", "plan", str(out))
