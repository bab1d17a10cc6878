"""The licence of a source: what its files say, whether a build may use it, and what the bundle carries of it.

What a licence asks for is data of ``licence.terms``; what a bundle says of it is ``manifest.License``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile

from edgepack.bundle.manifest import License, Obligation
from edgepack.errors import LicenceError, SourceError, UsageError
from edgepack_packager.licence.terms import TERMS, UNKNOWN, Terms, standard_text, terms_of

CARD = "README.md"
TEXT = "LICENSE"
NOTICE = "NOTICE"

_FILES = re.compile(r"(LICEN[SC]E|NOTICE|USE_POLICY|COPYING)([-_.].*)?", re.IGNORECASE)
_TEXTS = re.compile(r"(LICEN[SC]E|COPYING)", re.IGNORECASE)

_MOST_BYTES = 16 * 1024 * 1024

# The hub's identifiers that are SPDX licences but for the case of their letters.
_SPDX: Mapping[str, str] = {
    spdx.lower(): spdx
    for spdx in (
        *(
            "MIT",
            "MIT-0",
            "Apache-2.0",
            "BSD-2-Clause",
            "BSD-3-Clause",
            "BSD-3-Clause-Clear",
            "ISC",
            "Zlib",
            "Unlicense",
        ),
        *("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0"),
        *("GPL-2.0", "GPL-3.0", "LGPL-2.1", "LGPL-3.0", "AGPL-3.0", "MPL-2.0", "EPL-2.0", "EUPL-1.2", "WTFPL"),
        *(
            "AFL-3.0",
            "Artistic-2.0",
            "BSL-1.0",
            "ECL-2.0",
            "MS-PL",
            "NCSA",
            "OFL-1.1",
            "PostgreSQL",
            "CDLA-Permissive-2.0",
        ),
    )
}

# How the texts of licences begin that are common beside models whose card is missing.
_TITLES: tuple[tuple[str, str], ...] = (
    (r"MIT License\b", "MIT"),
    (r"Apache License\s+Version 2\.0\b", "Apache-2.0"),
    (r"(META )?LLAMA (?P<version>[\d.]*\d) COMMUNITY LICENSE AGREEMENT\b", r"LicenseRef-llama\g<version>"),
    (r"Gemma Terms of Use\b", "LicenseRef-gemma"),
    (r"TENCENT HUNYUAN COMMUNITY LICENSE AGREEMENT\b", "LicenseRef-tencent-hunyuan-community"),
)


@dataclass(frozen=True, slots=True)
class Licence:
    """An SPDX identifier or a LicenseRef, and the names of the source's files that carry the terms, sorted.

    ``link`` is where the card says that the text is; ``gated`` says that the source's host asks for agreement first.
    ``given`` is the text in UTF-8 where the builder gave it, and the source has none.
    """

    id: str
    files: tuple[str, ...]
    link: str | None = None
    gated: bool = False
    given: bytes | None = None

    @property
    def asks(self) -> bool:
        """Whether it is an agreement, which a build must be told to accept; one's own text is none to its author."""
        own = self.given is not None and self.id not in TERMS
        return terms_of(self.id).asks and not own

    @property
    def url(self) -> str | None:
        """The address of the text, where one is known."""
        return terms_of(self.id).url or self.link

    @property
    def texts(self) -> tuple[str, ...]:
        """The files that carry the text itself, not a notice or a policy."""
        return tuple(name for name in self.files if _TEXTS.match(name))


def read_licence(folder: Path) -> Licence:
    """Return the licence facts of a folder; the model card's front matter is asked before the licence files.

    Raises ``SourceError`` for one of them that is too long to be read by anybody.
    """
    files = tuple(sorted(path.name for path in folder.iterdir() if path.is_file() and _FILES.fullmatch(path.name)))
    for path in (folder / name for name in (*files, CARD) if (folder / name).is_file()):
        if path.stat().st_size > _MOST_BYTES:
            raise SourceError(f"{path} has {path.stat().st_size} bytes, more than any text.", hint="Fetch it again.")
    card = _front_matter(folder / CARD)
    name = card.get("license", "")
    if name.lower() == "other":
        name = card.get("license_name", "")
    link = card.get("license_link", "")
    return Licence(
        id=_identifier(name) or _from_titles(folder, files) or UNKNOWN,
        files=files,
        link=link if link.startswith("https://") else None,
        gated=any(key.startswith("extra_gated_") for key in card),
    )


def given(licence: Licence, path: Path, name: str) -> Licence:
    """Return the licence of a source without a text, with that of a file, for a bundle called ``name``.

    It is what its title says, else what the card says, else a LicenseRef with the bundle's name. Raises ``UsageError``
    where the source has a text, or says that it is under another licence, ``SourceError`` for a file that is no text.
    """
    if licence.texts:
        raise UsageError(
            f"--licence was given, and the source has its licence in {licence.texts[0]}.", hint="Leave it out."
        )
    text = _text(path)
    found = _from_title(text)
    if found and licence.id not in (UNKNOWN, found):
        raise UsageError(
            f"{path} is the text of {found}, and the model's card says {licence.id}.",
            hint=f"Correct one of them: {CARD} of the source, or --licence.",
        )
    own = licence.id if licence.id != UNKNOWN else f"LicenseRef-{re.sub(r'[^A-Za-z0-9.-]+', '-', name).strip('-')}"
    return replace(licence, id=found or own, given=text.encode())


