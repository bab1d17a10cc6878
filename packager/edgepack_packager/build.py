"""Build a bundle: source -> checkpoint -> family -> targets -> proof -> seal.

This is the whole way of a model through the packager; each step is a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree

from edgepack.bundle.files import Bundle, open_bundle
from edgepack.bundle.manifest import Manifest
from edgepack.device.hardware import detect
from edgepack.errors import EngineMissingError, ProofError
from edgepack.isolation import probing
from edgepack.runtime import Support
from edgepack_packager import families, foresight, licence, proof, seal, source, work
from edgepack_packager.checkpoint import CONFIG, open_checkpoint
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.families import quantised
from edgepack_packager.progress import Progress, Silent
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Model, Request
from edgepack_packager.text import generation, golden, read_text, warnings
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


class VariantsFailedError(ProofError):
    """Variants missed gates of the proof, and were not sealed.

    ``missed``: for each of them by its id, the end of a sentence for each gate. ``built``: the bundle of those that
    hold, None where none does. ``evidence``: the folder with all figures of those that failed.
    """

    def __init__(self, missed: Mapping[str, Sequence[str]], built: Built | None, evidence: Path) -> None:
        told = " ".join(f"{variant} failed the proof: {'; '.join(gates)}." for variant, gates in missed.items())
        rest = f"The rest is sealed in {built.path}." if built else "Nothing is sealed."
        super().__init__(
            f"{told} {rest}",
            hint=f"All figures are in {evidence}. Report a gate that is missed, unless it is your --max-kl.",
        )
        self.missed, self.built, self.evidence = missed, built, evidence


def build(name: str, recipe: Recipe, out: Path | None = None, *, progress: Progress | None = None) -> Built:
    """Convert the model that ``source.find`` finds and seal the bundle at ``out``, ``./NAME.edgepack`` by default.

    Whatever can be refused without the weights is refused before they are fetched. Raises ``UsageError``,
    ``SourceError``, ``LicenceError``, ``OutputExistsError``, ``EngineMissingError``, ``ProofError`` or another
    ``BuildError``; in every case but one nothing is left at ``out``: ``VariantsFailedError`` says which variants
    missed which gates, and has the bundle of those that hold, where one does.
    """
    progress = progress or Silent()
    origin = source.find(name)
    config = read_object(origin.folder / CONFIG)
    decoder = families.describe(config, recipe.context)
    called = recipe.name or origin.name
    out = out or Path(f"{called}.edgepack")
    work.refuse_existing(out)
    failed = work.evidence_of_failures(out)
    source.fetch_text(origin)
    licence.check(licence.read_licence(origin.folder), name, called, recipe.accept_licence)
    # The element type is the weights' to say; it changes no scheme and little of the size.
    text_side = read_text(origin.folder, config, decoder, chat=not recipe.no_chat)
    model = Model(called, decoder, "bf16", config, text_side)
    text = compiled(seal.text_of(model))
    model = replace(model, text=text)
    generation(text)  # what is wrong in it is refused now
    tokenizer = seal.tokenizer_of(text)
    vectors = golden.vectors(text, tokenizer, recipe.date)
    requests = recipe.requests(model)
    hardware = detect()
    supports = {name: probing.probe(name, hardware) for name in sorted({each.target.runtime for each in requests})}
    engines = _engines(supports, recipe.unproven)
    notes = [*families.notes(config), *text.notes]
    for sentence in (*notes, *warnings(text), foresight.obstacle(model, requests, hardware, supports)):
        if sentence:
            progress.warn(sentence)
    if quantised.declared(config) and (size := source.weights_size(origin)) is not None:
        quantised.refuse_size(origin.repository, config, size, decoder.n_parameters)
    source.fetch_weights(origin, progress, source.Need("the bundle takes", out.parent, _size(requests, model)))
    with open_checkpoint(origin.folder) as checkpoint, work.folder(out) as scratch:
        weights = families.open_model(checkpoint, recipe.context)
        for sentence in weights.notes:
            progress.warn(sentence)
        model = replace(model, dtype=weights.dtype)
        bundle = scratch / "bundle"
        prover = proof.Prover(weights, text, vectors, tokenizer, engines, scratch, progress, recipe.max_kl)
        parts = _write_and_prove(requests, weights, model, prover, bundle / seal.VARIANTS, progress)
        held = [part for part in parts if not part.verdict.missed]
        built = None
        if held:
            passed_over = [*notes, *weights.notes]
            manifest, identity = seal.seal(bundle, origin, checkpoint.files, model, vectors, recipe, held, passed_over)
            work.publish(bundle, out)
            built = Built(out, identity, manifest)
        lost = [part for part in parts if part.verdict.missed]
        seal.write_evidence(scratch / failed.name, lost)
        work.replace(scratch / failed.name, failed)
    if lost or built is None:
        raise VariantsFailedError({part.request.id: part.verdict.missed for part in lost}, built, failed)
    return built


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
    parts = []
    for request, done in zip(requests, written, strict=True):
        verdict = prover.variant(request, variants / request.id)
        if verdict.missed:
            rmtree(variants / request.id)
        parts.append(seal.Part(request, done, verdict))
    return parts


def _engines(supports: Mapping[str, Support], unproven: bool) -> dict[str, Support]:
    """Return those of the runtimes that can run here, each of which was asked in a child process.

    Raises ``EngineMissingError`` where one cannot, and its variants would have to be proven.
    """
    for name, support in supports.items():
        if not support.devices and not unproven:
            way = f"Install it with: {support.install}" if support.install else "Build on a machine that has it"
            raise EngineMissingError(
                f"The {name} engine must prove its variants, and cannot run here: {support.reason}",
                hint=f"{way}. Or seal them without proof: --unproven",
            )
    return {name: support for name, support in supports.items() if support.devices}
