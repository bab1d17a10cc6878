"""``edgepack install``: a bundle comes into a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, PolicyFile
from edgepack_ship.cli import DEVICE
from edgepack_ship.cli.options import AllowDowngrade, Kept, PlainHttp, StoreFolder, store_of, waiting

if TYPE_CHECKING:
    from edgepack_ship.store.install import Installed

Where = Annotated[
    str,
    typer.Argument(metavar="BUNDLE", help="A folder, a packed file, a difference or an address.", show_default=False),
]
As = Annotated[
    str | None, typer.Option("--name", help="What to install it as. Default: the bundle's own name.", metavar="NAME")
]
Replay = Annotated[
    bool, typer.Option("--replay", help="Run each variant's self-test here first; a bundle that fails is not used.")
]


@examples(
    "edgepack install smollm2.edgepack",
    "edgepack install /media/usb/smollm2.edgepack.tar --replay",
    "edgepack install oci://registry.example/models/smollm2:3 --name assistant",
    heading=DEVICE,
)
def install(
    bundle: Where,
    name: As = None,
    variant: Kept = None,
    replay: Replay = False,
    allow_downgrade: AllowDowngrade = False,
    policy: PolicyFile = None,
    store: StoreFolder = None,
    plain_http: PlainHttp = False,
    json: AsJson = False,
) -> None:
    """Install a bundle so that nothing can break it: whole, checked, and the one before kept for a rollback."""
    from dataclasses import asdict

    from edgepack.cli import screen
    from edgepack.cli.interrupts import Interrupts
    from edgepack.trust.admitting import gate
    from edgepack_ship.incoming import opened
    from edgepack_ship.store.install import install as into

    place = store_of(store)
    with Interrupts(), opened(bundle, place.present, plain_http) as incoming, screen.bar() as progress:
        inside = incoming.contents()
        files = inside.files(variant or incoming.variants())
        task = progress.add_task("Installing", total=sum(file.size for file in files.values()))
        done = into(
            place,
            incoming,
            name,
            variant,
            admit=gate(policy, place.folder),
            check=_replayed if replay else _unchecked,
            allow_downgrade=allow_downgrade,
            waiting=waiting,
            progress=lambda _, count: progress.advance(task, count),
        )
    if json:
        screen.as_json(asdict(done))
    else:
        _show(done)


def _unchecked(folder: Path) -> None:
    pass


def _replayed(folder: Path) -> None:
    """Raise ``EngineError`` for a bundle that does not give here what it records, or of which nothing can run here."""
    from edgepack.bundle.files import open_bundle
    from edgepack.cli.verify import refuse_differing, replayed
    from edgepack.errors import EngineError

    bundle = open_bundle(folder, verify="sizes")
    replays = replayed(bundle)
    refuse_differing(replays)
    own = {variant.id for variant in bundle.manifest.variants}
    skipped = [replay for replay in replays if replay.verdict == "skipped" and replay.name in own]
    if skipped and len(skipped) == len(own):
        raise EngineError(
            f"No variant could be tried here: {skipped[0].name} was not, since {skipped[0].reason}.",
            hint="edgepack doctor shows the engines that are here; without --replay it is installed untried.",
        )


def _show(done: Installed) -> None:
    from edgepack.cli import screen

    console = screen.out()
    screen.say(console, screen.styled("bold", done.name, f"  sha256:{done.id}"))
    screen.say(console, f"installed with {', '.join(done.variants)}")
    if done.previous is not None:
        screen.say(console, f"before it: sha256:{done.previous}, to which edgepack rollback {done.name} returns")
    screen.next_step("edgepack", "run", done.name)
