"""Damaged and hostile signatures and policies: each is refused in words, and none lets a bundle pass that was changed.

The seeds are fixed; ``pytest -m hostile`` tries all, ``--share 0.1`` the first tenth.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import signing
import small_bundle
from sweeps import damaged, swept

from edgepack.bundle.files import Bundle, open_bundle
from edgepack.errors import BundleError, EdgepackError
from edgepack.trust import admitting, policy, statement, vouching
from edgepack.trust.statement import Envelope

pytestmark = pytest.mark.hostile

Portion = Callable[[int], int]

EXTREMES: tuple[object, ...] = (
    None, True, 0, -1, 2**63, 10**30, 0.5, 1e308, "", "a", "\0", "../..", "é\U0001f600", "x" * 5000, [], {}, [[]],
    [None], {"": None}, ["a"] * 300, "==", "A" * 4, "ab" * 32,
)  # fmt: skip


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every (parent, key) of a document."""
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [pair for key, value in pairs for pair in ((document, key), *places(value))]


def mutated(plain: Any, choice: random.Random) -> Any:
    """A document with a few fields changed, left out, repeated or nested."""
    document = deepcopy(plain)
    for _ in range(choice.choice((1, 1, 2, 3))):
        if not (found := places(document)):
            break
        parent, key = choice.choice(found)
        match choice.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[choice.choice(("surprise", "", "sig", "sha256"))] = deepcopy(choice.choice(EXTREMES))
            case 2 if isinstance(parent, list):
                parent.extend([deepcopy(parent[key])] * choice.choice((1, 300)))
            case 3:
                other, place = choice.choice(found)
                parent[key] = deepcopy(other[place]) if place in other or isinstance(other, list) else None
            case 4:
                parent[key] = [[[deepcopy(parent[key])]]]
            case _:
                parent[key] = deepcopy(choice.choice(EXTREMES))
    return document


@pytest.fixture
def opened(tmp_path: Path) -> Bundle:
    return open_bundle(signing.sign(small_bundle.write_with_draft(tmp_path / "small")))


def test_no_signature_is_more_than_an_error(opened: Bundle, tmp_path: Path, portion: Portion) -> None:
    """Whatever is admitted says the same as what was signed, by the same bytes of payload and signature."""
    rules = admitting.rules(signing.policy(tmp_path / "policy.toml", "ours"))
    plain = opened.signature() or b""
    envelope, document = statement.opened(plain), json.loads(plain)

    def asked(number: int) -> None:
        choice = random.Random(number)
        data = damaged(plain, choice) if number % 2 else json.dumps(mutated(document, choice)).encode()
        try:
            admitting.admit(rules, opened, data)
        except BundleError:
            return
        found = statement.opened(data)
        assert (found.payload, found.signature) == (envelope.payload, envelope.signature)

    assert swept(asked, range(portion(5000)), tmp_path) == []


def test_no_statement_that_a_key_signed_is_more_than_an_error(opened: Bundle, tmp_path: Path, portion: Portion) -> None:
    """What is admitted names the very files of the bundle: the key itself may be the stranger's."""
    rules = admitting.rules(signing.policy(tmp_path / "policy.toml", "ours"))
    payload = statement.opened(opened.signature() or b"").payload
    document, files = json.loads(payload), vouching.digests(opened)

    def asked(number: int) -> None:
        choice = random.Random(number)
        changed = damaged(payload, choice) if number % 2 else json.dumps(mutated(document, choice)).encode()
        unsigned = Envelope(changed, b"")
        data = statement.sealed(Envelope(changed, signing.key().sign(unsigned.message)))
        try:
            admitting.admit(rules, opened, data)
        except BundleError:
            return
        assert statement.read(changed).files == files

    assert swept(asked, range(portion(5000)), tmp_path) == []


def test_no_policy_is_more_than_an_error(opened: Bundle, tmp_path: Path, portion: Portion) -> None:
    rules = 'proven = true\nlicences = ["MIT", "Apache-*"]\nminimum_sequence = { "small" = 1, "k*" = 2 }'
    plain = signing.policy(tmp_path / "policy.toml", "ours", "theirs", rules=rules, more="not_after = 2099-12-31")
    text, place = plain.read_bytes(), tmp_path / "damaged.toml"
    words = [
        b"[",
        b"]",
        b'"',
        b'"""',
        b"=",
        b"\n",
        b"[[key]]",
        b"'",
        b"{",
        b"}",
        b".",
        b"\\u0000",
        b"[" * 3000,
        b"9" * 5000,
    ]

    def asked(number: int) -> None:
        choice = random.Random(number)
        data = damaged(text, choice)
        if number % 3 == 0:
            at = choice.randrange(len(text))
            data = text[:at] + choice.choice(words) + text[at + choice.choice((0, 1, 9)) :]
        place.write_bytes(data)
        try:
            found = admitting.rules(place)
        except EdgepackError:
            return
        admitting.admit(found, opened, opened.signature())

    assert swept(asked, range(portion(5000)), tmp_path) == []


def test_no_pattern_takes_long(tmp_path: Path) -> None:
    patterns = ["*" * 128, "*a" * 64, "[" * 128, "[!" * 64, "?*" * 64, "[a-" * 42]
    names = ["a" * 256, "a" * 255 + "b", "[" * 256, "-" * 256, "\n" * 256]
    cases = [(pattern, name) for pattern in patterns for name in names]

    def asked(case: tuple[str, str]) -> None:
        pattern, name = case
        text = f'version = 1\n[[key]]\nname = "k"\nbundles = ["{pattern}"]\nfile = "k.pub"\n'
        policy.decode(text.encode(), "policy.toml").key[0].signs(name)

    assert swept(asked, cases, tmp_path, seconds=60) == []


def test_a_signature_of_many_files_takes_no_time_of_note(tmp_path: Path) -> None:
    """The most files that a model.sig of the largest size can name."""

    def asked(count: int) -> None:
        resources = [{"name": str(n), "algorithm": "sha256", "digest": "ab" * 32} for n in range(count)]
        subject = [{"name": "", "digest": {"sha256": "ab" * 32}}]
        payload = json.dumps(
            {
                "_type": statement.STATEMENT_TYPE,
                "subject": subject,
                "predicateType": statement.PREDICATE_TYPE,
                "predicate": {"serialization": {"method": "files", "hash_type": "sha256"}, "resources": resources},
            }
        ).encode()
        data = statement.sealed(Envelope(payload, b""))
        assert base64.b64encode(payload) in data
        statement.read(statement.opened(data).payload)

    assert swept(asked, [10, 20_000, 40_000], tmp_path, seconds=60) == []