def check(licence: Licence, model: str, name: str, accepted: bool) -> None:
    """Raise ``LicenceError`` where the licence of ``model`` asks for what a build as ``name`` was not given.

    It needs the identifier alone, so it can be asked before anything is downloaded.
    """
    terms = terms_of(licence.id)
    command = f"edgepack build {shlex.quote(model)}"
    if licence.asks and not accepted:
        place = licence.url or ", ".join(licence.texts) or "see the model's page"
        raise LicenceError(
            f"{model} is under the {terms.name} ({place}), which must be accepted.",
            hint=f"Read it, and if you accept it: {command} --accept-licence",
        )
    if terms.prefix and not _begins_with(name, terms.prefix):
        better = shlex.quote(f"{terms.prefix.replace(' ', '-')}-{name}")
        raise LicenceError(
            f"The {terms.name} wants the name of a model to begin with {terms.prefix!r}, unlike {name!r}.",
            hint=f"Name the bundle: {command}{' --accept-licence' if licence.asks else ''} --name {better}",
        )


def carry(licence: Licence, folder: Path, bundle: Path, origin: str, accepted: bool) -> License:
    """Copy the card and all files of a folder's licence into a bundle, add what is missing, and return the manifest's
    record.

    Missing may be the text, where it was given or is a standard one, and a NOTICE with the sentence that the licence
    wants and a statement of the change; ``origin`` names in it what was converted. A NOTICE of the source is kept and
    continued.
    """
    terms = terms_of(licence.id)
    files = set(licence.files)
    for name in [*files, CARD]:
        if (folder / name).is_file():
            copyfile(folder / name, bundle / name)
    text = None if licence.texts else licence.given or standard_text(licence.id)
    if text is not None:
        (bundle / TEXT).write_bytes(text)
        files.add(TEXT)
    if terms.notice or terms.changes:
        files.add(_write_notice(bundle, licence, terms, origin))
    return License(
        id=licence.id,
        name=terms.name,
        url=licence.url,
        files=sorted(files),
        notice=terms.notice,
        obligations=list(_obligations(terms, licence, lacks_text=not licence.texts and text is None)),
        accepted=licence.asks and accepted,
        gated=licence.gated,
    )


def _write_notice(bundle: Path, licence: Licence, terms: Terms, origin: str) -> str:
    """Write or continue the bundle's NOTICE and return its name."""
    name = next((name for name in licence.files if name.upper().startswith(NOTICE)), NOTICE)
    before = (bundle / name).read_text("utf-8", errors="replace") if name in licence.files else ""
    lines = [f"The files below variants/ were changed: edgepack converted them from {origin}."]
    if terms.notice and " ".join(terms.notice.split()) not in " ".join(before.split()):
        lines.insert(0, terms.notice)
    with open(bundle / name, "ab") as file:
        file.write(("\n" * bool(before) + "\n".join(lines) + "\n").encode())
    return name


def _obligations(terms: Terms, licence: Licence, lacks_text: bool) -> Iterator[Obligation]:
    if terms.display:
        yield Obligation(kind="display", text=terms.display)
    if terms.prefix:
        yield Obligation(kind="name", text=terms.prefix)
    if terms.limit:
        yield Obligation(kind="limit", text=terms.limit)
    if terms.policy:
        yield Obligation(kind="policy", text="Use must follow the use policy.", url=terms.policy)
    if lacks_text and licence.id != UNKNOWN:
        yield Obligation(kind="text", text="The source has no text of the licence: pass it on.", url=licence.url)


def _begins_with(name: str, prefix: str) -> bool:
    """Compare letters and digits; Meta's own "Meta-Llama-3" counts as Llama."""
    plain, wanted = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (name, prefix))
    return plain.removeprefix("meta").startswith(wanted)


def _front_matter(card: Path) -> dict[str, str]:
    """Return the top-level fields of the card's YAML front matter that fit in a line; others are empty."""
    if not card.is_file():
        return {}
    lines = card.read_text("utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if found := re.fullmatch(r"(\w+):(.*)", line):
            fields[found[1]] = re.sub(r"\s+#.*", "", found[2]).strip().strip("[]\"'")
    return fields


def _identifier(name: str) -> str | None:
    if name.lower() in ("", "unknown", "other", "null"):
        return None
    # A LicenseRef may have letters, digits, dots and hyphens only.
    return _SPDX.get(name.lower()) or "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")


def _from_titles(folder: Path, files: tuple[str, ...]) -> str | None:
    texts = ((folder / name).read_text("utf-8", errors="replace") for name in files)
    return next(filter(None, map(_from_title, texts)), None)


def _from_title(text: str) -> str | None:
    start = text[:200].lstrip()
    for pattern, identifier in _TITLES:
        if found := re.match(pattern, start, re.IGNORECASE):
            return found.expand(identifier)
    return None


def _text(path: Path) -> str:
    """Return the text of a licence's file. Raises ``SourceError`` for one that nobody can read."""
    try:
        if not path.is_file():
            raise SourceError(f"{path} is no file.", hint="Give --licence the file with the text of the licence.")
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is no text in UTF-8: see byte {error.start}.", hint="Save it as UTF-8.") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.", hint="Check its path and its rights.") from None
    if not text.strip() or len(data) > _MOST_BYTES:
        what = "more bytes than any text" if text.strip() else "no text"
        raise SourceError(f"{path} has {what}.", hint="Give --licence the file with the text of the licence.")
    return text
