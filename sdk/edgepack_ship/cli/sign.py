"""``edgepack sign``: vouch for a bundle, in a model.sig beside its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath
from edgepack.cli.screen import as_json, bar, next_step, out, say, styled
from edgepack_ship.cli import SHIP, passphrase

Key = Annotated[
    Path,
    typer.Option(
        help=f"The private key, in PEM. An encrypted one asks for its passphrase, or takes {passphrase.VARIABLE}.",
        metavar="FILE",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the signature that it has.")]


@examples("edgepack sign demo.edgepack --key release.key", heading=SHIP)
def sign(bundle: BundlePath, key: Key, force: Force = False, json: AsJson = False) -> None:
    """Check every file of a bundle, and sign it: what devices with the public key then take for yours."""
    from edgepack.bundle.files import open_bundle
    from edgepack_ship.signing import keys
    from edgepack_ship.signing.sign import sign as signed

    opened = open_bundle(bundle, verify="sizes")
    private = keys.load(key, passphrase.given)
    with bar() as progress:
        task = progress.add_task("Checking sha256", total=opened.size())
        place = signed(opened, private, force=force, progress=lambda _, count: progress.advance(task, count))
    public = private.public
    if json:
        as_json({"id": opened.id, "signature": str(place), "type": public.kind, "fingerprint": public.fingerprint})
        return
    say(out(), styled("bold", opened.manifest.name, f"  sha256:{opened.id}"))
    say(out(), styled("green", "signed", f" by {public.kind} sha256:{public.fingerprint[:12]} in {place}"))
    next_step("edgepack", "verify", str(bundle), "--key", f"{str(key).removesuffix('.key')}.pub")
