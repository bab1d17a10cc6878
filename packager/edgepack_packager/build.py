"""Build a bundle: source -> checkpoint -> family -> targets -> proof -> seal.

This is the whole way of a model through the packager; each step is a module of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack import runtime
from edgepack.bundle import Bundle, open_bundle
from edgepack.errors import EngineMissingError
from edgepack.hardware import detect
from edgepack.manifest import Manifest
from edgepack_packager import families, proof, seal, source, work
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.progress import Progress, Silent
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Model, Request
from edgepack_packager.text import read_text
from edgepack_packager.weights import Weights
from edgepack_packager.write import write


@dataclass(frozen=True, slots=True)
class Built:
    """A sealed bundle: its folder, its id (the sha256 of its manifest) and its manifest."""

    path: Path
    id: str
    manifest: Manifest

    def open(self) -> Bundle:
        """Open the bundle, which hashed every file a moment ago."""
        return open_bundle(self.path, verify="sizes")


def build(name: str, recipe: Recipe, out: Path | None = None, *, progress: Progress | None = None) -> Built:
    """Convert the model that ``source.resolve`` finds and seal the bundle at ``out``, ``./NAME.edgepack`` by default.

    Raises ``UsageError``, ``SourceError``, ``OutputExistsError``, ``EngineMissingError``, ``ProofError`` or another
    ``BuildError``; in every case nothing is left at ``out``.
    """
    progress = progress or Silent()
    origin = source.resolve(name)
    out = out or Path(f"{origin.name}.edgepack")
    work.refuse_existing(out)
    with open_checkpoint(origin.folder) as checkpoint:
        weights = families.open_model(checkpoint, recipe.context)
        text = read_text(origin.folder, checkpoint.config, weights.decoder)
        model = Model(origin.name, weights.decoder, weights.dtype, checkpoint.config, text)
        tokenizer = seal.tokenizer_of(seal.text_of(model))
        requests = recipe.requests(model)
        engines = _engines(requests, recipe.unproven)
        with work.folder(out) as scratch:
            bundle = scratch / "bundle"
            prover = proof.Prover(weights, tokenizer, engines, scratch, progress)
            parts = _write_and_prove(requests, weights, model, prover, bundle / seal.VARIANTS, progress)
            manifest, identity = seal.seal(bundle, origin, checkpoint.files, model, tokenizer, recipe, parts)
            work.publish(bundle, out)
    return Built(out, identity, manifest)


def _write_and_prove(
    requests: Sequence[Request],
    weights: Weights,
    model: Model,
    prover: proof.Prover,
    variants: Path,
    progress: Progress,
) -> list[seal.Part]:
    prover.structure(requests)
    progress.stage("Writing " + ", ".join(request.id for request in requests), weights.decoder.n_parameters)
    written = write(weights, requests, variants, model, progress.advance)
    return [
        seal.Part(request, done, prover.variant(request, variants / request.id))
        for request, done in zip(requests, written, strict=True)
    ]


def _engines(requests: Sequence[Request], unproven: bool) -> dict[str, runtime.Support]:
    """Return what each runtime that the requests need can do here, without those that cannot run."""
    hardware = detect()
    found = {}
    for name in sorted({request.target.runtime for request in requests}):
        support = runtime.find(name).probe(hardware)
        if support.devices:
            found[name] = support
        elif not unproven:
            way = f"Install it with: {support.install}" if support.install else "Build on a machine that has it"
            raise EngineMissingError(
                f"The {name} engine must prove its variants, and cannot run here: {support.reason}",
                hint=f"{way}. Or seal them without proof: --unproven",
            )
    return found
