"""What each scheme costs a trained model: bytes, perplexity, and how far its predictions are from the source's.

    python benchmarks/quality.py --scratch /tmp/quality \\
        --model "SmolLM2-135M" FOLDER english.txt --model demo demo examples/demo_model/held_out.jsonl \\
        [--tokens 4096] [--calibrate TEXT] [--write docs/quality.md] [--llama-cpp FOLDER] [--mlx-lm PYTHON]
        [--genai PYTHON]

":searched" after a scheme searches for its scales, ":calibrated" by what a text uses, the built-in one or that of
--calibrate; "=" before it chooses the bits of each matrix in its bytes, and a goal ("5bits") in the goal's. What other
converters make of the models joins the tables where their programs are named: see ``quality_peers``. The text's first
tokens are read in windows that start anew. The source is computed by the proof's reference in float32; gguf and onnx
payloads by their engines on one thread, with an f32 KV cache; those of mlx, whose engine takes a second a token on a
processor, by the reference with what their files dequantise to, and 64 tokens by both. Figures are kept under
--scratch, so that a second run goes on: another text takes another one. One core: 10 CPU seconds for 300 tokens and a
scheme of SmolLM2.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import cast

import msgspec
import numpy as np
import quality_page
import quality_peers
from numpy.typing import NDArray
from quality_page import Result
from quality_peers import Tools
from tokenizers import Tokenizer

from edgepack import runtime
from edgepack.bundle.decoder import Decoder
from edgepack.runtime import Options, Session
from edgepack_packager import calibration, families, reference, source, targets
from edgepack_packager.allocation import Allocator, goals, sensitivity
from edgepack_packager.allocation.goals import Size
from edgepack_packager.calibration.text import BUILT_IN
from edgepack_packager.checkpoint import CONFIG, open_checkpoint
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.seal import text_of, tokenizer_of
from edgepack_packager.targets import Model, Request, Scales
from edgepack_packager.text import golden, read_text
from edgepack_packager.text.compiled import compiled
from edgepack_packager.write import write

_WAYS = ("", ":searched", ":calibrated")
SCHEMES = {
    "gguf": (
        *("q2_k:calibrated", "iq3_s:calibrated"),
        *(f"{name}{way}" for name in ("q3_k_m", "iq4_xs", "iq4_nl") for way in ("", ":calibrated")),
        *(f"{name}{way}" for name in ("q4_0", "q4_k_m", "q5_k_m") for way in _WAYS),
        *("=q4_0", "=q4_k_m", "q8_0"),
    ),
    "onnx": (
        *(f"int4{way}" for way in _WAYS),
        *("=int4", "int4_b64:calibrated"),
        *(f"{name}{way}" for name in ("int4_b64_asym", "int4_asym") for way in ("", ":calibrated")),
        *("int4_mixed", "int4_mixed:calibrated", "=int4_mixed", "int8"),
    ),
    "mlx": (*(f"4bit{way}" for way in _WAYS), "=4bit", "4bit_mixed", "4bit_mixed:calibrated", "=4bit_mixed", "8bit"),
}
PEERS = {
    "llama.cpp": tuple(f"{kind}{text}" for kind in quality_peers.LLAMA_CPP for text in ("", ":imatrix")),
    "genai": tuple(quality_peers.GENAI),
    "mlx-lm": tuple(quality_peers.MLX_LM),
}
WINDOW = 1024
SLICE = 128
CHECKED = 64
"""Tokens that both the engine and the reference compute where the engine is slow."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class InMemory:
    """A decoder's tensors, read once."""

    decoder: Decoder
    dtype: str
    tensors: dict[str, Float32]

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows of a tensor."""
        return self.tensors[name][start:stop]


@dataclass(frozen=True)
class Subject:
    """A model, the windows of token ids that it is judged on, and its normed states after each."""

    name: str
    folder: Path
    model: Model
    weights: InMemory
    windows: list[list[int]]
    states: list[Float32]
    text: str = BUILT_IN

    @cached_property
    def passes(self) -> list[list[Sequence[int]]]:
        """The windows of the calibration's text, which are not what it is judged by."""
        side, corpus = compiled(text_of(self.model)), calibration.text.read(self.text)
        tokenizer = tokenizer_of(side)
        chat = golden.vectors(side, tokenizer).chat if corpus.conversations else None
        told = calibration.told(corpus, tokenizer, side, chat)
        return calibration.passes(corpus, told, self.model.decoder.context)

    @cached_property
    def calibrated(self) -> Model:
        """The model with what its columns count."""
        return replace(self.model, importance=calibration.importance(self.weights, self.passes))

    @cached_property
    def allocator(self) -> Allocator:
        """What chooses forms for it."""
        measured = sensitivity.measure(self.weights, self.calibrated, sensitivity.texts(self.passes))
        return Allocator(self.calibrated, self.weights, measured)


