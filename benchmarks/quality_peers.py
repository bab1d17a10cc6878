"""What other converters make of the same model, for ``quality.py``: llama.cpp's, mlx-lm's and onnxruntime-genai's.

A peer's scheme is named "PEER:NAME", as "llama.cpp:Q4_K_M:imatrix". Where it wants a text, it gets the one that
edgepack calibrates with. llama.cpp and mlx-lm start from the weights that edgepack reads, so that only the
quantisation differs: the former from its own format in f32 or bf16 as edgepack writes it (the same bytes as its own
converter's), the latter from the checkpoint.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from edgepack_packager.checkpoint.weights import Float32

HERE = Path(__file__).parent
THREADS = "1"
TOKENS = 4096
"""That a peer calibrates with: as many as edgepack."""

LIMIT = 600
"""Seconds that a peer's program may take."""

SLOW, LARGE = ("dynamic", "awq"), 10_000_000
"""mlx-lm's ways whose gradients and searches a processor cannot wait for, in a model of so many weights."""


class UnmadeError(Exception):
    """A peer did not make a payload; the message says why."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Where the peers are: the folder of llama.cpp's programs, and the interpreters of the others' environments."""

    llama_cpp: Path | None = None
    mlx_lm: str | None = None
    genai: str | None = None


@dataclass(frozen=True, slots=True)
class Payload:
    """What a peer wrote: a GGUF file, a checkpoint in float32, or a folder that its own engine reads; and its bytes."""

    place: Path
    size: int


LLAMA_CPP = ("Q4_0", "IQ4_NL", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M")


def quantised_by_llama_cpp(tools: Tools, source: Path, name: str, scratch: Path) -> Payload:
    """Quantise a GGUF file by ``llama-quantize``; ``name`` is its type, with ":imatrix" if it is to weigh errors."""
    assert tools.llama_cpp is not None
    kind, _, weighed = name.partition(":")
    options: list[str] = []
    if weighed:
        matrix = source.with_suffix(".imatrix")
        if not matrix.exists():
            text = calibration_text(scratch)
            window = 512
            read = ["-m", str(source), "-f", str(text), "-c", str(window), "--chunks", str(TOKENS // window)]
            _call([str(tools.llama_cpp / "llama-imatrix"), *read, "-o", str(matrix), "-t", THREADS, "--no-ppl"])
        options = ["--imatrix", str(matrix)]
    out = scratch / "model.gguf"
    _call([str(tools.llama_cpp / "llama-quantize"), *options, str(source), str(out), kind, THREADS])
    return Payload(out, out.stat().st_size)


MLX_LM: Mapping[str, Sequence[str]] = {
    "4bit": ["convert", "-q", "--q-bits", "4"],
    "3bit": ["convert", "-q", "--q-bits", "3"],
    "6bit": ["convert", "-q", "--q-bits", "6"],
    "8bit": ["convert", "-q", "--q-bits", "8"],
    "4bit_g32": ["convert", "-q", "--q-bits", "4", "--q-group-size", "32"],
    "mixed_4_6": ["convert", "-q", "--quant-predicate", "mixed_4_6"],
    "dynamic": ["dynamic_quant"],
    "gptq": ["gptq", "--num-samples", str(TOKENS // 512)],
    "awq": ["awq", "--num-samples", str(TOKENS // 512)],
}


def quantised_by_mlx_lm(tools: Tools, checkpoint: Path, weights: int, name: str, scratch: Path) -> Payload:
    """Quantise a checkpoint of so many weights by one of mlx-lm's ways, and dequantise it into one of float32."""
    assert tools.mlx_lm is not None
    if name in SLOW and weights >= LARGE:
        raise UnmadeError(f"not tried in models of {LARGE / 1e6:.0f} million weights or more, on a processor")
    home, payload, exact = scratch / "home", scratch / "payload", scratch / "exact"
    text = home / ".cache" / "mlx-lm" / "calibration_v5.txt"
    text.parent.mkdir(parents=True)
    shutil.copy(calibration_text(scratch), text)
    way, *options = MLX_LM[name]
    model = "--hf-path" if way == "convert" else "--model"
    command = [
        tools.mlx_lm,
        "-m",
        "mlx_lm",
        way,
        model,
        str(checkpoint.resolve()),
        "--mlx-path",
        str(payload.resolve()),
    ]
    _call([*command, *options], scratch, HOME=str(home.resolve()))
    _call([tools.mlx_lm, str(HERE / "quality_mlx.py"), str(payload), str(exact)])
    return Payload(exact, sum(file.stat().st_size for file in payload.glob("*.safetensors")))


GENAI: Mapping[str, Sequence[str]] = {
    "int4": [],
    "int4_k_quant": ["algo_config=k_quant"],
    "int4_k_quant_mixed": ["algo_config=k_quant_mixed"],
    "int4_k_quant_last": ["algo_config=k_quant_last"],
}


def quantised_by_genai(tools: Tools, checkpoint: Path, name: str, scratch: Path) -> Payload:
    """Build a folder by onnxruntime-genai's builder, blocks of 32 and activations of 8 bits as edgepack's."""
    assert tools.genai is not None
    payload = scratch / "payload"
    build = [tools.genai, "-m", "onnxruntime_genai.models.builder", "-m", "local", "-i", str(checkpoint)]
    settings = ["accuracy_level=4", "block_size=32", *GENAI[name]]
    options = ["-p", "int4", "-e", "cpu", "-c", str(scratch / "cache"), "--extra_options", *settings]
    _call([*build, "-o", str(payload), *options])
    return Payload(payload, sum(file.stat().st_size for file in payload.glob("model.onnx*")))


def logits_of_genai(tools: Tools, payload: Payload, ids: Sequence[int], scratch: Path) -> Float32:
    """Return float32 [n, n_vocab], by onnxruntime-genai itself."""
    assert tools.genai is not None
    asked, out = scratch / "prompt.json", scratch / "logits.npy"
    asked.write_text(str(list(ids)))
    _call([tools.genai, str(HERE / "fidelity_genai.py"), str(payload.place), str(asked), str(out)])
    found: Float32 = np.load(out)
    return found


def calibration_text(scratch: Path) -> Path:
    """Return a file with the text that edgepack calibrates with."""
    place = scratch / "calibration.txt"
    place.write_text(files("edgepack_packager.calibration").joinpath("built-in.txt").read_text("utf-8"), "utf-8")
    return place


def _call(command: Sequence[str], folder: Path | None = None, **environment: str) -> None:
    """Run a program, in a folder that may take what it leaves. Raises ``UnmadeError`` where it fails."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **quiet, **environment}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        raise UnmadeError(f"did not end in {LIMIT} s") from None
    if done.returncode:
        print(" ".join(command), done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        raise UnmadeError((done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1])


def sliced(rows: Float32, size: int) -> Iterator[Float32]:
    """Yield rows, so many at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
