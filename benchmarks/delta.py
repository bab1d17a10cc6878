"""What an update by a difference costs, beside other tools on the same pairs of bundles.

    python benchmarks/delta.py --prepare SMOLLM2 made            (its folder: writes made/adapter and made/template)
    edgepack build SMOLLM2 -q q4 --unproven --name smollm2 --out old
    edgepack build SMOLLM2 -q q4 --unproven --name smollm2 --adapter made/adapter --out merged
    edgepack build made/template -q q4 --unproven --name smollm2 --out template
    python benchmarks/delta.py "a LoRA of two projections, q4=old:merged" [--tools rsync xdelta3] [--json delta.json]
    python benchmarks/delta.py --large 5

Each tool makes what leads from the old folder to the new one, and applies it to a copy of the old; the result is
compared. ``rsync`` writes a batch, ``xdelta3`` and ``bsdiff`` get both bundles as one tar each; bsdiff holds 8 times
the bytes and takes minutes. CPU seconds and the peak of memory are those of the tool's process. ``--large`` makes a
bundle of so many GiB, mostly of zeros, and another whose payload has moved by 32 bytes, and takes edgepack alone.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EDGEPACK = (sys.executable, "-m", "edgepack")


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a process, and the most MiB that it held."""

    cpu: float
    peak: float


@dataclass(frozen=True)
class Row:
    """One tool on one pair: the bytes to transfer, those of the new bundle, and the cost of both ends."""

    pair: str
    tool: str
    bytes: int
    whole: int
    make: Cost
    apply: Cost


def run(*command: str | Path, stdin: Path | None = None) -> Cost:
    """Run a program to its end. A failure ends the benchmark."""
    with open(stdin or os.devnull, "rb") as given:
        process = subprocess.Popen([str(word) for word in command], stdin=given, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{command[0]} ended with {code}.")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20))


def with_edgepack(old: Path, new: Path, within: Path) -> tuple[int, Cost, Cost]:
    delta, out = within / "x.edgepack-delta", within / "out"
    make = run(*EDGEPACK, "diff", old, new, "-o", delta, "--json")
    apply = run(*EDGEPACK, "patch", old, delta, "-o", out, "--json")
    check(new, out)
    return delta.stat().st_size, make, apply


def with_rsync(old: Path, new: Path, within: Path) -> tuple[int, Cost, Cost]:
    batch, out = within / "batch", within / "out"
    shutil.copytree(old, out)
    how = ("rsync", "-a", "-I", "--delete", "--no-whole-file", "-z")
    make = run(*how, f"--only-write-batch={batch}", f"{new}/", f"{out}/")
    apply = run(*how, f"--read-batch={batch}", f"{out}/")
    check(new, out)
    return batch.stat().st_size, make, apply


def with_xdelta3(old: Path, new: Path, within: Path) -> tuple[int, Cost, Cost]:
    before, after, made = *tars(old, new, within), within / "out.tar"
    window = 1 << (before.stat().st_size - 1).bit_length()
    make = run("xdelta3", "-e", "-B", str(min(window, 1 << 31)), "-s", before, after, within / "patch")
    apply = run("xdelta3", "-d", "-B", str(min(window, 1 << 31)), "-s", before, within / "patch", made)
    assert filecmp.cmp(after, made, shallow=False)
    return (within / "patch").stat().st_size, make, apply


def with_bsdiff(old: Path, new: Path, within: Path) -> tuple[int, Cost, Cost]:
    before, after, made = *tars(old, new, within), within / "out.tar"
    make = run("bsdiff", before, after, within / "patch")
    apply = run("bspatch", before, made, within / "patch")
    assert filecmp.cmp(after, made, shallow=False)
    return (within / "patch").stat().st_size, make, apply


TOOLS: dict[str, Callable[[Path, Path, Path], tuple[int, Cost, Cost]]] = {
    "edgepack": with_edgepack,
    "rsync": with_rsync,
    "xdelta3": with_xdelta3,
    "bsdiff": with_bsdiff,
}


def tars(old: Path, new: Path, within: Path) -> tuple[Path, Path]:
    """Return both bundles as tars with the same order and no times."""
    made = []
    for name, folder in (("old.tar", old), ("new.tar", new)):
        made.append(within / name)
        run("tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-cf", made[-1], "-C", folder, ".")
    return made[0], made[1]


def check(new: Path, out: Path) -> None:
    """Raise ``AssertionError`` where a folder is not the new bundle."""
    files = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
    assert files == sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert all(filecmp.cmp(new / name, out / name, shallow=False) for name in files)


def prepare(model: Path, out: Path) -> None:
    """Write a LoRA of rank 8 for two projections of SmolLM2, and the model's folder with another system prompt."""
    sys.path.insert(0, str(ROOT / "tests"))
    import lora

    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in (14, 15)]
    tensors = {name: 0.3 * each for module in modules for name, each in lora.pair(module, 576, 576, rank=8).items()}
    lora.write_peft(out / "adapter", tensors, {"r": 8, "lora_alpha": 16})
    shutil.copytree(model, out / "template")
    place = out / "template" / "tokenizer_config.json"
    before = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    after = (
        "You are the guide of this museum. Answer in two sentences, and say in which room one finds what you speak of."
    )
    text = place.read_text()
    assert before in text
    place.write_text(text.replace(before, after))


