"""Time to answer beside everybody else: edgepack's engines and its choice, llama.cpp itself, and the other runtimes.

    python benchmarks/make_model.py llama-3.2-1b /tmp/1b
    edgepack build /tmp/1b --target gguf --target onnx --quant q4 --context 8k --out 1b.edgepack
    edgepack engine build
    python benchmarks/peers.py /tmp/1b=1b.edgepack smollm2=smollm2.edgepack \\
        [--llama-bench PATH] [--llama-cpp-python PYTHON] [--neighbours 0 1] [--threads 1 2] [--json peers.json]

Each run is a process of its own (``peers_worker.py``; llama-bench its own), and the contenders take turns, round after
round, so that whatever else the machine does meets all of them. A table for each model, number of threads and number
of neighbours, which are loops that do nothing but count: medians, with the least and the most of the time to answer a
prompt of ``--prompt`` tokens by ``--answer`` ones, computed from the speed of the prompt and of ``--steps`` tokens.
"cold" is the CPU time from the process's start to a first token. A contender that is not installed is left out by name.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from measure import neighbours, run

from edgepack import runtime
from edgepack.device.state import PREFERENCE

WORKER = Path(__file__).with_name("peers_worker.py")


@dataclass(frozen=True, slots=True)
class Contender:
    """A row: its name, the worker's contender (or llama-bench), its interpreter or program, and what it opens."""

    name: str
    worker: str
    program: str
    files: Path
    environment: tuple[tuple[str, str], ...] = ()

    def command(self, threads: int, prompt: int, steps: int) -> list[str]:
        """Return the command line of one run."""
        if self.worker == "llama-bench":
            # Each test at both depths: the prompt's in an empty cache counts, and the answer's after the prompt.
            counts = ["-p", prompt, "-n", steps, "-d", f"0,{prompt}", "-t", threads, "-r", 1, "-o", "json"]
            return [self.program, "-m", str(self.files), *map(str, counts)]
        return [self.program, str(WORKER), self.worker, str(self.files), *map(str, (threads, prompt, steps))]


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took: seconds of the prompt and of a step, CPU seconds to a first token, peak bytes."""

    engine: str
    prefill_s: float
    token_s: float
    cold_cpu_s: float | None
    peak_bytes: int


def measure(contender: Contender, threads: int, prompt: int, steps: int, log: Path) -> Run:
    """Run a contender once. Raises ``RuntimeError`` with its last words where it fails."""
    cost = run(contender.command(threads, prompt, steps), log, dict(contender.environment))
    text = log.read_text(errors="replace")
    if contender.worker != "llama-bench":
        return Run(**json.loads(text.splitlines()[-1]), peak_bytes=cost.peak_bytes)
    tests = json.loads(text[text.index("[\n") : text.rindex("]") + 1])
    seconds = {(test["n_gen"], test["n_depth"]): test["avg_ns"] / 1e9 for test in tests}
    engine = f"llama.cpp {tests[0]['build_commit']}"
    return Run(engine, seconds[0, 0], seconds[steps, prompt] / steps, None, cost.peak_bytes)


def row(name: str, runs: Sequence[Run], prompt: int, answer: int) -> dict[str, object]:
    """Summarise the runs of a contender: rates in tokens a second, times in seconds, memory in bytes."""
    answers = [each.prefill_s + answer * each.token_s for each in runs]
    cold = [each.cold_cpu_s for each in runs if each.cold_cpu_s is not None]
    return {
        "name": name,
        "engine": runs[0].engine,
        "prefill_tps": prompt / median(each.prefill_s for each in runs),
        "decode_tps": 1 / median(each.token_s for each in runs),
        "answer_s": median(answers),
        "least_s": min(answers),
        "most_s": max(answers),
        "cold_cpu_s": median(cold) if cold else None,
        "peak_bytes": max(each.peak_bytes for each in runs),
    }


def show(title: str, rows: Sequence[dict[str, object]]) -> None:
    """Print a table in Markdown, the fastest to answer first."""
    print(f"\n{title}\n")
    print("| | runs on | prefill tok/s | decode tok/s | to answer, s | least, most | cold, CPU s | peak, MB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for each in sorted(rows, key=lambda each: float(str(each["answer_s"]))):
        cold = "" if each["cold_cpu_s"] is None else f"{each['cold_cpu_s']:.2f}"
        print(
            f"| {each['name']} | {each['engine']} | {each['prefill_tps']:.1f} | {each['decode_tps']:.1f} "
            f"| {each['answer_s']:.2f} | {each['least_s']:.2f}, {each['most_s']:.2f} | {cold} "
            f"| {int(str(each['peak_bytes'])) / 1e6:.0f} |",
            flush=True,
        )


def contenders(asked: argparse.Namespace, checkpoint: Path, bundle: Path) -> list[Contender]:
    """Return who takes part with a model; say on stderr who cannot."""
    here = sys.executable
    found = [
        Contender("edgepack, its choice", "edgepack", here, bundle),
        Contender("edgepack onnx", "edgepack onnx", here, bundle),
    ]
    gguf_engine = runtime.find("gguf")
    for engine in gguf_engine.engines() if isinstance(gguf_engine, runtime.Engines) else ():
        if engine.devices:
            preference = (PREFERENCE + "GGUF", engine.name)
            found.append(Contender(f"edgepack gguf, {engine.name}", "edgepack gguf", here, bundle, (preference,)))
    gguf, onnx = (next(bundle.glob(f"variants/{kind}-*"), None) for kind in ("gguf", "onnx"))
    if gguf and asked.llama_bench:
        found.append(Contender("llama-bench", "llama-bench", asked.llama_bench, gguf / "model.gguf"))
    if gguf and asked.llama_cpp_python:
        found.append(Contender("llama-cpp-python", "llama-cpp-python", asked.llama_cpp_python, gguf / "model.gguf"))
    if onnx:
        found.append(Contender("onnxruntime-genai", "onnxruntime-genai", here, onnx))
    found.append(Contender("transformers", "transformers", here, checkpoint))
    return found


def main() -> None:
    """Print a table for each model, number of neighbours and of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="CHECKPOINT=BUNDLE")
    parser.add_argument("--llama-bench", help="llama.cpp's own program")
    parser.add_argument("--llama-cpp-python", help="an interpreter whose environment has it")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"Load before: {load:.2f} on {os.cpu_count()} cores; {asked.rounds} rounds.", flush=True)
    report = []
    with tempfile.TemporaryDirectory() as scratch:
        for checkpoint, bundle in (map(Path, each.split("=")) for each in asked.models):
            everybody = contenders(asked, checkpoint, bundle)
            for busy in asked.neighbours:
                for threads in asked.threads:
                    rows = _rows(everybody, busy, threads, asked, Path(scratch) / "log")
                    title = f"{bundle.stem}, threads: {threads}, busy neighbours: {busy}"
                    show(title, rows)
                    report.append({"title": title, "load_before": load, "rows": rows})
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2) + "\n")


def _rows(
    everybody: Sequence[Contender], busy: int, threads: int, asked: argparse.Namespace, log: Path
) -> list[dict[str, object]]:
    runs: dict[str, list[Run]] = {each.name: [] for each in everybody}
    failed: set[str] = set()
    with neighbours(busy, own_session=False):
        for turn in range(asked.rounds):
            # Another goes first each time: what a run leaves behind, heat too, is not always the same one's to bear.
            first = turn * len(everybody) // asked.rounds
            for each in [*everybody[first:], *everybody[:first]]:
                if each.name in failed:
                    continue
                try:
                    runs[each.name].append(measure(each, threads, asked.prompt, asked.steps, log))
                except RuntimeError as error:
                    failed.add(each.name)
                    print(f"{each.name} is left out: {str(error).splitlines()[-1]}", file=sys.stderr)
    return [row(name, kept, asked.prompt, asked.answer) for name, kept in runs.items() if kept]


if __name__ == "__main__":
    main()
