"""The licence facts of a source: the files that carry its terms, and an identifier for them. It judges no terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = "LicenseRef-unknown"
CARD = "README.md"

_FILES = re.compile(r"(LICEN[SC]E|NOTICE|USE_POLICY|COPYING)([-_.].*)?", re.IGNORECASE)

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
    (r"LLAMA (?P<version>[\d.]*\d) COMMUNITY LICENSE AGREEMENT\b", r"LicenseRef-llama\g<version>"),
)


@dataclass(frozen=True, slots=True)
class Licence:
    """An SPDX identifier or a LicenseRef, and the names of the source's files that carry the terms, sorted."""

    id: str
    files: tuple[str, ...]


def read_licence(folder: Path) -> Licence:
    """Return the licence facts of a folder; the model card's front matter is asked before the licence files."""
    files = tuple(sorted(path.name for path in folder.iterdir() if path.is_file() and _FILES.fullmatch(path.name)))
    return Licence(_from_card(folder / CARD) or _from_titles(folder, files) or UNKNOWN, files)


def _from_card(card: Path) -> str | None:
    """The ``license`` of the card's YAML front matter; where that is "other", its ``license_name``."""
    if not card.is_file():
        return None
    lines = card.read_text("utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if found := re.fullmatch(r"(license|license_name):\s*(.+)", line):
            fields[found[1]] = re.sub(r"\s+#.*", "", found[2]).strip().strip("[]\"'")
    name = fields.get("license", "")
    if name.lower() == "other":
        name = fields.get("license_name", "")
    return _identifier(name)


def _identifier(name: str) -> str | None:
    if name.lower() in ("", "unknown", "other", "null"):
        return None
    # A LicenseRef may have letters, digits, dots and hyphens only.
    return _SPDX.get(name.lower()) or "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")


def _from_titles(folder: Path, files: tuple[str, ...]) -> str | None:
    for name in files:
        start = (folder / name).read_text("utf-8", errors="replace")[:200].lstrip()
        for pattern, identifier in _TITLES:
            if found := re.match(pattern, start, re.IGNORECASE):
                return found.expand(identifier)
    return None
