"""A source that its publisher signed: what model.sig says of the files that a build reads, and who says it.

The digests are compared in any case. Who signed is checked by a key alone: the identity behind a certificate of
Sigstore takes the network and the roots of its trust, and is left to its own program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgepack.bundle.files import MAX_SIGNATURE, SIGNATURE
from edgepack.bundle.manifest import File
from edgepack.errors import SourceError, TrustError, UsageError
from edgepack.trust import statement
from edgepack.trust.admitting import pinned
from edgepack.trust.files import read, there
from edgepack.trust.statement import Envelope
from edgepack.trust.verifying import PublicKey
from edgepack_packager.source import needed

_AGAIN = "Fetch the model again, or tell whoever published it."


def by(root: Path, key: str) -> tuple[Envelope, PublicKey]:
    """Return the signature of the source in a folder, and the key in a PEM file, which made it.

    Raises ``SourceError`` where it did not, and ``UsageError`` where the file is no public key.
    """
    try:
        public = pinned(Path(key))
    except TrustError as error:
        raise UsageError(error.message, hint=error.hint) from None
    if not there(root / SIGNATURE):
        raise SourceError(
            f"--source-key was given, and the source has no {SIGNATURE}.",
            hint="Leave it out for a source that is not signed.",
        )
    try:
        envelope = statement.opened(_data(root))
    except TrustError as error:
        raise SourceError(error.message, hint=_AGAIN) from None
    if not public.verifies(envelope.message, envelope.signature):
        raise SourceError(f"{key} did not sign the source: {SIGNATURE} is another key's, or damaged.", hint=_AGAIN)
    return envelope, public


def compared(root: Path, files: Sequence[File], key: str | None = None, *, whole: bool = True) -> list[str]:
    """Hold what was read to what was signed: ``files`` are those that say what the model is, in the folder ``root``.
    Return a sentence of it, none for a source without a model.sig.

    ``whole``: the files beside them are read too, so that none that was signed may be missing. Raises ``SourceError``
    where a file is not what was signed; with a ``key``, which must have signed, also where one was not signed at all.
    """
    if key is None and not there(root / SIGNATURE):
        return []
    found = None if key is None else by(root, key)
    data = _data(root) if found is None else b""
    try:
        envelope, public = (statement.opened(data), None) if found is None else found
        signed = statement.read(envelope.payload).files
    except TrustError as error:
        if key is not None:
            raise SourceError(error.message, hint=_AGAIN) from None
        return [f"The source has a {SIGNATURE}, with which nothing was compared: {error.message}"]
    ours = {**{file.path: file.sha256 for file in files}, **(_texts(root) if whole else {})}
    for name in sorted(signed.keys() & ours.keys()):
        if signed[name] != ours[name]:
            raise SourceError(
                f"{name} of the source is not what was signed: {SIGNATURE} has another digest.", hint=_AGAIN
            )
    if missing := sorted(set(needed.text(needed.seen(signed))) - ours.keys()) if whole else []:
        raise SourceError(f"{missing[0]} was signed, and the source has none.", hint=_AGAIN)
    unsigned = sorted(ours.keys() - signed.keys())
    if unsigned and key is not None:
        raise SourceError(f"{unsigned[0]} of the source was not signed: {SIGNATURE} does not name it.", hint=_AGAIN)
    count = len(ours) - len(unsigned)
    told = (
        f"The source is signed: {SIGNATURE} has the digests of {count} files that were read, {_who(envelope, public)}."
    )
    return [f"{told} It says nothing of {', '.join(unsigned)}." if unsigned else told]


def _who(envelope: Envelope, key: PublicKey | None) -> str:
    if key is not None:
        return f"and the {key.kind} key sha256:{key.fingerprint} made it"
    return "and whose it is was not checked" if envelope.hint else "and the identity in its certificate was not checked"


def _data(root: Path) -> bytes:
    try:
        return read(root / SIGNATURE, MAX_SIGNATURE)
    except TrustError as error:
        raise SourceError(error.message, hint=error.hint) from None


def _texts(folder: Path) -> Mapping[str, str]:
    """Return the sha256 of every file that is read beside the weights, by its path."""
    paths = {path.relative_to(folder).as_posix(): path for path in (*folder.glob("*"), *folder.glob("*/*"))}
    found = {}
    for name in needed.text(needed.seen(paths)):
        if name != SIGNATURE and paths[name].is_file():
            with open(paths[name], "rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
