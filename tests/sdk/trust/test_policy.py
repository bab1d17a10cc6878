"""policy.toml: read strictly, and what it asks beside a signature."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

import pytest
import small_bundle

from edgepack.bundle.manifest import Manifest
from edgepack.errors import TrustError
from edgepack.trust import policy
from edgepack.trust.policy import Policy

KEY = '[[key]]\nname = "ours"\nbundles = ["small*"]\nfile = "ours.pub"\n'


@dataclass(frozen=True)
class Told:
    manifest: Manifest
    id: str = "ab" * 32
    draft: Told | None = None


def told(draft: Told | None = None, **changes: Any) -> Told:
    variants = changes.pop("variants", [small_bundle.variant("fake-q4")])
    return Told(small_bundle.read(small_bundle.manifest(variants, **changes)), draft=draft)


def read(text: str, key: str = KEY) -> Policy:
    return policy.decode(f"version = 1\n{text}\n{key}".encode(), "policy.toml")


def test_every_field() -> None:
    found = read(
        'proven = true\nlicences = ["MIT"]\nminimum_sequence = { "small*" = 3 }', KEY + "not_after = 2027-12-31\n"
    )
    assert (found.proven, found.licences, found.minimum_sequence) == (True, ["MIT"], {"small*": 3})
    assert found.key[0].not_after == datetime.date(2027, 12, 31)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "missing required field `version`"),
        ("version = 1", "missing required field `key`"),
        ("version = 1\nkey = []", r"length >= 1 - at `\$\.key`"),
        ("version = 2\n" + KEY, "of version 2"),
        ("version = true\n" + KEY, r"\$\.version"),
        ("version = 1\nprovn = true\n" + KEY, "unknown field `provn`"),
        ('version = 1\nproven = "yes"\n' + KEY, r"\$\.proven"),
        ("version = 1\nlicences = []\n" + KEY, r"\$\.licences"),
        ("version = 1\nminimum_sequence = { small = -1 }\n" + KEY, r"\$\.minimum_sequence"),
        ("version = 1\n" + KEY + 'pem = "x"', r"either `pem` or `file` - at `\$\.key\[0\]`"),
        ("version = 1\n" + KEY + KEY, r"'ours' stands there twice - at `\$\.key\[1\]\.name`"),
        ("version = 1\n" + KEY + "not_after = 2027-12-31T00:00:00Z", r"\$\.key\[0\]\.not_after"),
        ("version = 1\n" + KEY + "not_after = 2027-02-30", "no policy"),
        ("version = 1\n" + KEY.replace('["small*"]', "[]"), r"\$\.key\[0\]\.bundles"),
        ("version = 1\n" + KEY + "expires = 2027-12-31", r"unknown field `expires` - at `\$\.key\[0\]`"),
        ("version = 1\n" + KEY[:-3], "no policy"),
        ("version = 1\nversion = 1\n" + KEY, "no policy"),
        ("version = 1\nx = " + "[" * 50_000, "no policy"),
        ("#" * (policy.MAX_POLICY + 1), "more than 262,144 bytes"),
        ("\ud800", "no policy"),
    ],
)
def test_what_is_not_a_whole_policy(text: str, what: str) -> None:
    with pytest.raises(TrustError, match=rf"^policy\.toml is .*{what}"):
        policy.decode(text.encode("utf-8", "surrogatepass"), "policy.toml")


@pytest.mark.parametrize(
    ("sequence", "pattern", "broken"),
    [(7, "small", False), (7, "other", False), (8, "small", True), (8, "sm*", True), (8, "S*", False)],
)
def test_the_lowest_sequence_of_names(sequence: int, pattern: str, broken: bool) -> None:
    found = read(f'minimum_sequence = {{ "{pattern}" = {sequence}, "*" = 1 }}')
    contents = told(sequence=7, schema={"version": 2, "features": ["sequence"]})
    assert (found.broken(contents) is not None) == broken


@pytest.mark.parametrize(
    ("licence", "allowed", "taken"),
    [
        ("MIT", ["MIT"], True),
        ("mit", ["MIT"], True),
        ("MIT", ["Apache-2.0"], False),
        ("Apache-2.0", ["Apache-*"], True),
        ("LicenseRef-gemma", ["LicenseRef-*"], True),
        ("Apache-2.0 AND MIT", ["MIT"], False),
        ("Apache-2.0 AND MIT", ["MIT", "apache-2.0"], True),
        ("(Apache-2.0 OR GPL-3.0-only) AND MIT", ["MIT", "Apache-2.0"], False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ["GPL-2.0-only"], False),
        ("", ["*"], True),
        ("()", ["MIT"], False),
        ("MIT" + "x" * 300, ["MIT*"], False),
    ],
)
def test_licences(licence: str, allowed: list[str], taken: bool) -> None:
    found = read(f"licences = {allowed!r}")
    assert (found.broken(told(license={"id": licence, "files": []})) is None) == taken


def test_variants_without_a_proof() -> None:
    missed = {"name": "kl", "value": 0.1, "limit": 0.05, "holds": "<="}
    proof = small_bundle.variant("fake-q4")["proof"]
    for bad in (None, proof | {"gates": [missed]}):
        contents = told(variants=[small_bundle.variant("fake-q8"), small_bundle.variant("fake-q4", proof=bad)])
        assert read("").broken(contents) is None
        assert read("proven = true").broken(contents) == "its variant fake-q4 is not proven"
        assert read("proven = true").broken(told(draft=contents)) == "its variant draft/fake-q4 is not proven"


def test_the_licence_of_a_draft() -> None:
    other = told(license={"id": "LicenseRef-x", "files": []})
    assert read('licences = ["MIT"]').broken(told(draft=other)) == "its licence of the draft is 'LicenseRef-x'"


def test_a_name_that_is_too_long_is_nobodys() -> None:
    found = read("", KEY.replace("small*", "*"))
    assert found.key[0].signs("a" * 256)
    assert not found.key[0].signs("a" * 257)
