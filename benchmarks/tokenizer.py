"""What a bundle's compiled tokenizer saves over the tokenizers library with the whole tokenizer.json.

    python benchmarks/tokenizer.py PATH/tokenizer.json [...]

Each is loaded in a process of its own, from a file, and encodes the repository's README: CPU seconds of the load, the
memory that it leaves resident, the longest time in which no other thread of Python ran (a load holds the interpreter
while the library reads), and CPU milliseconds for the text at first and again. The ids are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepack.text.compiling import compile_tokenizer
from edgepack.text.tables import FILE, encode

TEXT = Path(__file__).parent.parent / "README.md"
BEAT_S = 0.001


def _library(path: Path) -> Callable[[str], list[int]]:
    import tokenizers

    native = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    native.encode_special_tokens = True
    return lambda text: list(native.encode(text, add_special_tokens=False).ids)


def _compiled(path: Path) -> Callable[[str], list[int]]:
    from edgepack.text.tables import decode
    from edgepack.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(decode(path.read_bytes()), None, False)
    return lambda text: tokenizer.encode(text)


def _resident() -> int:
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(words[1]) << 10 for words in fields if words[0] == "VmRSS:")


def _beat(gaps: list[float], done: threading.Event) -> None:
    last = time.perf_counter()
    while not done.wait(BEAT_S):
        last, before = time.perf_counter(), last
        gaps.append(last - before)


def _measure(kind: str, path: Path) -> None:
    if kind == "library":
        import tokenizers  # noqa: F401  # its import is no part of a load

    text, gaps, done = TEXT.read_text(), [0.0], threading.Event()
    beat = threading.Thread(target=_beat, args=(gaps, done))
    beat.start()
    before, start = _resident(), time.process_time()
    encoded = {"library": _library, "compiled": _compiled}[kind](path)
    figures = {"load_s": time.process_time() - start, "resident": _resident() - before}
    time.sleep(10 * BEAT_S)
    done.set()
    beat.join()
    for name in ("first_ms", "again_ms"):
        start = time.process_time()
        ids = encoded(text)
        figures[name] = 1000 * (time.process_time() - start)
    print(json.dumps(figures | {"gap_ms": 1000 * max(gaps), "ids": ids}))


def main() -> None:
    """Print a row for each way of each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--measure", choices=("library", "compiled"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        _measure(asked.measure, asked.files[0])
        return
    print(f"{'tokenizer':<16}{'':<10}{'load s':>8}{'MiB':>8}{'gap ms':>8}{'tokens':>8}{'first ms':>10}{'again ms':>10}")
    with tempfile.TemporaryDirectory() as scratch:
        for path in asked.files:
            compiled = Path(scratch) / FILE
            compiled.write_bytes(encode(compile_tokenizer(path.read_bytes())))
            rows = {"library": _row("library", path), "compiled": _row("compiled", compiled)}
            if rows["library"]["ids"] != rows["compiled"]["ids"]:
                raise SystemExit(f"{path}: the ids differ.")
            for kind, row in rows.items():
                figures = f"{row['load_s']:8.3f}{row['resident'] / 2**20:8.1f}{row['gap_ms']:8.1f}{len(row['ids']):8}"
                print(f"{path.parent.name:<16}{kind:<10}{figures}{row['first_ms']:10.1f}{row['again_ms']:10.1f}")


def _row(kind: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, str(path), "--measure", kind]
    row: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return row


if __name__ == "__main__":
    main()
