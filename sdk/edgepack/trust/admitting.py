"""What this device admits: the policies that apply, their keys, and the one question that installs and loads ask.

It reads policies and keys from the disk, and the day from the system's clock. Every policy that applies must admit a
bundle; so what an application or its environment names adds to the rules of the machine, and takes none away.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgepack.bundle.files import SIGNATURE, Bundle
from edgepack.bundle.installed import BUNDLES
from edgepack.errors import TrustError, UsageError, brief
from edgepack.trust import policy as policies
from edgepack.trust import statement as statements
from edgepack.trust import vouching
from edgepack.trust.files import read, there
from edgepack.trust.policy import MAX_POLICY, Key, Policy
from edgepack.trust.verifying import MAX_KEY, Kind, PublicKey, public_key
from edgepack.trust.vouching import Contents

POLICY = "policy.toml"
VARIABLE = "EDGEPACK_POLICY"

_ID = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy with its keys read: ``place`` is its path, ``keys`` are those of ``policy.key`` in their order."""

    place: str
    policy: Policy
    keys: tuple[PublicKey, ...]


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed a bundle: the name of a key in a policy, or the file of a key, and what kind of key it is.

    ``policy`` is the policy's path, None for a key that was named alone; ``fingerprint`` as ``PublicKey``'s.
    """

    key: str
    policy: str | None
    kind: Kind
    fingerprint: str


def system_policy() -> Path:
    """Return the place of the policy of the whole machine, which its administrator writes."""
    if platform.system() == "Darwin":
        return Path("/Library/Application Support/edgepack") / POLICY
    return Path("/etc/edgepack") / POLICY


def applying(given: str | os.PathLike[str] | None = None, store: Path | None = None) -> list[Rules]:
    """Return the policies that apply: the one that was given, or else that of ``EDGEPACK_POLICY``; that of a store;
    and the machine's. The first must be there, the others apply where they are.

    Raises ``TrustError`` for one that cannot be read or is no policy, whatever the others say.
    """
    named = given if given is not None else os.environ.get(VARIABLE) or None
    if named is not None and not (isinstance(named, str | os.PathLike) and os.fspath(named)):
        raise UsageError(f"policy cannot be {named!r}.", hint="Give the path of a policy.toml.")
    places = [*([] if store is None else [store / POLICY]), system_policy()]
    found = [place for place in places if there(place)]
    return [rules(place) for place in ([] if named is None else [Path(named)]) + found]


def rules(path: Path) -> Rules:
    """Return a policy with its keys. Raises ``TrustError`` where one of them cannot be read, or is none."""
    place = str(path)
    policy = policies.decode(read(path, MAX_POLICY), place)
    return Rules(place, policy, tuple(_key(key, path) for key in policy.key))


def admit(rules: Rules, contents: Contents, signature: bytes | None, *, today: datetime.date | None = None) -> Signer:
    """Return whose signature a policy admits a bundle by. ``signature`` are the bytes of its model.sig, None without.

    ``today`` is the day in UTC, None: the system's. Raises ``TrustError`` for an unsigned bundle, a signature that is
    damaged, of another bundle or of another key, a key that has expired or is not for this name, and for a bundle that
    breaks another rule.
    """
    name, hint = brief(contents.manifest.name), "Get the bundle from whoever signs for this device."
    if signature is None:
        raise TrustError(
            f"{name} is not signed, and {rules.place} asks for a signature.",
            hint=f"{hint} Where you are that: edgepack sign",
        )
    envelope = statements.opened(signature)
    signed = [
        (key, Signer(key.name, rules.place, public.kind, public.fingerprint))
        for key, public in zip(rules.policy.key, rules.keys, strict=True)
        if public.verifies(envelope.message, envelope.signature)
    ]
    if not signed:
        raise TrustError(f"None of the keys in {rules.place} made the signature of {name}.", hint=hint)
    vouching.check(statements.read(envelope.payload), contents)
    day = datetime.datetime.now(datetime.UTC).date() if today is None else today
    refusals = [_refusal(key, contents.manifest.name, day) for key, _ in signed]
    if None not in refusals:
        raise TrustError(f"{name} is signed by the key {signed[0][0].name} of {rules.place}, {refusals[0]}.", hint=hint)
    if (broken := rules.policy.broken(contents)) is not None:
        raise TrustError(f"{rules.place} does not admit {name}: {broken}.", hint="Take a bundle that it admits.")
    return signed[refusals.index(None)][1]


def gate(
    given: str | os.PathLike[str] | None = None, store: Path | None = None
) -> Callable[[Contents, bytes | None], None]:
    """Return what raises ``TrustError`` for contents and a signature that a policy does not admit, of all that apply.

    Arguments and errors are those of ``applying``.
    """
    held = applying(given, store)

    def asked(contents: Contents, signature: bytes | None) -> None:
        for each in held:
            admit(each, contents, signature)

    return asked


def admit_bundle(bundle: Bundle, given: str | os.PathLike[str] | None = None) -> list[Signer]:
    """Hold an open bundle to all policies that apply where it lies, and to the one that is given.

    No file but model.sig is read, and the manifest where variants are not in this copy. Raises as ``admit`` and
    ``applying``.
    """
    held = applying(given, store_of(bundle.path))
    if not held:
        return []
    contents, signature = vouching.whole(bundle), bundle.signature()
    return [admit(each, contents, signature) for each in held]


def store_of(folder: Path) -> Path | None:
    """Return the store that a bundle's folder lies in, by its path alone: STORE/bundles/ID. None outside of one."""
    return folder.parent.parent if folder.parent.name == BUNDLES and _ID.fullmatch(folder.name) else None


def pinned(path: Path) -> PublicKey:
    """Return the public key in a PEM file. Raises ``TrustError`` where it cannot be read, or is none."""
    return public_key(read(path, MAX_KEY), str(path))


def vouched(bundle: Bundle, key: Path) -> Signer:
    """Return the signer of an open bundle, by the file of a public key. Raises ``TrustError`` unless it signed it."""
    public, signature, name = pinned(key), bundle.signature(), brief(bundle.manifest.name)
    if signature is None:
        raise TrustError(f"{name} is not signed: it has no {SIGNATURE}.", hint="Sign it with: edgepack sign")
    envelope = statements.opened(signature)
    if not public.verifies(envelope.message, envelope.signature):
        raise TrustError(
            f"{key} did not sign {name}: the signature is another key's, or damaged.",
            hint="Get the bundle, or the key, from whoever signed it.",
        )
    vouching.check(statements.read(envelope.payload), vouching.whole(bundle))
    return Signer(str(key), None, public.kind, public.fingerprint)


def _refusal(key: Key, name: str, day: datetime.date) -> str | None:
    if key.not_after is not None and day > key.not_after:
        return f"which this device believes until {key.not_after} alone, and it is {day}"
    if not key.signs(name):
        return f"which may sign {', '.join(key.bundles)} alone"
    return None


def _key(key: Key, policy: Path) -> PublicKey:
    if key.pem is not None:
        return public_key(key.pem.encode(), f"The key {key.name} in {policy}")
    return pinned(policy.parent / (key.file or ""))
