"""What an engine reaches beside busy programs: its own choice of threads, against every fixed one.

    python benchmarks/neighbours.py smollm2.edgepack 1b.edgepack [--variants onnx-int4_mixed gguf-q4_k_m]
        [--neighbours 0 1 2] [--rounds 5] [--seconds 0.5] [--first 3] [--json neighbours.json]

Every setting of a variant is open at once, and they take turns in rounds, in another order each time: a prompt of one
chunk, then tokens one by one. A neighbour is a process that computes without end, in a session of its own, as another
user's program would be; the adaptive setting has four turns beside it first that are not counted. ``ratio`` is the
median over the rounds of the adaptive setting's time a token over the fastest fixed setting's of the same round, with
the smallest and the largest; which is the fastest, the medians of all rounds decide. ``others`` says how many cores
programs took that are neither: a row with more than 0.1 is marked.

The second table is the first token of a fresh process, from its start, and the part of it after the load.

    python benchmarks/neighbours.py --show edgepack-llama=own.json onnxruntime=onnx.json

puts what --json kept into one table, a line for prefill and decode; of the same row, the last file's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from measure import neighbours

from edgepack.bundle.files import Bundle, open_bundle
from edgepack.device.hardware import detect
from edgepack.device.limits import default_kv_cache
from edgepack.device.neighbours import look
from edgepack.errors import UsageError
from edgepack.measuring.bench import random_tokens
from edgepack.runtime import Options, Session, find

PROMPT = 128
PARTS = ("whole", "step")  # of the time to the first token
ADAPTIVE = "adaptive"
QUIET = 0.1
_PAUSE_S = 0.05  # threads of the setting before have stopped spinning by then


def settings(options: Options) -> dict[str, Options]:
    """Return what is compared: the default, and each fixed choice of threads and of what they do while they wait."""
    found = {ADAPTIVE: options, "1 thread": replace(options, threads=1)}
    if options.threads > 1:
        found |= {
            f"{options.threads} threads, {what}": replace(options, spin=spin)
            for what, spin in (("spinning", True), ("sleeping", False))
        }
    return found


def default_options(bundle: Bundle, variant: str, threads: int) -> Options:
    """Return the options of a plan, without what was tuned."""
    described = bundle.variant(variant)
    offered = find(described.runtime).probe(detect()).kv_caches
    kv_cache = described.kv_cache or default_kv_cache(described.quantization.scheme, offered)
    return Options(context=4 * PROMPT, threads=threads, kv_cache=kv_cache)


def start(bundle: Bundle, variant: str, options: Options) -> Session:
    """Open a variant as the SDK does."""
    runtime = find(bundle.variant(variant).runtime)
    return runtime.open(bundle.variant_path(variant), bundle.manifest.decoder, options)


class Others:
    """The cores that programs take which are neither this one nor its children, from ``__enter__`` to ``__exit__``."""

    def __enter__(self) -> Others:
        self._start = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        busy, own, wall = (end - start for end, start in zip(self._now(), self._start, strict=True))
        self.cores = max(0.0, busy - own) / wall

    def _now(self) -> tuple[float, float, float]:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own = sum(each.ru_utime + each.ru_stime for each in used)
        return look().everyone or 0.0, own, time.perf_counter()


def take(session: Session, ids: Sequence[int], seconds: float) -> tuple[float, float]:
    """Return the wall time of a token in prefill and in decode."""
    time.sleep(_PAUSE_S)
    session.rewind(0)
    began = time.perf_counter()
    session.forward(ids)
    prefilled = time.perf_counter()
    count = 0
    while count < 3 or (time.perf_counter() - prefilled < seconds and session.length < 4 * PROMPT):
        session.forward(ids[count % PROMPT : count % PROMPT + 1])
        count += 1
    return (prefilled - began) / len(ids), (time.perf_counter() - prefilled) / count


def compare(
    sessions: Mapping[str, Session], ids: Sequence[int], counts: Sequence[int], rounds: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of neighbours and each phase."""
    for count in counts:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
        with Others() as others, neighbours(count):
            for _ in range(4):
                take(sessions[ADAPTIVE], ids, seconds)  # it may follow what was before for a second or two
            for _ in range(rounds):
                for name in random.sample(list(sessions), len(sessions)):
                    times[name].append(take(sessions[name], ids, seconds))
        for index, phase in enumerate(("prefill", "decode")):
            found = {name: [each[index] for each in taken] for name, taken in times.items()}
            yield {"neighbours": count, "phase": phase, "others": others.cores} | _row(found)


def _row(found: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    middle = {name: median(times) for name, times in found.items()}
    best = min((name for name in middle if name != ADAPTIVE), key=middle.__getitem__)
    ratios = [own / other for own, other in zip(found[ADAPTIVE], found[best], strict=True)]
    return {"ms": {name: 1e3 * each for name, each in middle.items()}, "best": best} | _spread(ratios)


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"ratio": median(ratios), "least": min(ratios), "most": max(ratios)}


