"""``edgepack kit``: all that a device without a network needs of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath
from edgepack_ship.cli import SHIP
from edgepack_ship.cli.options import Kept

Out = Annotated[Path, typer.Option("--out", "-o", help="The kit's folder.", metavar="FOLDER")]
For = Annotated[str, typer.Option("--platform", help="linux-x86_64 or linux-aarch64.", metavar="SYSTEM-PROCESSOR")]
Python = Annotated[str, typer.Option("--python", help="The device's Python, as 3.11.", metavar="VERSION")]
Glibc = Annotated[str, typer.Option("--glibc", help="The device's C library.", metavar="VERSION")]
As = Annotated[str | None, typer.Option("--name", help="What to install it as. Default: its own name.", metavar="NAME")]
Extra = Annotated[
    list[str] | None, typer.Option("--extra", help="Another extra of edgepack for the device.", metavar="NAME")
]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="What the device admits: a policy.toml.", metavar="FILE")
]
Wheel = Annotated[
    Path | None,
    typer.Option("--edgepack", help="edgepack's own wheel. Default: made from what is installed.", metavar="WHEEL"),
]


@examples(
    "edgepack kit smollm2.edgepack --platform linux-aarch64 --python 3.11 -o kit",
    "edgepack kit demo.edgepack --platform linux-x86_64 --python 3.12 -o kit",
    heading=SHIP,
)
def kit(
    bundle: BundlePath,
    platform: For,
    python: Python,
    out: Out,
    variant: Kept = None,
    name: As = None,
    extra: Extra = None,
    policy: PolicyFile = None,
    glibc: Glibc = "2.35",
    edgepack: Wheel = None,
    json: AsJson = False,
) -> None:
    """Gather a bundle, the wheels that it needs on a device, and a script that installs both without a network."""
    from dataclasses import asdict

    from edgepack.cli import screen
    from edgepack.cli.interrupts import Interrupts
    from edgepack.device.memory import human
    from edgepack_ship.kit import making, platforms

    device = platforms.platform(platform, platforms.glibc_of(glibc))
    with Interrupts():
        made = making.make(
            bundle,
            out,
            device,
            platforms.python_of(python),
            name=name,
            variants=variant,
            extras=extra or (),
            policy=policy,
            wheel=edgepack,
            said=lambda text: screen.say(screen.err(), text),
        )
    if json:
        screen.as_json(asdict(made))
        return
    console = screen.out()
    screen.say(console, screen.styled("bold", str(made.path), f"  {human(made.size)}"))
    screen.say(console, f"{made.name} with {', '.join(made.variants)}, and {made.packages} packages")
    screen.say(console, f"\nOn the device: sh {out.name}/install.sh")
