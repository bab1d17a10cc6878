"""A signature over bytes by a public key: Ed25519, or ECDSA on the curves of NIST with the hash of their size.

The same keys and hashes as OpenSSF Model Signing, which has no Ed25519. Only PEM is read, and nothing is fetched.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgepack.errors import TrustError
from edgepack.extras import needed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

Kind = Literal["ed25519", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521"]

KINDS: dict[str, Kind] = {"secp256r1": "ecdsa-p256", "secp384r1": "ecdsa-p384", "secp521r1": "ecdsa-p521"}
"""The kinds of ECDSA by what ``cryptography`` calls their curves."""

MAX_KEY = 1 << 14


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key. ``fingerprint`` is the sha256 of its PEM, as Model Signing names keys: 64 hex digits."""

    kind: Kind
    fingerprint: str
    key: PublicKeyTypes

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Say whether this key signed the message."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            if isinstance(self.key, Ed25519PublicKey):
                self.key.verify(signature, message)
            elif isinstance(self.key, EllipticCurvePublicKey):
                self.key.verify(signature, message, ecdsa(self.kind))
            else:
                return False
        except InvalidSignature:
            return False
        return True


def public_key(pem: bytes, place: str) -> PublicKey:
    """Return the public key in a PEM text. ``place`` is where it stands, for sentences.

    Raises ``TrustError`` for what is none, and for a kind that signs no bundles; ``ExtraMissingError`` without the
    packages of the extra "ship".
    """
    with needed("Checking a signature", "ship"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    if b"PRIVATE KEY-----" in pem:
        raise TrustError(f"{place} is a private key.", hint="Give the public one, and keep this one to yourself.")
    try:
        if len(pem) > MAX_KEY:
            raise ValueError(f"it has more than {MAX_KEY:,} bytes")
        key = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError(
            f"{place} is no public key: {str(error).partition('.')[0] or 'not in PEM'}.",
            hint="Give the PEM file that edgepack keygen wrote, -----BEGIN PUBLIC KEY-----.",
        ) from None
    return known(key, place)


def known(key: PublicKeyTypes, place: str) -> PublicKey:
    """Return a key with its kind. Raises ``TrustError`` for one that signs no bundles."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    kind: Kind | None = "ed25519" if isinstance(key, Ed25519PublicKey) else None
    if isinstance(key, EllipticCurvePublicKey):
        kind = KINDS.get(key.curve.name)
    if kind is None:
        raise TrustError(
            f"{place} is a key of a kind that signs no bundles.",
            hint="Take Ed25519, or ECDSA on P-256, P-384 or P-521: edgepack keygen makes them.",
        )
    return PublicKey(
        kind, hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest(), key
    )


def ecdsa(kind: Kind) -> ECDSA:
    """Return what a kind of ECDSA signs with: SHA-2 of the curve's size, as Model Signing has it."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

    return ECDSA({"ecdsa-p256": SHA256(), "ecdsa-p384": SHA384()}.get(kind, SHA512()))
