"""The proof: nothing is sealed that was not compared with the fp32 reference of its source.

``structure``: an f32 slice of the model through each target's writer and engine. ``tensors``: every tensor that was
written, read back. ``tokens``: the payload's own tokenizer. ``loss``: each finished variant through its engine. A
figure that misses its limit is a ``ProofError``, and the build leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgepack.bundle import manifest
from edgepack.device.planning import default_kv_cache
from edgepack.runtime import Support
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.progress import Progress
from edgepack_packager.proof import engine, loss, probe, structure, tensors, tokens
from edgepack_packager.proof.gates import enforce
from edgepack_packager.targets import Request
from edgepack_packager.text.golden import Vectors
from edgepack_packager.text.side import Text


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the proof says of a variant: for the manifest, and all figures for ``evidence/``."""

    proof: manifest.Proof | None
    self_test: manifest.SelfTest | None
    evidence: dict[str, object]


class Prover:
    """The four parts of the proof over one model, with the engines that can run on this host."""

    def __init__(
        self,
        weights: Weights,
        text: Text,
        vectors: Vectors,
        tokenizer: Tokenizer,
        engines: Mapping[str, Support],
        scratch: Path,
        progress: Progress,
    ) -> None:
        self._text, self._vectors, self._tokenizer = text, vectors, tokenizer
        self._weights, self._engines, self._scratch, self._progress = weights, engines, scratch, progress
        self._probe = probe.make(weights.decoder, tokenizer)
        self._structure: dict[str, manifest.Gate] = {}

    def structure(self, requests: Sequence[Request]) -> None:
        """Prove the graph of each requested target whose engine is here. Raises ``ProofError``."""
        able = {r.target.name: r.target for r in requests if r.target.runtime in self._engines}
        if not able:
            return
        self._progress.stage("Proving the structure of " + ", ".join(able), 1)
        self._structure = structure.prove(list(able.values()), self._weights, self._probe.ids, self._scratch)
        for name, gate in self._structure.items():
            enforce(f"The {name} target", [gate], "What it wrote computes something else than the source; report this.")
        self._progress.advance()

    def variant(self, request: Request, folder: Path) -> Verdict:
        """Prove one finished variant: its tensors, and its tokens and its loss where its engine is here.

        Raises ``ProofError``.
        """
        decoder = self._weights.decoder
        self._progress.stage(f"Reading back {request.id}", decoder.n_parameters)
        checked = tensors.prove(request.target, folder, self._weights, self._progress.advance)
        evidence: dict[str, object] = {"variant": request.id, "tensors": checked.errors}
        support = self._engines.get(request.target.runtime)
        if support is None:
            return Verdict(None, None, evidence)
        told = tokens.prove(request.target.runtime, folder, self._text, self._vectors, self._tokenizer)
        expected = engine.rows(self._expected, decoder.n_vocab)
        self._progress.stage(f"Running {request.id}", 1)
        lost = loss.prove(
            request.target,
            request.scheme,
            folder,
            decoder,
            self._probe,
            expected,
            kv_cache=request.target.kv_cache or default_kv_cache(request.scheme, support.kv_caches),
            scratch=self._scratch,
        )
        gates = [self._structure[request.target.name], checked.gate, told.gate, *lost.gates]
        enforce(request.id, gates, "Choose more bits with --quant, or report this if the model is a common one.")
        self._progress.advance()
        proven = manifest.Proof(engine=lost.engine, tokens=len(self._probe.ids), gates=gates)
        evidence["tokens"] = told.figures
        evidence |= {"engine": lost.engine, "ids": self._probe.ids, "text": self._probe.text, "loss": lost.figures}
        return Verdict(proven, lost.self_test, evidence)

    @cached_property
    def _expected(self) -> Path:
        """The file with the reference's logits of the probe."""
        self._progress.stage("Computing the reference", self._weights.decoder.n_layers)
        path = self._scratch / "reference"
        engine.spool(self._weights, self._probe.ids, path, self._progress.advance)
        return path
