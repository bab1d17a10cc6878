"""What it costs to install a bundle on a kiosk, to update it and to go back, beside the tools that people take for it.

    edgepack build smollm2-135m -q q4 --unproven --sequence 1 --out old
    edgepack build smollm2-135m -q q4 --unproven --sequence 2 --adapter ADAPTER --out new
    python benchmarks/shipping.py old new [--variant gguf-q4_k_m] [--scratch FOLDER] [--runs 3] [--table]

``edgepack`` installs the old bundle from one packed file, updates it by a difference, and rolls back. ``rsync`` copies
folders as releases are usually made: each beside the one before, with hard links to what did not change, and a symbolic
link that is replaced; it gets the whole new bundle, as on a stick, and compares sizes and times alone. Each row is the
median of the runs, in which the tools take turns.

bytes: what has to be brought to the device. written: what the device's disk holds more afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from measure import Cost, folder_bytes, run

EDGEPACK = (sys.executable, "-m", "edgepack")


@dataclass(frozen=True)
class Row:
    """A step of a tool: commands that are typed, bytes that are brought, bytes that the disk holds more, and the cost:
    CPU seconds, wall seconds and the peak of memory in MiB."""

    tool: str
    step: str
    commands: int
    bytes: int
    written: int
    cpu_s: float
    wall_s: float
    peak_mib: float
    checked: str


Step = Callable[[], tuple[int, int, Sequence[Cost]]]
"""Does a step and returns how many commands it took, the bytes that were brought, and what each command cost."""


class Edgepack:
    """The store of a device, in a folder of its own."""

    checked = "every sha256"

    def __init__(self, place: Path, old: Path, new: Path, variant: str) -> None:
        self.place, self._log = place / "store", place / "log"
        self._packed, self._delta = place / "old.edgepack.tar", place / "new.edgepack-delta"
        parts = [place / "old.edgepack", place / "new.edgepack"]
        for whole, part in zip((old, new), parts, strict=True):
            run([*EDGEPACK, "split", str(whole), "--variant", variant, "-o", str(part)], self._log)
        run([*EDGEPACK, "pack", str(parts[0]), "-o", str(self._packed)], self._log)
        run([*EDGEPACK, "diff", str(parts[0]), str(parts[1]), "-o", str(self._delta)], self._log)

    def install(self) -> tuple[int, int, list[Cost]]:
        """Install the packed bundle."""
        return 1, self._packed.stat().st_size, [self._run("install", str(self._packed), "--name", "kiosk")]

    def update(self) -> tuple[int, int, list[Cost]]:
        """Install the difference."""
        return 1, self._delta.stat().st_size, [self._run("install", str(self._delta), "--name", "kiosk")]

    def rollback(self) -> tuple[int, int, list[Cost]]:
        """Go back."""
        return 1, 0, [self._run("rollback", "kiosk")]

    def _run(self, *words: str) -> Cost:
        return run([*EDGEPACK, *words, "--store", str(self.place)], self._log)


class Rsync:
    """Releases beside each other, and a link to the one in use."""

    checked = "sizes and times"

    def __init__(self, place: Path, old: Path, new: Path, variant: str) -> None:
        self.place, self._log = place / "releases", place / "log"
        self._old, self._new = place / "old.edgepack", place / "new.edgepack"
        self.place.mkdir()

    def install(self) -> tuple[int, int, list[Cost]]:
        """Copy the folder, and link to it."""
        copy = run(["rsync", "-a", f"{self._old}/", str(self.place / "1")], self._log)
        return 2, folder_bytes(self._old), [copy, self._link("1")]

    def update(self) -> tuple[int, int, list[Cost]]:
        """Copy what differs beside it, and replace the link."""
        words = ["rsync", "-a", "--checksum", "--link-dest=../1", f"{self._new}/", str(self.place / "2")]
        return 3, folder_bytes(self._new), [run(words, self._log), self._link("2")]

    def rollback(self) -> tuple[int, int, list[Cost]]:
        """Replace the link."""
        return 2, 0, [self._link("1")]

    def _link(self, release: str) -> Cost:
        current = self.place / "current"
        link = run(["ln", "-sfn", release, str(current) + ".new"], self._log)
        os.replace(str(current) + ".new", current)
        return link


def disk_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder, each once however many names it has."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            found[status.st_ino] = status.st_size
    return sum(found.values())


def measured(tool: str, made: Edgepack | Rsync) -> list[Row]:
    """Return the steps of a tool on a fresh device."""
    rows = []
    for name, step in {"install": made.install, "update": made.update, "rollback": made.rollback}.items():
        before = disk_bytes(made.place)
        commands, brought, costs = step()
        rows.append(
            Row(
                tool,
                name,
                commands,
                brought,
                disk_bytes(made.place) - before,
                sum(each.cpu_s for each in costs),
                sum(each.wall_s for each in costs),
                max(each.peak_bytes for each in costs) / 2**20,
                made.checked,
            )
        )
    return rows


def middle(rows: Sequence[Row]) -> Row:
    """Return the medians of the same step in several runs."""
    return Row(
        rows[0].tool,
        rows[0].step,
        rows[0].commands,
        rows[0].bytes,
        rows[0].written,
        *(median(getattr(row, name) for row in rows) for name in ("cpu_s", "wall_s", "peak_mib")),
        rows[0].checked,
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--variant", default="gguf-q4_k_m")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    runs: list[list[Row]] = []
    for _ in range(asked.runs):
        scratch = Path(tempfile.mkdtemp(prefix="shipping.", dir=asked.scratch))
        try:
            rows = measured("edgepack", Edgepack(scratch, asked.old, asked.new, asked.variant))
            if shutil.which("rsync"):
                rows += measured("rsync and a link", Rsync(scratch, asked.old, asked.new, asked.variant))
            runs.append(rows)
        finally:
            shutil.rmtree(scratch)
    found = [middle(same) for same in zip(*runs, strict=True)]
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    print("| tool | step | commands | MB brought | MB written | CPU s | peak MiB | checked |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for row in found:
        sizes = f"{row.bytes / 1e6:.1f} | {row.written / 1e6:.1f}"
        cost = f"{row.cpu_s:.2f} | {row.peak_mib:.0f}"
        print(f"| {row.tool} | {row.step} | {row.commands} | {sizes} | {cost} | {row.checked} |")


if __name__ == "__main__":
    main()
