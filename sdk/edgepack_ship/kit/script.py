"""What a kit says for itself: its script, its units of systemd and its page, filled in for one bundle."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

from edgepack_ship.kit.platforms import Platform
from edgepack_ship.kit.wheelhouse import sha256_of

SCRIPTS: Final = ("install.sh", "device.sh", "point.py", "check.py", "README.txt")
_PLACE = re.compile(r"@\{([a-z]+)\}")


def filled(name: str, values: Mapping[str, str]) -> str:
    """Return a file of the kit with its ``@{names}`` filled in. Raises ``KeyError`` for a name without a value."""
    text = files("edgepack_ship.kit").joinpath("files", name).read_text("utf-8")
    return _PLACE.sub(lambda found: values[found[1]], text)


def write(kit: Path, name: str, id: str, platform: Platform, python: str, locked: str) -> None:
    """Write into a kit what is filled in for its bundle, what the script reads, and last the sums of all files."""
    values = {"name": name, "id": id, "platform": platform.name, "python": python}
    (kit / "lock.txt").write_text(locked)
    facts = {
        "KIT_NAME": name,
        "KIT_ID": id,
        "KIT_MACHINE": platform.machine,
        "KIT_PYTHON": python,
        "KIT_LOCK": hashlib.sha256(locked.encode()).hexdigest()[:16],
    }
    (kit / "kit.env").write_text("".join(f"{key}={shlex.quote(value)}\n" for key, value in facts.items()))
    for file in SCRIPTS:
        (kit / file).write_text(filled(file, values))
    (kit / f"edgepack-{name}.service").write_text(filled("edgepack.service", values))
    (kit / "install.sh").chmod(0o755)
    listed = sorted(path for path in kit.rglob("*") if path.is_file())
    sums = [f"{sha256_of(path)}  {path.relative_to(kit).as_posix()}\n" for path in listed]
    (kit / "SHA256SUMS").write_text("".join(sums))
