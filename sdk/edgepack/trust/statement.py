"""What stands in model.sig: the format of OpenSSF Model Signing v1, bytes in and values out.

A Sigstore bundle (JSON) holds a DSSE envelope: one signature over a payload, an in-toto statement, whose predicate
lists files with their sha256. It knows no keys and no bundles, and opens nothing. What it returns of an envelope is a
stranger's word until the signature was verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from edgepack.bundle.files import MAX_SIGNATURE, SIGNATURE
from edgepack.bundle.manifest import Sha256
from edgepack.errors import TrustError

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

_AGAIN = "Get the signature again, or sign the bundle again."


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload and one signature over it. ``hint`` is what the signer says of the key, None where it was a certificate
    or nothing is said; it proves nothing."""

    payload: bytes
    signature: bytes
    hint: str | None = None

    @property
    def message(self) -> bytes:
        """The bytes that are signed: DSSE's pre-authentication encoding,
        https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md."""
        return f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(self.payload)} ".encode() + self.payload


@dataclass(frozen=True, slots=True)
class Statement:
    """What was signed: a model by its name, and the sha256 (64 hex digits) of every file by its path in the model."""

    name: str
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The sha256 of all digests in the order of the files: what the statement calls the digest of the model."""
        return hashlib.sha256(b"".join(bytes.fromhex(each) for each in self.files.values())).hexdigest()


class _Signature(msgspec.Struct):
    sig: bytes


class _Dsse(msgspec.Struct, rename="camel"):
    payload: bytes
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: Annotated[list[_Signature], msgspec.Meta(min_length=1, max_length=1)]


class _PublicKey(msgspec.Struct):
    hint: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class _Material(msgspec.Struct, rename="camel"):
    public_key: _PublicKey | None = None


class _SigstoreBundle(msgspec.Struct, rename="camel"):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: _Dsse


class _Digest(msgspec.Struct):
    sha256: Sha256


class _Subject(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(max_length=1024)]
    digest: _Digest


class _Serialization(msgspec.Struct):
    method: Literal["files"]
    hash_type: Literal["sha256"]


class _Resource(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    algorithm: Literal["sha256"]
    digest: Sha256


class _Predicate(msgspec.Struct):
    serialization: _Serialization
    resources: Annotated[list[_Resource], msgspec.Meta(min_length=1)]


class _InToto(msgspec.Struct, rename={"type": "_type", "predicate_type": "predicateType"}):
    type: Literal["https://in-toto.io/Statement/v1"]
    subject: Annotated[list[_Subject], msgspec.Meta(min_length=1, max_length=1)]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


def opened(data: bytes) -> Envelope:
    """Return the envelope in a model.sig. Raises ``TrustError`` for what is none, or has more than one signature."""
    if len(data) > MAX_SIGNATURE:
        raise TrustError(f"{SIGNATURE} has more than {MAX_SIGNATURE:,} bytes.", hint=_AGAIN)
    try:
        found = msgspec.json.decode(data, type=_SigstoreBundle)
    except (ValueError, RecursionError) as error:  # of msgspec, of a text that is not UTF-8
        raise TrustError(f"{SIGNATURE} is no signature that edgepack reads: {error}.", hint=_AGAIN) from None
    key = found.verification_material.public_key
    dsse = found.dsse_envelope
    return Envelope(dsse.payload, dsse.signatures[0].sig, None if key is None else key.hint)


def read(payload: bytes) -> Statement:
    """Return what a payload states. Fields that Model Signing v1 does not define are passed over, as it asks.

    Raises ``TrustError`` for another kind of statement, for one that names a file twice, and for one whose own digest
    is not that of its files.
    """
    try:
        found = msgspec.json.decode(payload, type=_InToto)
    except (ValueError, RecursionError) as error:
        raise TrustError(
            f"{SIGNATURE} states nothing that edgepack reads: {error}.",
            hint="Sign with edgepack sign, or with model-signing 1.0 or newer: whole files, by their sha256.",
        ) from None
    files = {each.name: each.digest for each in found.predicate.resources}
    if len(files) < len(found.predicate.resources):
        raise TrustError(f"{SIGNATURE} names a file twice.", hint=_AGAIN)
    statement, subject = Statement(found.subject[0].name, files), found.subject[0]
    if statement.digest != subject.digest.sha256:
        raise TrustError(f"{SIGNATURE} contradicts itself: its digest is not that of its files.", hint=_AGAIN)
    return statement


def written(statement: Statement) -> bytes:
    """Return the payload that states it: JSON, the files in the order of their paths."""
    files = dict(sorted(statement.files.items()))
    ordered = Statement(statement.name, files)
    return msgspec.json.encode(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": ordered.name, "digest": {"sha256": ordered.digest}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": [SIGNATURE],
                },
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": digest} for name, digest in files.items()
                ],
            },
        }
    )


def sealed(envelope: Envelope) -> bytes:
    """Return the bytes of model.sig: two-space indent, a final newline."""
    whole: dict[str, Any] = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": envelope.hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": envelope.payload,
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": envelope.signature, "keyid": ""}],
        },
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"