def main() -> None:
    """Measure what is not measured yet, print the tables, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--model", nargs=3, action="append", required=True, metavar=("NAME", "FOLDER", "TEXT"))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--schemes", nargs="+", default=[f"{key}:{name}" for key in SCHEMES for name in SCHEMES[key]])
    parser.add_argument("--calibrate", default=BUILT_IN, help="the text of :calibrated")
    parser.add_argument("--write", type=Path, help="the page whose tables to replace")
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="of llama-quantize and llama-imatrix")
    parser.add_argument("--mlx-lm", metavar="PYTHON", help="the interpreter of an environment with mlx-lm")
    parser.add_argument("--genai", metavar="PYTHON", help="that of one with its builder's packages")
    asked = parser.parse_args()
    tools = Tools(asked.llama_cpp, asked.mlx_lm, asked.genai)
    there = {"llama.cpp": tools.llama_cpp, "mlx-lm": tools.mlx_lm, "genai": tools.genai}
    schemes = [*asked.schemes, *(f"{peer}:{name}" for peer in PEERS if there[peer] for name in PEERS[peer])]
    results: list[Result] = []
    for name, folder, text in asked.model:
        results += _results(name, folder, Path(text), asked.tokens, schemes, asked.scratch, tools, asked.calibrate)
    print(quality_page.tables(results))
    if asked.write:
        quality_page.write(asked.write, results)


def _results(
    name: str, folder: str, text: Path, tokens: int, schemes: Sequence[str], scratch: Path, tools: Tools, by: str
) -> Iterator[Result]:
    subject: Subject | None = None
    for scheme in schemes:
        place = scratch / f"{name}.{scheme.replace(':', '.')}.{tokens}.json".replace(" ", "-")
        if not place.exists():
            subject = subject or replace(subject_of(name, folder, text, tokens), text=by)
            target, _, asked = scheme.partition(":")
            if target in PEERS:
                result = _measure_peer(subject, target, asked, tools, scratch / "peer")
            else:
                of, _, how = asked.partition(":")
                result = _measure(subject, target, of, cast(Scales, how or "own"), scratch / "variant")
            place.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
            print(place.read_text(), flush=True)
        yield msgspec.json.decode(place.read_bytes(), type=Result)


def subject_of(name: str, model: str, text: Path, tokens: int) -> Subject:
    folder = source.find(model).folder
    config = read_object(folder / CONFIG)
    with open_checkpoint(folder) as checkpoint:
        read = families.open_model(checkpoint)
        decoder = read.decoder
        weights = _in_memory(read)
    side = read_text(folder, config, decoder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(_prose(text), add_special_tokens=False).ids[:tokens]
    width = min(WINDOW, decoder.context)
    windows = [ids[start : start + width] for start in range(0, len(ids), width)]
    states = [reference.hidden(weights, window)[0] for window in windows]
    return Subject(name, folder, Model(name, decoder, weights.dtype, config, side), weights, windows, states)


def _prose(path: Path) -> str:
    """Return a text file's text; of JSON lines, the questions with their answers."""
    if path.suffix != ".jsonl":
        return path.read_text("utf-8")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return "\n".join(f"{line['question']} {line['answer']}" for line in lines if "question" in line)


def _in_memory(weights: Weights) -> InMemory:
    tensors = {name: np.array(weights.rows(name, 0, shape[0])) for name, shape in weights.decoder.tensors()}
    return InMemory(weights.decoder, weights.dtype, tensors)


def _measure(subject: Subject, target: str, scheme: str, how: Scales, scratch: Path) -> Result:
    rmtree(scratch, ignore_errors=True)
    request = _request(subject, target, scheme, how)
    (written,) = write(subject.weights, [request], scratch, subject.calibrated if request.calibrated else subject.model)
    folder, decoder = scratch / request.id, subject.model.decoder
    weight_files = ("*.gguf", "*.onnx", "*.data", "*.safetensors")
    size = sum(file.stat().st_size for pattern in weight_files for file in folder.glob(pattern))
    engine_kl = reference_kl = None
    if target == "mlx":
        read = _read_back(request, folder, decoder)
        logits = (from_reference(read, window) for window in subject.windows)
        first = [window[:CHECKED] for window in subject.windows[:1]]
        states = [rows[:CHECKED] for rows in subject.states[:1]]
        by_engine = compare(subject.weights, first, states, [_from_engine("mlx", folder, decoder, first[0])])
        by_reference = compare(subject.weights, first, states, [from_reference(read, first[0])])
        engine_kl, reference_kl = float(by_engine[0].mean()), float(by_reference[0].mean())
    else:
        logits = (_from_engine(target, folder, decoder, window) for window in subject.windows)
    name = scheme.replace("=", "in the bytes of ") if how == "own" else f"{scheme}, {how}"
    result = _judged(subject, target, name, size, written.bits(decoder), logits)
    rmtree(scratch)
    return msgspec.structs.replace(result, engine_kl=engine_kl, checked_kl=reference_kl)


