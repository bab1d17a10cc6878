"""What packing a model costs: edgepack's writers and its whole build, against each format's own converter.

    python benchmarks/make_model.py llama-3.2-1b /tmp/1b
    python benchmarks/pack.py /tmp/1b --scratch /tmp/pack --proof --peers mlx-lm genai --json pack.json

Each job is a process of its own; a peer runs in a virtual environment of its own, made under --scratch. "write" is the
writers alone, "ggml" the engine's quantiser on the same blocks without a file, "build" the whole build with its proof,
the child processes that run the engines included; what each of its stages costs is printed below it. A fourth word of
a job is its --quality, as in "build gguf q4_k_m calibrated". llama.cpp starts from what "write gguf bf16" writes, the
bytes of its own converter, and its importance matrix reads as many tokens of the same text as a calibration.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

from measure import Cost, folder_bytes, run
from quality_peers import THREADS, TOKENS, calibration_text

WORKER = Path(__file__).with_name("pack_worker.py")
JOBS = (
    "write onnx int4",
    "write mlx 4bit",
    "write gguf q4_0",
    "ggml gguf q4_0",
    "write gguf q4_k_m",
    "ggml gguf q4_k_m",
)
ALL = "gguf,mlx,onnx q4"
# The figures of docs/benchmarks.md are of 8 bits.
BUILD = "build gguf,mlx,onnx q8"
PEERS = {
    "mlx-lm": ["mlx-lm==0.32.2", "mlx[cpu]==0.32.4"],
    "genai": ["onnxruntime-genai==0.18.0", "onnxruntime==1.31.1", "onnx-ir", "torch==2.13.0", "transformers<5.24"],
}
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True, slots=True)
class Row:
    """One job of the table."""

    tool: str
    job: str
    cost: Cost
    output_bytes: int
    stages: dict[str, tuple[float, float]]


def main() -> None:
    """Run the jobs that are asked for, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--jobs", nargs="*", default=[*JOBS, f"write {ALL}"], help="as in the table")
    parser.add_argument("--proof", action="store_true", help="also the whole build, for all targets")
    parser.add_argument("--build", default=BUILD, help="what --proof builds, as in the table")
    parser.add_argument("--peers", nargs="*", default=[], choices=sorted(PEERS))
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="of llama-quantize and llama-imatrix")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.scratch.mkdir(parents=True, exist_ok=True)
    work = [("edgepack", job, "", _worker(job, asked.model, asked.scratch)) for job in asked.jobs]
    if asked.proof:
        work.append(("edgepack", asked.build, "", _worker(asked.build, asked.model, asked.scratch)))
    for peer in asked.peers:
        work += _peer(peer, asked.model, asked.scratch)
    if asked.llama_cpp:
        work += _llama_cpp(asked.llama_cpp, asked.model, asked.scratch)
    rows = []
    for tool, job, out, command in work:
        rows.append(_measured(tool, job, Path(out) if out else asked.scratch / "edgepack", command, asked.scratch))
        print(_line(rows[-1]), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


Work = tuple[str, str, str, list[str]]


def _worker(job: str, model: Path, scratch: Path) -> list[str]:
    stage, targets, *how = job.split()
    return [sys.executable, str(WORKER), stage, str(model), str(scratch / "edgepack"), targets, *how]


def _peer(name: str, model: Path, scratch: Path) -> list[Work]:
    python, out = _environment(name, scratch), str(scratch / name)
    if name == "mlx-lm":
        command = [python, "-m", "mlx_lm", "convert", "--hf-path", str(model), "--mlx-path", out, "-q"]
        return [(name, "convert, 4-bit", out, command)]
    command = [python, "-m", "onnxruntime_genai.models.builder", "-m", "local", "-i", str(model), "-o", out]
    return [(name, "builder, int4", out, [*command, "-p", "int4", "-e", "cpu", "-c", str(scratch / "cache")])]


def _llama_cpp(folder: Path, model: Path, scratch: Path) -> list[Work]:
    source, matrix, out = scratch / "edgepack" / "gguf-bf16" / "model.gguf", scratch / "imatrix", scratch / "model.gguf"
    read = ["-m", str(source), "-f", str(calibration_text(scratch)), "-c", "512", "--chunks", str(TOKENS // 512)]
    imatrix = [str(folder / "llama-imatrix"), *read, "-o", str(matrix), "-t", THREADS, "--no-ppl"]
    quantize = [str(folder / "llama-quantize")]
    weighed = [*quantize, "--imatrix", str(matrix)]
    return [
        ("edgepack", "write gguf bf16", "", _worker("write gguf bf16", model, scratch)),
        ("llama.cpp", "quantize, Q4_K_M", str(out), [*quantize, str(source), str(out), "Q4_K_M", THREADS]),
        ("llama.cpp", "imatrix", str(matrix), imatrix),
        ("llama.cpp", "then quantize, Q4_K_M", str(out), [*weighed, str(source), str(out), "Q4_K_M", THREADS]),
    ]


def _measured(tool: str, job: str, out: Path, command: list[str], scratch: Path) -> Row:
    if out.is_dir():
        shutil.rmtree(out)
    log = scratch / f"{tool}.log"
    cost, stages = run(command, log, QUIET), {}
    if tool == "edgepack":
        # A worker tells its own peak of memory, without that of its children.
        told = json.loads(log.read_text().splitlines()[-1])
        stages = told.pop("phases")
        cost = Cost(**told)
    size = folder_bytes(out) if out.is_dir() else out.stat().st_size if out.exists() else 0
    return Row(tool, job, cost, size, stages)


def _environment(name: str, scratch: Path) -> str:
    folder = scratch / "peers" / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "-q", "install", *PEERS[name]], check=True)
    return str(python)


def _line(row: Row) -> str:
    cost = row.cost
    return (
        f"{row.tool:10} {row.job:24} {cost.cpu_s:8.1f} CPU s {cost.wall_s:8.1f} s wall "
        f"{cost.peak_bytes / 1e6:8.0f} MB peak {row.output_bytes / 1e6:8.0f} MB out"
    ) + "".join(f"\n{own:12.2f} + {children:6.2f} CPU s  {title}" for title, (own, children) in row.stages.items())


if __name__ == "__main__":
    main()