def first(bundle: Bundle, variant: str, setting: str, threads: int, began: float) -> dict[str, float]:
    """Open a setting in this process and return the seconds to its first token: since its start, and after the load."""
    session = start(bundle, variant, settings(default_options(bundle, variant, threads))[setting])
    loaded = time.time()
    session.forward(random_tokens(bundle.manifest.tokenizer.rows, PROMPT))
    now = time.time()
    session.close()
    return {"whole": now - began, "step": now - loaded}


def fresh(bundle: str, variant: str, names: Sequence[str], count: int, rounds: int, threads: int) -> dict[str, Any]:
    """Return a row of the first tokens of fresh processes beside neighbours."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with Others() as others, neighbours(count):
        for _ in range(rounds):
            for name in random.sample(list(names), len(names)):
                command = [sys.executable, __file__, bundle, "--variants", variant, "--threads", str(threads)]
                command += ["--child", name, str(time.time())]
                times[name].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    parts = {part: _row({name: [each[part] for each in taken] for name, taken in times.items()}) for part in PARTS}
    return {"neighbours": count, "others": others.cores} | parts


def measure(asked: argparse.Namespace, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a bundle, printed as they come."""
    bundle = open_bundle(name, verify="sizes")
    for variant in asked.variants:
        if variant not in {each.id for each in bundle.manifest.variants}:
            continue
        sessions: dict[str, Session] = {}
        for setting, options in settings(default_options(bundle, variant, asked.threads)).items():
            try:
                sessions[setting] = start(bundle, variant, options)
            except UsageError as error:
                print(f"{bundle.manifest.name} {variant}, {setting}: {error}", file=sys.stderr)
        ids = random_tokens(bundle.manifest.tokenizer.rows, PROMPT)
        for session in sessions.values():
            take(session, ids, 0.0)  # the first step allocates
        head = {"model": bundle.manifest.name, "variant": variant}
        for row in compare(sessions, ids, asked.neighbours, asked.rounds, asked.seconds):
            print(_line(head | row), flush=True)
            yield head | row
        for session in sessions.values():
            session.close()
        for count in asked.neighbours if asked.first else ():
            row = fresh(name, variant, list(sessions), count, asked.first, asked.threads)
            for part in PARTS:
                print(_line(head | row | row[part] | {"phase": f"first token, {part}"}), flush=True)
            yield head | row


def _line(row: Mapping[str, Any]) -> str:
    fixed = "; ".join(f"{name} {_figure(ms)}" for name, ms in row["ms"].items() if name != ADAPTIVE)
    ratio = f"{row['ratio']:.2f} ({row['least']:.2f}-{row['most']:.2f})"
    others = f"{row['others']:.2f}" + (" (not quiet)" if row["others"] > QUIET else "")
    where = f"| {row['model']} | {row['variant']} | {row['neighbours']} | {row['phase']} "
    return f"{where}| {_figure(row['ms'][ADAPTIVE])} | {fixed} | {ratio} | {others} |"


def show(files: Sequence[str]) -> Iterator[str]:
    """Yield the lines of one table of several runs, each of which is ``ENGINE=FILE``."""
    found: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for engine, _, file in (each.partition("=") for each in files):
        for row in json.loads(Path(file).read_text()):
            if "phase" in row:
                found.setdefault((row["model"], engine, row["neighbours"]), {})[row["phase"]] = row
    phases = "prefill", "decode"
    yield (
        "| model | engine | busy beside it | " + " | ".join(f"{each} | best | worst | ratio" for each in phases) + " |"
    )
    yield "|---|---|--:|" + "--:|--:|--:|--:|" * len(phases)
    for (model, engine, count), rows in found.items():
        cells = []
        for row in (rows[phase] for phase in phases):
            fixed = {name: ms for name, ms in row["ms"].items() if name != ADAPTIVE}
            figures = row["ms"][ADAPTIVE], fixed[row["best"]], max(fixed.values())
            cells.append(" | ".join(map(_figure, figures)))
            cells.append(f"{row['ratio']:.2f} ({row['least']:.2f}-{row['most']:.2f})")
        yield f"| {model} | {engine} | {count} | {' | '.join(cells)} |"


def _figure(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*")
    parser.add_argument("--show", nargs="+", metavar="ENGINE=FILE")
    parser.add_argument("--variants", nargs="+", default=["gguf-q4_k_m", "onnx-int4_mixed"])
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=detect().threads)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of decoding in a round")
    parser.add_argument("--first", type=int, default=0, help="rounds of fresh processes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.show:
        print(*show(asked.show), sep="\n")
        return
    if asked.child:
        setting, began = asked.child
        bundle = open_bundle(asked.bundles[0], verify="sizes")
        print(json.dumps(first(bundle, asked.variants[0], setting, asked.threads, float(began))))
        return
    with Others() as before:
        time.sleep(1.0)
    print(f"{os.cpu_count()} cores, of which others had {before.cores:.2f} before; ms a token, or ms to the first\n")
    print("| model | variant | neighbours | phase | adaptive | fixed | ratio to the best | others |")
    print("|---|---|--:|---|--:|---|--:|--:|", flush=True)
    rows = [row for name in asked.bundles for row in measure(asked, name)]
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
