"""Build a bundle: source -> checkpoint -> family -> targets -> proof -> seal.

This is the whole way of a model through the packager; each step is a module of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgepack.bundle.files import Bundle, open_bundle
from edgepack.bundle.manifest import Manifest
from edgepack.device.hardware import detect
from edgepack.errors import EngineMissingError
from edgepack.isolation import probing
from edgepack.runtime import Support
from edgepack_packager import families, licence, proof, seal, source, work
from edgepack_packager.checkpoint import CONFIG, open_checkpoint
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.progress import Progress, Silent
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Model, Request
from edgepack_packager.text import golden, read_text
from edgepack_packager.text.compiled import compiled
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
    """Convert the model that ``source.find`` finds and seal the bundle at ``out``, ``./NAME.edgepack`` by default.

    Whatever can be refused without the weights is refused before they are fetched. Raises ``UsageError``,
    ``SourceError``, ``LicenceError``, ``OutputExistsError``, ``EngineMissingError``, ``ProofError`` or another
    ``BuildError``; in every case nothing is left at ``out``.
    """
    progress = progress or Silent()
    origin = source.find(name)
    config = read_object(origin.folder / CONFIG)
    decoder = families.describe(config, recipe.context)
    called = recipe.name or origin.name
    out = out or Path(f"{called}.edgepack")
    work.refuse_existing(out)
    source.fetch_text(origin)
    licence.check(licence.read_licence(origin.folder), name, called, recipe.accept_licence)
    # The element type is the weights' to say; it changes no scheme and little of the size.
    model = Model(called, decoder, "bf16", config, read_text(origin.folder, config, decoder))
    text = compiled(seal.text_of(model))
    model = replace(model, text=text)
    tokenizer = seal.tokenizer_of(text)
    vectors = golden.vectors(text, tokenizer, decoder.n_vocab, recipe.date)
    requests = recipe.requests(model)
    engines = _engines(requests, recipe.unproven)
    source.fetch_weights(origin, progress, source.Need("the bundle takes", out.parent, _size(requests, model)))
    with open_checkpoint(origin.folder) as checkpoint, work.folder(out) as scratch:
        weights = families.open_model(checkpoint, recipe.context)
        model = replace(model, dtype=weights.dtype)
        bundle = scratch / "bundle"
        prover = proof.Prover(weights, text, vectors, tokenizer, engines, scratch, progress)
        parts = _write_and_prove(requests, weights, model, prover, bundle / seal.VARIANTS, progress)
        manifest, identity = seal.seal(bundle, origin, checkpoint.files, model, vectors, recipe, parts)
        work.publish(bundle, out)
    return Built(out, identity, manifest)


def _size(requests: Sequence[Request], model: Model) -> int:
    """Return the bytes that the variants will take, as their targets measure them."""
    return sum(request.target.measure(model.decoder, model.dtype, request.scheme).data_bytes for request in requests)


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


def _engines(requests: Sequence[Request], unproven: bool) -> dict[str, Support]:
    """Return what each runtime that the requests need can do here, without those that cannot run.

    Each is asked in a child process, where a crash is only a reason.
    """
    hardware = detect()
    found = {}
    for name in sorted({request.target.runtime for request in requests}):
        support = probing.probe(name, hardware)
        if support.devices:
            found[name] = support
        elif not unproven:
            way = f"Install it with: {support.install}" if support.install else "Build on a machine that has it"
            raise EngineMissingError(
                f"The {name} engine must prove its variants, and cannot run here: {support.reason}",
                hint=f"{way}. Or seal them without proof: --unproven",
            )
    return found