def _measure_peer(subject: Subject, peer: str, scheme: str, tools: Tools, scratch: Path) -> Result:
    rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    match peer:
        case "llama.cpp":
            source = _unquantised(subject, scratch.with_name("source"))
            payload = quality_peers.quantised_by_llama_cpp(tools, source, scheme, scratch)
            logits = (_from_engine("gguf", scratch, subject.model.decoder, window) for window in subject.windows)
        case "mlx-lm":
            payload = quality_peers.quantised_by_mlx_lm(tools, subject.folder, scheme, scratch)
            with open_checkpoint(payload.place) as checkpoint:
                read = _in_memory(families.open_model(checkpoint))
            logits = (from_reference(read, window) for window in subject.windows)
        case _:
            payload = quality_peers.quantised_by_genai(tools, subject.folder, scheme, scratch)
            logits = (
                quality_peers.sliced(quality_peers.logits_of_genai(tools, payload, window, scratch), SLICE)
                for window in subject.windows
            )
    bits = round(8 * payload.size / subject.model.decoder.n_parameters, 2)
    result = _judged(subject, peer, scheme.replace(":", ", "), payload.size, bits, logits)
    rmtree(scratch)
    return result


def _unquantised(subject: Subject, scratch: Path) -> Path:
    """Return the model as a GGUF file of the source's own element type, which is written where it is missing."""
    request = Request(targets.find("gguf"), subject.model.dtype, subject.model.dtype)
    folder = scratch / subject.name.replace(" ", "-")
    if not folder.exists():
        write(subject.weights, [request], folder, subject.model)
    return folder / request.id / "model.gguf"


def _judged(
    subject: Subject, target: str, scheme: str, size: int, bits: float, logits: Iterator[Iterator[Float32]]
) -> Result:
    kl, same, loss, exact_loss = compare(subject.weights, subject.windows, subject.states, logits)
    return Result(
        model=subject.name,
        target=target,
        scheme=scheme,
        tokens=len(kl),
        bytes=size,
        bits=bits,
        kl=float(kl.mean()),
        kl_error=_standard_error(kl),
        top1=float(same.mean()),
        perplexity=float(np.exp(loss.mean())),
        reference_perplexity=float(np.exp(exact_loss.mean())),
    )


def _request(subject: Subject, target: str, scheme: str, how: Scales) -> Request:
    chosen, model = targets.find(target), subject.model
    goal = goals.read(scheme)
    if scheme.startswith("="):
        goal = Size(scheme, chosen.measure(model.decoder, model.dtype, scheme[1:]).data_bytes)
    if goal is None:
        return Request(chosen, scheme, scheme, how)
    request = Request(chosen, scheme, chosen.scheme("q4", model), "calibrated", called="allocated")
    return subject.allocator.allocate(request, goal).request


def _read_back(request: Request, folder: Path, decoder: Decoder) -> InMemory:
    reader = request.target.read(folder, decoder)
    try:
        return InMemory(decoder, "f32", {name: reader.rows(name, 0, shape[0]) for name, shape in decoder.tensors()})
    finally:
        reader.close()


def from_reference(weights: Weights, ids: Sequence[int]) -> Iterator[Float32]:
    states = reference.hidden(weights, ids)[0]
    for start in range(0, len(ids), SLICE):
        yield reference.head(weights, states[start : start + SLICE])


def _from_engine(target: str, folder: Path, decoder: Decoder, ids: Sequence[int]) -> Iterator[Float32]:
    session: Session = runtime.find(target).open(folder, decoder, Options(len(ids), 1, "f32", SLICE, None))
    try:
        for start in range(0, len(ids), SLICE):
            yield session.forward_all(ids[start : start + SLICE])
    finally:
        session.close()


def compare(
    weights: Weights,
    windows: Sequence[Sequence[int]],
    states: Sequence[Float32],
    logits: Iterator[Iterator[Float32]] | list[Iterator[Float32]],
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return, of each token, KL(source || payload) in nats and whether the likeliest next one is the same; and of each
    but a window's last, what payload and source find the next one: -log p."""
    parts: list[tuple[Floats, Floats, Floats, Floats]] = []
    for window, exact, slices in zip(windows, states, logits, strict=True):
        for start, found in zip(range(0, len(window), SLICE), slices, strict=True):
            log_p = _log_softmax(reference.head(weights, exact[start : start + SLICE]))
            log_q = _log_softmax(found)
            following = np.array(window[start + 1 : start + 1 + len(found)], np.intp)
            at = np.arange(len(following)), following
            parts.append(
                (
                    (np.exp(log_p) * (log_p - log_q)).sum(axis=-1, dtype=np.float64),
                    (log_p.argmax(axis=-1) == log_q.argmax(axis=-1)).astype(np.float64),
                    -log_q[at].astype(np.float64),
                    -log_p[at].astype(np.float64),
                )
            )
    kl, same, loss, exact_loss = (np.concatenate(column) for column in zip(*parts, strict=True))
    return kl, same, loss, exact_loss


def _log_softmax(logits: Float32) -> Float32:
    shifted: Float32 = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _standard_error(values: Floats) -> float:
    return float(values.std() / np.sqrt(len(values)))


if __name__ == "__main__":
    main()
