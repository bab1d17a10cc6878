"""What model.sig says: read strictly, written as others read it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepack.bundle.files import MAX_SIGNATURE
from edgepack.errors import TrustError
from edgepack.trust import statement
from edgepack.trust.statement import Envelope, Statement
from edgepack.trust.verifying import public_key

GOLDEN = Path(__file__).parents[2] / "golden" / "model_signing"
"""What model-signing 1.1.1 wrote (`model_signing sign key FOLDER --private_key ...`) of a.txt, "one", and sub/b.txt,
"two", each with a newline."""

ONE, TWO = (hashlib.sha256(data).hexdigest() for data in (b"one\n", b"two\n"))
FILES = {"a.txt": ONE, "sub/b.txt": TWO}


@pytest.mark.parametrize("curve", ["p256", "p384", "p521"])
def test_what_model_signing_wrote_is_read_and_verified(curve: str) -> None:
    envelope = statement.opened((GOLDEN / f"{curve}.sig").read_bytes())
    key = public_key((GOLDEN / f"{curve}.pub").read_bytes(), "its key")
    assert key.kind == f"ecdsa-{curve}"
    assert envelope.hint == key.fingerprint
    assert key.verifies(envelope.message, envelope.signature)
    assert not key.verifies(envelope.message + b" ", envelope.signature)
    assert statement.read(envelope.payload) == Statement("model", FILES)


def test_a_key_verifies_no_signature_of_another() -> None:
    envelopes = {curve: statement.opened((GOLDEN / f"{curve}.sig").read_bytes()) for curve in ("p256", "p384")}
    for curve, other in (("p256", "p384"), ("p384", "p256")):
        key = public_key((GOLDEN / f"{curve}.pub").read_bytes(), "its key")
        assert not key.verifies(envelopes[other].message, envelopes[other].signature)


def test_what_is_written_is_read_again() -> None:
    payload = statement.written(Statement("small", dict(reversed(FILES.items()))))
    assert statement.read(payload) == Statement("small", FILES)
    envelope = Envelope(payload, b"\x01\x02", "ab" * 32)
    assert statement.opened(statement.sealed(envelope)) == envelope


def test_what_is_signed_is_the_payload_with_its_type_and_length() -> None:
    assert Envelope(b"hello", b"").message == b"DSSEv1 28 application/vnd.in-toto+json 5 hello"


def whole() -> Any:
    return json.loads((GOLDEN / "p256.sig").read_bytes())


def envelope_of(change: Callable[[Any], object]) -> bytes:
    document = whole()
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        (GOLDEN / "p256.sig").read_bytes()[:-1],
        (GOLDEN / "p256.sig").read_bytes()[:700],
        (GOLDEN / "p256.sig").read_bytes() + b"{}",
        b'{"mediaType":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b" " * MAX_SIGNATURE + b"{}",
        envelope_of(lambda each: each.update(mediaType="application/vnd.dev.sigstore.bundle.v0.4+json")),
        envelope_of(lambda each: each.pop("dsseEnvelope")),
        envelope_of(lambda each: each["dsseEnvelope"].update(payloadType="text/plain")),
        envelope_of(lambda each: each["dsseEnvelope"].update(payload="§")),
        envelope_of(lambda each: each["dsseEnvelope"].update(signatures=[])),
        envelope_of(lambda each: each["dsseEnvelope"]["signatures"].append(each["dsseEnvelope"]["signatures"][0])),
    ],
)
def test_what_is_no_signature(data: bytes) -> None:
    with pytest.raises(TrustError, match=r"^model\.sig "):
        statement.opened(data)


def stated(change: Callable[[Any], object]) -> bytes:
    document = json.loads(base64.b64decode(whole()["dsseEnvelope"]["payload"]))
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda each: each.update(_type="https://in-toto.io/Statement/v0.1"), "states nothing"),
        (lambda each: each.update(predicateType="https://model_signing/Digests/v0.1"), "states nothing"),
        (lambda each: each["predicate"]["serialization"].update(method="shards"), "states nothing"),
        (lambda each: each["predicate"]["serialization"].update(hash_type="blake2b"), "states nothing"),
        (lambda each: each["predicate"]["resources"][0].update(algorithm="sha256-sharded-1000"), "states nothing"),
        (lambda each: each["predicate"]["resources"][0].update(digest="AB" * 32), "states nothing"),
        (lambda each: each["predicate"].update(resources=[]), "states nothing"),
        (lambda each: each["subject"].append(each["subject"][0]), "states nothing"),
        (lambda each: each["predicate"]["resources"].append(each["predicate"]["resources"][0]), "names a file twice"),
        (lambda each: each["predicate"]["resources"][0].update(digest=TWO), "contradicts itself"),
        (lambda each: each["predicate"]["resources"].pop(), "contradicts itself"),
    ],
)
def test_what_is_no_statement_of_files(change: Callable[[Any], object], what: str) -> None:
    with pytest.raises(TrustError, match=what):
        statement.read(stated(change))


def test_what_a_later_signer_adds_is_passed_over() -> None:
    assert statement.read(stated(lambda each: each["predicate"].update(card={"new": 1}))) == Statement("model", FILES)
