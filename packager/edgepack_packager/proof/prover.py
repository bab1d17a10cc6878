"""The parts of the proof over one model, in their order, and what they say of each variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import msgspec

from edgepack.bundle import manifest
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.embedding import DENSE_FILE, Embedding, Nearness, VectorTest
from edgepack.bundle.manifest import File, Gate, Loss, ProbePart
from edgepack.bundle.receipt import Measured, Receipt
from edgepack.device.limits import default_kv_cache
from edgepack.errors import BuildError, EdgepackError, EngineError
from edgepack.runtime import KvCache, Support
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import calibration
from edgepack_packager.calibration import feedback as made_good
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.progress import Progress
from edgepack_packager.proof import (
    engine,
    execution,
    loss,
    outlived,
    probe,
    products,
    recalled,
    structure,
    tensors,
    tokens,
)
from edgepack_packager.proof.gates import Finding, gate, missed
from edgepack_packager.proof.held_out import HeldOut
from edgepack_packager.proof.outlived import Adapted
from edgepack_packager.proof.receipt import REFERENCE, Measuring
from edgepack_packager.proof.vectors import Vectors as TextVectors
from edgepack_packager.reference import EXACT
from edgepack_packager.targets import Request
from edgepack_packager.targets.feedback import Feedback
from edgepack_packager.text.golden import Vectors
from edgepack_packager.text.side import Text


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the proof says of a variant: for the manifest, and all figures for ``evidence/``.

    ``missed`` has the end of a sentence for each gate that does not hold, and for what ended a part of the proof.
    ``proof`` is None where one is, and where no engine could prove the variant. ``notes`` say how many matrices lie on
    grids and whether the variant holds them, and where adapters are lost. ``measured`` is what it lost on the held-out
    text, None where none was held out.
    """

    proof: manifest.Proof | None
    self_test: manifest.SelfTest | VectorTest | None
    evidence: dict[str, object]
    missed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    measured: Measured | None = None


