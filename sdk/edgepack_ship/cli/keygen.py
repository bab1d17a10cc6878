"""``edgepack keygen``: a pair of keys, one to sign with and one to give to devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack.cli.screen import as_json, err, facts, next_step, out, say, styled
from edgepack.errors import UsageError
from edgepack_ship.cli import SHIP, passphrase

Out = Annotated[
    Path,
    typer.Option("--out", "-o", help="The keys' name: NAME.key and NAME.pub.", metavar="NAME", show_default=False),
]
Type = Annotated[
    Literal["ed25519", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521"],
    typer.Option("--type", help="The kind of key. OpenSSF's model-signing verifies the ecdsa ones alone."),
]
Encrypted = Annotated[
    bool,
    typer.Option("--passphrase", help=f"Encrypt the private key: ask for a passphrase, or take {passphrase.VARIABLE}."),
]


@examples("edgepack keygen -o release", "edgepack keygen -o release --type ecdsa-p256 --passphrase", heading=SHIP)
def keygen(name: Out, type: Type = "ed25519", encrypted: Encrypted = False, json: AsJson = False) -> None:
    """Make a key to sign bundles with, and the public key by which devices know it."""
    from edgepack_ship.signing import keys

    secret = passphrase.given(twice=True) if encrypted else None
    if encrypted and not secret:
        raise UsageError("--passphrase was given, and nobody can be asked.", hint=f"Set {passphrase.VARIABLE}.")
    key = keys.make(type)
    private, public = key.write(name, secret)
    if json:
        as_json(
            {
                "private": str(private),
                "public": str(public),
                "type": key.public.kind,
                "fingerprint": key.public.fingerprint,
                "encrypted": secret is not None,
            }
        )
        return
    shut = "encrypted, and" if secret else "not encrypted, and"
    out().print(
        facts(
            [
                ("private", f"{private}: {shut} for you alone to read; keep a copy where nobody comes"),
                ("public", f"{public}: for devices, in a policy.toml"),
                ("type", f"{key.public.kind}, sha256:{key.public.fingerprint}"),
            ]
        )
    )
    if not key.public.kind.startswith(keys.MODEL_SIGNING):
        say(err(), styled("dim", "OpenSSF's model-signing does not verify this type; edgepack does."))
    next_step("edgepack", "sign", "BUNDLE", "--key", str(private))