def large(gigabytes: int, within: Path) -> None:
    """Write a bundle whose payload is mostly a hole, and another in which all of it lies 32 bytes further on."""
    sys.path.insert(0, str(ROOT / "tests"))
    import small_bundle

    for name, before in (("old", b""), ("new", bytes(range(32)))):
        folder = small_bundle.write(within / name, [small_bundle.variant("fake-q4")])
        place = folder / "variants" / "fake-q4" / "model.bin"
        with open(place, "wb") as file:
            file.write(before)
            for number in range(gigabytes * 16):
                file.seek(len(before) + (number << 26))
                file.write(hashlib.shake_128(number.to_bytes(4, "little")).digest(1 << 20))
            file.truncate(len(before) + (gigabytes << 30))
        with open(place, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        plain = json.loads((folder / "manifest.json").read_bytes())
        plain["variants"][0]["files"] = [{"path": "model.bin", "size": place.stat().st_size, "sha256": digest}]
        (folder / "manifest.json").write_text(json.dumps(plain))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", metavar="NAME=OLD:NEW")
    parser.add_argument("--tools", nargs="*", default=[], choices=[name for name in TOOLS if name != "edgepack"])
    parser.add_argument("--large", type=int, metavar="GIB")
    parser.add_argument("--prepare", type=Path, nargs=2, metavar=("SMOLLM2", "FOLDER"))
    parser.add_argument("--within", type=Path, help="the folder for what is made on the way")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(words)
    rows = []
    if given.prepare:
        prepare(*given.prepare)
        return

    def measure(pair: str, old: Path, new: Path, tools: Sequence[str]) -> None:
        whole = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
        for tool in tools:
            with tempfile.TemporaryDirectory(dir=given.within) as within:
                size, make, apply = TOOLS[tool](old, new, Path(within))
            rows.append(Row(pair, tool, size, whole, make, apply))

    for each in given.pairs:
        pair, _, folders = each.rpartition("=")
        old, _, new = folders.partition(":")
        measure(pair, Path(old).resolve(), Path(new).resolve(), ["edgepack", *given.tools])
    if given.large:
        with tempfile.TemporaryDirectory(dir=given.within) as within:
            # In a process of its own: what a program starts has held, for the system, as much as that program did.
            made = get_context("spawn").Process(target=large, args=(given.large, Path(within)))
            made.start()
            made.join()
            measure(f"{given.large} GiB, moved by 32 bytes", Path(within, "old"), Path(within, "new"), ["edgepack"])
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    print(table(rows))


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table of Markdown."""
    lines = [
        "| what changed | with | to transfer | of the whole | making: CPU s, MiB | applying: CPU s, MiB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        costs = " | ".join(f"{each.cpu:.1f}, {each.peak:.0f}" for each in (row.make, row.apply))
        lines.append(
            f"| {row.pair} | {row.tool} | {row.bytes / 1000:,.0f} kB | {row.bytes / row.whole:.3%} | {costs} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