class Prover:
    """The parts of the proof over one model, with the engines that can run on this host.

    ``files`` are those that the weights come from. ``max_kl`` is what a variant may lose in nats, where the builder
    sets a limit, ``importance`` and ``feedback`` what calibrated variants were written by, ``calibrating`` token ids of
    the text that gave them, ``adapted`` what adapters make of the weights, and ``held_out`` the text that variants are
    judged on, where there is one. ``embedding`` is what is made of texts, where the model has no head. ``unproven``:
    nothing is read back, and no engine is there; what adapters lost is still told.
    """

    def __init__(
        self,
        weights: Weights,
        files: Sequence[File],
        text: Text,
        vectors: Vectors,
        tokenizer: Tokenizer,
        engines: Mapping[str, Support],
        scratch: Path,
        progress: Progress,
        max_kl: float | None = None,
        importance: Mapping[str, Float32] = MappingProxyType({}),
        feedback: Mapping[str, Feedback] = MappingProxyType({}),
        calibrating: Sequence[int] = (),
        adapted: Adapted | None = None,
        held_out: HeldOut | None = None,
        *,
        embedding: Embedding | None = None,
        unproven: bool = False,
    ) -> None:
        self._text, self._vectors, self._tokenizer, self._max_kl = text, vectors, tokenizer, max_kl
        self._weights, self._engines, self._scratch, self._progress = weights, engines, scratch, progress
        self._feedback, self._calibrating = feedback, calibrating
        self._files, self._importance, self._adapted = files, importance, adapted or Adapted(weights)
        self._whole = probe.make(weights.decoder, tokenizer)
        self._probe = self._whole.first(probe.RUN)
        self._structure: dict[str, Gate | EngineError] = {}
        self._unproven = unproven
        self._measuring = held_out and Measuring(weights, held_out, self._states, scratch, progress)
        dense = text.files.get(DENSE_FILE, b"")
        self._embedded = embedding and TextVectors(weights, embedding, dense, tokenizer, scratch, progress)

    def structure(self, requests: Sequence[Request]) -> None:
        """Prove the graph of each requested target whose engine is here; its variants' verdicts say how that went."""
        able = {r.target.name: r.target for r in requests if r.target.runtime in self._engines}
        if not able:
            return
        self._progress.stage("Proving the structure of " + ", ".join(able), 1)
        self._structure = structure.prove(list(able.values()), self._weights, self._whole.ids, self._scratch)
        self._progress.advance()

    def variant(self, request: Request, folder: Path, plain: tuple[Request, Path] | None = None) -> Verdict:
        """Prove one finished variant: its tensors, and all else where its engine is here. It raises for no gate.

        ``plain`` is the payload of the plain scheme in its bytes, which is measured beside it on held-out text.
        """
        trial = _Trial(request.id)
        evidence: dict[str, object] = {"variant": request.id}
        if request.calibrated:
            statistics: dict[str, object] = {"statistics_sha256": calibration.digest(self._importance)}
            if fed := self._fed(request):
                statistics |= {"fed": len(fed), "feedback_sha256": made_good.digest(fed)}
            evidence["calibration"] = statistics
        if not self._unproven:
            with trial.part():
                self._read_back(request, folder, trial, evidence)
        if self._adapted.tensors:
            with trial.part():
                figures = outlived.measure(request.target, folder, self._adapted, self._weights)
                evidence["adapters"] = msgspec.to_builtins(figures)
                if remark := outlived.remark(request, figures):
                    trial.notes = (*trial.notes, remark)
        proof = self_test = measured = None
        if support := self._engines.get(request.target.runtime):
            with trial.part():
                told = tokens.prove(request.target.runtime, folder, self._text, self._vectors, self._tokenizer)
                if told:
                    trial.findings.append(Finding(told.gate))
                    evidence["tokens"] = told.figures
            with trial.part():
                trial.findings.append(Finding(self._structural_gate(request.target.name)))
            with trial.part():
                proof, self_test = self._run(request, folder, support, trial)
                evidence |= {"engine": proof.engine, "ids": self._probe.ids, "text": self._probe.text}
                evidence["loss"] = msgspec.to_builtins(proof.loss)
                evidence |= {"vectors": msgspec.to_builtins(proof.vectors)} if proof.vectors else {}
            self._progress.advance()
            if self._measuring and proof and not trial.missed:
                with trial.part():
                    measured = self._measured(self._measuring, request, folder, support, proof.engine, plain)
                    evidence["held_out"] = msgspec.to_builtins(measured)
        evidence["gates"] = [msgspec.to_builtins(finding.gate) for finding in trial.findings]
        if failed := trial.missed:
            return Verdict(None, None, evidence | {"missed": failed}, tuple(failed))
        return Verdict(proof, self_test, evidence, notes=trial.notes, measured=measured)

    def _read_back(self, request: Request, folder: Path, trial: _Trial, evidence: dict[str, object]) -> None:
        self._progress.stage(f"Reading back {request.id}", self._weights.decoder.n_parameters)
        counts = self._importance if request.calibrated else {}
        fed = self._fed(request)
        checked = tensors.prove(request.target, folder, self._weights, self._progress.advance, counts, fed)
        trial.findings += checked.findings
        evidence["tensors"] = checked.figures
        trial.notes = tuple(_notes(request, checked))
        if checked.exact:
            evidence["exact"] = {"matrices": checked.exact, "of": checked.quantised}
        if fed:
            self._progress.stage(f"Multiplying with {request.id}", self._weights.decoder.n_layers)
            gained = products.prove(
                request.target, folder, self._weights, fed, self._calibrating, self._progress.advance
            )
            trial.findings += [gained] if gained else []

    def _fed(self, request: Request) -> dict[str, Feedback]:
        """Return what errors of a variant are made good by, of the matrices whose levels know of it."""
        names = request.fed(self._weights.decoder, self._weights.dtype)
        return {name: each for name, each in self._feedback.items() if name in names}

    def receipt(self, verdicts: Sequence[Verdict]) -> Receipt | None:
        """Return what is sealed of the held-out text beside these variants, None where none was measured on it."""
        measured = [verdict.measured for verdict in verdicts if verdict.measured]
        return self._measuring.receipt(self._files, measured) if self._measuring and measured else None

    def _structural_gate(self, target: str) -> Gate:
        found = self._structure[target]
        if isinstance(found, EngineError):
            raise found
        return found

    def _run(
        self, request: Request, folder: Path, support: Support, trial: _Trial
    ) -> tuple[manifest.Proof, manifest.SelfTest | VectorTest]:
        """Run the probe through the engine once, and judge what it computed and what was lost."""
        target, decoder = request.target, self._weights.decoder
        expected = self._expected
        self._progress.stage(f"Running {request.id}", 1)
        kv_cache, logits = _kv_cache(request, support), self._scratch / "logits"
        more = self._measuring.first() if self._measuring and not _as_reference(request, folder, decoder) else {}
        more = self._embedded.files if self._embedded else more
        name = engine.run(target.runtime, folder, decoder, self._probe.ids, kv_cache, logits, more)
        if target.schemes[request.scheme] == 32 and kv_cache == "f32":
            held = execution.exact(target, decoder, logits, expected)
        else:
            held = execution.prove(
                target, folder, decoder, self._probe.ids, logits, kv_cache=kv_cache, scratch=self._scratch
            )
        trial.findings.append(Finding(held))
        near: Nearness | msgspec.UnsetType = msgspec.UNSET
        lost: dict[ProbePart, Loss] = {}
        test: manifest.SelfTest | VectorTest
        if self._embedded:
            near, test = self._embedded.measure()
        else:
            lost, test = self._lost(logits, expected, trial)
        gates = [finding.gate for finding in trial.findings]
        proof = manifest.Proof(engine=name, tokens=len(self._probe.ids), gates=gates, loss=lost, vectors=near)
        return proof, test

    def _lost(self, logits: Path, expected: Path, trial: _Trial) -> tuple[dict[ProbePart, Loss], manifest.SelfTest]:
        """Return what a variant that writes lost on the probe, and its self-test."""
        columns = self._weights.decoder.n_vocab
        lost = loss.measure(engine.rows(logits, columns), engine.rows(expected, columns), self._probe)
        if self._max_kl is not None:
            judged = lost.get("text") or lost["random"]
            trial.findings.append(Finding(gate("loss.kl", judged.kl, "<=", self._max_kl)))
        return lost, loss.self_test(engine.rows(logits, columns), self._probe)

    def _measured(
        self,
        measuring: Measuring,
        request: Request,
        folder: Path,
        support: Support,
        engine: str,
        plain: tuple[Request, Path] | None,
    ) -> Measured:
        """Measure a variant on the held-out text, and the plain one beside it in the same way."""
        if _as_reference(request, folder, self._weights.decoder):
            lost, by = measuring.by_reference(request, folder), REFERENCE
            beside = plain and measuring.by_reference(*plain)
        else:
            kv_cache, by = _kv_cache(request, support), engine
            lost = measuring.by_engine(request, folder, kv_cache, begun=True)
            beside = plain and measuring.by_engine(*plain, kv_cache)
        found = Measured(variant=request.id, by=by, lost=lost, plain=beside)
        if plain is None or not request.called:
            return found
        bits = plain[0].measure(self._weights.decoder, self._weights.dtype).bits(self._weights.decoder)
        return msgspec.structs.replace(found, plain_scheme=plain[0].scheme, plain_bits=bits)

    @cached_property
    def _expected(self) -> Path:
        """The file with the reference's logits of the probe."""
        self._progress.stage("Computing the reference", self._weights.decoder.n_layers)
        path = self._scratch / "reference"
        engine.write_logits(self._weights, self._states(self._probe.ids), {path: EXACT})
        return path

    def _states(self, ids: Sequence[int]) -> Float32:
        """Return the reference's states of ids, computed now or remembered: float32 [1, n, h]."""
        return recalled.hidden(self._weights, self._files, self._adapted.scales, ids, self._progress)


