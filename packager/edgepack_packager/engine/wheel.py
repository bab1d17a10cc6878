"""A wheel with an engine in it: the same files give the same bytes."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

DISTRIBUTION: Final = "edgepack-llama"
PACKAGE: Final = "edgepack_llama"
FACTS: Final = "build.json"

_EPOCH: Final = 1980, 1, 1, 0, 0, 0  # the first day that a zip file knows


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """``build.json``: what an engine was compiled from, with what and for what."""

    format: int = 1
    source: str
    """The package on the index with its version, and ``sha256`` its digest."""
    sha256: str
    llama: str
    ggml: str
    processor: str
    """The name that was asked for, and ``what`` processor that is: for ``this``, the maker's name of it."""
    what: str
    system: str
    machine: str
    accelerators: tuple[str, ...]
    compiler: str
    settings: Mapping[str, str]
    """What CMake was given."""

    @property
    def version(self) -> str:
        """Return the wheel's version: that of the sources, the processor, and eight digits of these facts."""
        digest = hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()
        base = self.source.rpartition(" ")[2]
        return f"{base}+{self.processor.replace('-', '.')}.g{digest[:8]}"


def file_name(facts: Facts, platform: str) -> str:
    """Return the name of the wheel's file."""
    return f"{PACKAGE}-{facts.version}-py3-none-{platform}.whl"


def write(folder: Path, facts: Facts, platform: str, libraries: Mapping[str, Path], licence: Path) -> Path:
    """Write the wheel of an engine into a folder and return its path.

    ``libraries`` are shared objects by the names that they have in the wheel's ``lib`` folder.
    """
    info = f"{PACKAGE}-{facts.version}.dist-info"
    summary = f"llama.cpp {facts.llama}, compiled for {facts.processor} by edgepack engine build"
    files = {
        f"{PACKAGE}/__init__.py": b'"""llama.cpp for edgepack: shared libraries that its gguf runtime loads."""\n',
        f"{PACKAGE}/{FACTS}": msgspec.json.format(msgspec.json.encode(facts, order="deterministic"), indent=2) + b"\n",
        **{f"{PACKAGE}/lib/{name}": path.read_bytes() for name, path in sorted(libraries.items())},
        f"{info}/METADATA": (
            f"Metadata-Version: 2.4\nName: {DISTRIBUTION}\nVersion: {facts.version}\nSummary: {summary}\n"
            "License-Expression: MIT\nLicense-File: LICENSE\nRequires-Python: >=3.11\n"
        ).encode(),
        f"{info}/WHEEL": (
            f"Wheel-Version: 1.0\nGenerator: edgepack\nRoot-Is-Purelib: false\nTag: py3-none-{platform}\n"
        ).encode(),
        f"{info}/licenses/LICENSE": licence.read_bytes(),
    }
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    path = folder / file_name(facts, platform)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if "/lib/" in name else 0o644) << 16
            archive.writestr(entry, data)
    return path


def _record(files: Mapping[str, bytes], own: str) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, data in files.items():
        digest = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(data)))
    rows.writerow((own, "", ""))
    return text.getvalue().encode()
