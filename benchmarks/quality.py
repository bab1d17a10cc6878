"""What each scheme costs a trained model: bytes, perplexity, and how far its predictions are from the source's.

    python benchmarks/quality.py --scratch /tmp/quality \\
        --model "SmolLM2-135M" FOLDER english.txt --model demo demo examples/demo_model/held_out.jsonl \\
        [--tokens 4096] [--calibrate TEXT] [--write docs/quality.md] [--llama-cpp FOLDER] [--mlx-lm PYTHON]
        [--genai PYTHON]

":searched" after a scheme searches for its scales, ":calibrated" by what a text uses, the built-in one or that of
--calibrate; "=" before it chooses the bits of each matrix in its bytes, and a goal ("5bits") in the goal's. What other
converters make of the models joins the tables where their programs are named: see ``quality_peers``; where no such
choice is of a peer's bytes, one is made in those. FOLDER is what ``edgepack build`` takes. The text's first
tokens are read in windows that start anew. The source is computed by the proof's reference in float32; gguf and onnx
payloads by their engines on one thread, with an f32 KV cache; those of mlx, whose engine takes a second a token on a
processor, by the reference with what their files dequantise to, and 64 tokens by both. Figures are kept under
--scratch, so that a second run goes on: another text takes another one. One core: 10 CPU seconds for 300 tokens and a
scheme of SmolLM2.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import quality_page
import quality_peers
from numpy.typing import NDArray
from quality_page import EQUAL, IN_BYTES, Missing, Outcome, Result
from quality_peers import Tools
from quality_subject import InMemory, Subject, in_memory, subject_of

from edgepack import runtime
from edgepack.bundle.decoder import Decoder
from edgepack.errors import EdgepackError
from edgepack.runtime import Options, Session
from edgepack_packager import families, reference, targets
from edgepack_packager.allocation import goals
from edgepack_packager.allocation.goals import Size
from edgepack_packager.calibration.text import BUILT_IN
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.targets import Request, Scales
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
SLICE = 128
CHECKED = 64
"""Tokens that both the engine and the reference compute where the engine is slow."""

Floats = NDArray[np.float64]


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
    outcomes: list[Outcome] = []
    for name, model, text in asked.model:
        bench = Bench(name, model, Path(text), asked.tokens, asked.scratch, tools, asked.calibrate)
        outcomes += bench.outcomes(schemes)
    print(quality_page.tables(outcomes))
    if asked.write:
        quality_page.write(asked.write, outcomes)


@dataclass(frozen=True)
class Bench:
    """What measures a model, once for each scheme: what was measured lies in the scratch folder."""

    name: str
    source: str
    judged: Path
    tokens: int
    scratch: Path
    tools: Tools
    calibrate: str

    @cached_property
    def subject(self) -> Subject:
        """The model in memory, which only what is not measured yet needs."""
        return replace(subject_of(self.name, self.source, self.judged, self.tokens), text=self.calibrate)

    def outcomes(self, schemes: Sequence[str]) -> Iterator[Outcome]:
        """Yield a figure for each scheme, and then those of choices in bytes of peers that no other choice has."""
        found = []
        for scheme in schemes:
            found.append(self._outcome(scheme))
            yield found[-1]
        for peer in found:
            if isinstance(peer, Result) and peer.target in quality_page.RIVALS:
                near = (one for one in quality_page.beside(peer, found) if one.scheme.startswith(IN_BYTES))
                if not any(one.bytes >= (1 - EQUAL) * peer.bytes for one in near):
                    target = quality_page.RIVALS[peer.target]
                    found.append(self._outcome(f"{target}:={peer.target} {peer.scheme}", peer.bytes))
                    yield found[-1]

    def _outcome(self, scheme: str, size: int | None = None) -> Outcome:
        place = self.scratch / f"{self.name}.{scheme.replace(':', '.')}.{self.tokens}.json".replace(" ", "-")
        if not place.exists():
            try:
                outcome: Outcome = self._measured(scheme, size)
            except (quality_peers.UnmadeError, EdgepackError) as error:
                outcome = Missing(self.name, scheme.partition(":")[0], scheme.partition(":")[2], str(error))
            place.write_bytes(msgspec.json.format(msgspec.json.encode(outcome)))
            print(place.read_text(), flush=True)
        return msgspec.json.decode(place.read_bytes(), type=Outcome)

    def _measured(self, scheme: str, size: int | None) -> Result:
        target, _, asked = scheme.partition(":")
        if target in PEERS:
            return _measure_peer(self.subject, target, asked, self.tools, self.scratch / "peer")
        of, _, how = asked.partition(":")
        if size and target == "gguf":
            size -= self.subject.header_bytes(self.scratch / "source")
        return _measure(self.subject, target, of, cast(Scales, how or "own"), self.scratch / "variant", size)


def _measure(subject: Subject, target: str, scheme: str, how: Scales, scratch: Path, size: int | None = None) -> Result:
    shutil.rmtree(scratch, ignore_errors=True)
    request = _request(subject, target, scheme, how, size)
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
    name = scheme.replace("=", IN_BYTES) if how == "own" else f"{scheme}, {how}"
    result = _judged(subject, target, name, size, written.bits(decoder), logits)
    shutil.rmtree(scratch)
    return msgspec.structs.replace(result, engine_kl=engine_kl, checked_kl=reference_kl)


def _measure_peer(subject: Subject, peer: str, scheme: str, tools: Tools, scratch: Path) -> Result:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    source, decoder = scratch.with_name("source"), subject.model.decoder
    match peer:
        case "llama.cpp":
            payload = quality_peers.quantised_by_llama_cpp(tools, subject.gguf(source), scheme, scratch)
            logits = (_from_engine("gguf", scratch, decoder, window) for window in subject.windows)
        case "mlx-lm":
            payload = quality_peers.quantised_by_mlx_lm(
                tools, subject.checkpoint(source), decoder.n_parameters, scheme, scratch
            )
            with open_checkpoint(payload.place) as checkpoint:
                read = in_memory(families.open_model(checkpoint))
            logits = (from_reference(read, window) for window in subject.windows)
        case _:
            payload = quality_peers.quantised_by_genai(tools, subject.checkpoint(source), scheme, scratch)
            logits = (
                quality_peers.sliced(quality_peers.logits_of_genai(tools, payload, window, scratch), SLICE)
                for window in subject.windows
            )
    bits = round(8 * payload.size / decoder.n_parameters, 2)
    result = _judged(subject, peer, scheme.replace(":", ", "), payload.size, bits, logits)
    shutil.rmtree(scratch)
    return result


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


def _request(subject: Subject, target: str, scheme: str, how: Scales, size: int | None) -> Request:
    chosen, model = targets.find(target), subject.model
    goal = goals.read(scheme)
    if scheme.startswith("="):
        goal = Size(scheme, size or chosen.measure(model.decoder, model.dtype, scheme[1:]).data_bytes)
    if goal is None:
        return Request(chosen, scheme, scheme, how)
    request = Request(chosen, scheme, chosen.scheme("q4", model), "calibrated", called="allocated")
    return subject.allocated(request, goal)


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
