"""Private keys in PEM (PKCS#8): made, written where nobody else can read them, and read again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import TrustError, UsageError
from edgepack.extras import needed
from edgepack.trust.files import read
from edgepack.trust.verifying import MAX_KEY, Kind, PublicKey, ecdsa, known

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    Key = Ed25519PrivateKey | EllipticCurvePrivateKey

PRIVATE, PUBLIC = ".key", ".pub"
MODEL_SIGNING = "ecdsa"
"""What the kinds begin with that OpenSSF's own program verifies."""


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs. Its repr shows the public half alone."""

    public: PublicKey
    _key: Key

    def __repr__(self) -> str:
        return f"<PrivateKey {self.public.kind} {self.public.fingerprint[:12]}>"

    def sign(self, message: bytes) -> bytes:
        """Return the signature over a message, as ``PublicKey.verifies`` takes it."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.sign(message)
        return self._key.sign(message, ecdsa(self.public.kind))

    def write(self, out: Path, passphrase: str | None = None) -> tuple[Path, Path]:
        """Write OUT.key, which its owner alone may read, and OUT.pub; return their paths.

        ``passphrase`` encrypts the private key. Raises ``UsageError`` where one of them is there, and ``TrustError``
        where they cannot be written; neither is left then.
        """
        from cryptography.hazmat.primitives import serialization as form

        shut = form.BestAvailableEncryption(passphrase.encode()) if passphrase else form.NoEncryption()
        private = self._key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, shut)
        public = self._key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        places = out.with_name(out.name + PRIVATE), out.with_name(out.name + PUBLIC)
        written: list[Path] = []
        try:
            for place, data, mode in zip(places, (private, public), (0o600, 0o644), strict=True):
                descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
                written.append(place)
                with open(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException as error:
            for place in written:
                place.unlink(missing_ok=True)
            if isinstance(error, FileExistsError):
                raise UsageError(
                    f"{error.filename} is there already.", hint="Choose another name: a lost key cannot be made again."
                ) from None
            if isinstance(error, OSError):
                raise TrustError(f"{out} cannot be written: {error.strerror}.", hint="Choose another place.") from None
            raise
        return places


def make(kind: Kind) -> PrivateKey:
    """Return a new key of a kind. Raises ``ExtraMissingError`` without the packages of the extra "ship"."""
    with needed("Making a key", "ship"):
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    curves = {"ecdsa-p256": ec.SECP256R1(), "ecdsa-p384": ec.SECP384R1(), "ecdsa-p521": ec.SECP521R1()}
    key = Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(curves[kind])
    return PrivateKey(known(key.public_key(), "the key"), key)


def load(path: Path, passphrase: Callable[[], str | None]) -> PrivateKey:
    """Return the private key in a PEM file. ``passphrase`` is asked where it is encrypted, and gives None for none.

    Raises ``TrustError`` where it cannot be read, is no key that signs bundles, or the passphrase is not its own;
    ``ExtraMissingError`` without the packages of the extra "ship".
    """
    with needed("Signing", "ship"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    pem = read(path, MAX_KEY)[:MAX_KEY]
    secret = passphrase() if b"ENCRYPTED" in pem else None
    if b"ENCRYPTED" in pem and not secret:
        raise TrustError(f"{path} is encrypted, and no passphrase was given.", hint="Set EDGEPACK_KEY_PASSPHRASE.")
    try:
        key = load_pem_private_key(pem, secret.encode() if secret else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # whose words may hold what was in the file
        raise TrustError(
            f"{path} is no private key{', or the passphrase is not its own' if secret else ''}.",
            hint="Give the .key file that edgepack keygen wrote.",
        ) from None
    if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
        raise TrustError(f"{path} is a key of a kind that signs no bundles.", hint="Make one with: edgepack keygen")
    return PrivateKey(known(key.public_key(), str(path)), key)
