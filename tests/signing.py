"""Keys, signatures and policies for tests: made with edgepack's own, small and quick."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from edgepack.bundle.files import SIGNATURE, open_bundle
from edgepack.trust.verifying import Kind
from edgepack_ship.signing import keys
from edgepack_ship.signing.keys import PrivateKey
from edgepack_ship.signing.sign import signed


def key(name: str = "ours", kind: Kind = "ed25519") -> PrivateKey:
    """A key of a name, the same in the whole process."""
    return _made(name, kind)


@cache
def _made(name: str, kind: Kind) -> PrivateKey:
    return keys.make(kind)


def pem(name: str = "ours", kind: Kind = "ed25519") -> str:
    """The public half in PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    data: bytes = key(name, kind).public.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data.decode()


def sign(folder: Path, name: str = "ours", kind: Kind = "ed25519") -> Path:
    """Sign a bundle, and return its folder."""
    (folder / SIGNATURE).write_bytes(signed(open_bundle(folder, verify="sizes"), key(name, kind)))
    return folder


def policy(place: Path, *names: str, rules: str = "", bundles: str = "*", more: str = "") -> Path:
    """Write a policy that pins keys, and return its path. ``more`` is what each key has besides."""
    text = f"version = 1\n{rules}\n"
    for name in names:
        text += f'[[key]]\nname = "{name}"\nbundles = ["{bundles}"]\npem = """{pem(name)}"""\n{more}\n'
    place.write_text(text, "utf-8")
    return place


def manifest(**changes: Any) -> dict[str, Any]:
    """Changes of a manifest that releases it under a sequence."""
    return {"schema": {"version": 2, "features": ["sequence"]}, "sequence": 7} | changes