def _kv_cache(request: Request, support: Support) -> KvCache:
    # In half precision some engines compute all else as well, and others differ by 1e-7: neither hides a fault.
    return request.target.kv_cache or default_kv_cache("f32", support.kv_caches)


def _as_reference(request: Request, folder: Path, decoder: Decoder) -> bool:
    """Whether a quantised payload's engine computes as the reference does: it rounds no activations and no cache."""
    target = request.target
    if target.schemes[request.scheme] == 32 or target.kv_cache:
        return False
    with closing(target.read(folder, decoder)) as reader:
        return all(target.activations(reader.form(name)) == "f32" for name, _ in decoder.tensors())


def _notes(request: Request, checked: tensors.Tensors) -> Iterator[str]:
    """Say of weights that were rounded to grids before what the variant kept of them."""
    of = f"of {checked.quantised} quantised matrices"
    if checked.exact:
        yield f"{request.id}: {checked.exact} {of} are exact, on the grids that the source's weights lie on."
    if checked.others:
        yield (
            f"{request.id}: {checked.others} {of} lie on grids of 4 bits that {request.scheme} does not hold; "
            "gguf q4_0 and q4_1, onnx int4 and mlx 4bit_g32 may."
        )


class _Trial:
    """What the parts of a variant's proof found: gates, notes, and errors that ended a part."""

    def __init__(self, variant: str) -> None:
        self.findings: list[Finding] = []
        self.notes: tuple[str, ...] = ()
        self._variant = variant
        self._errors: list[EdgepackError] = []

    @contextmanager
    def part(self) -> Iterator[None]:
        """Keep an error of the variant's files or of its engine: it ends this part of the proof, and no other."""
        try:
            yield
        except (BuildError, EngineError) as error:
            self._errors.append(error)

    @property
    def missed(self) -> list[str]:
        """The end of a sentence for each gate that does not hold, and for each error."""
        said = (error.message.removeprefix(f"{self._variant} failed the proof: ").rstrip(".") for error in self._errors)
        return [*missed(self.findings), *said]
