"""Build a bundle: prepare -> checkpoint -> family -> targets -> proof -> seal.

This is the whole way of a model through the packager; each step is a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from types import MappingProxyType

import numba  # noqa: F401  # what the proof compiles its loops with: where it is missing, no build begins
from threadpoolctl import ThreadpoolController

from edgepack.bundle import work
from edgepack.bundle.files import DRAFT, Bundle, open_bundle
from edgepack.bundle.manifest import File, Manifest
from edgepack.bundle.receipt import Receipt
from edgepack.errors import ProofError
from edgepack_packager import (
    adapters,
    calibration,
    coarse,
    evidence,
    exporting,
    families,
    reference,
    seal,
    source,
    spoken,
)
from edgepack_packager.allocation import Allocation
from edgepack_packager.allot import Allotment
from edgepack_packager.arithmetic.repeatable import REPEATABLE
from edgepack_packager.calibration import feedback
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.draft import prepare_draft
from edgepack_packager.exporting import Exporter, environment
from edgepack_packager.prepare import Prepared, prepare
from edgepack_packager.progress import Progress, Silent, Within
from edgepack_packager.proof import probe
from edgepack_packager.proof.prover import Prover
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write

_POOLS = ThreadpoolController()  # it reads which libraries this process has, and numpy's is there by now


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


def build(
    name: str, recipe: Recipe, out: Path | None = None, *, force: bool = False, progress: Progress | None = None
) -> Built:
    """Convert the model that ``source.find`` finds and seal the bundle at ``out``, ``./NAME.edgepack`` by default.

    With ``force`` an older bundle at ``out`` is replaced, once the new one is sealed. Whatever can be refused without
    the weights is refused before they are fetched. Raises ``UsageError``, ``SourceError``, ``LicenceError``,
    ``OutputExistsError``, ``EngineMissingError``, ``ProofError`` or another ``BuildError``; in every case but one
    ``out`` is left as it was: ``VariantsFailedError`` says which variants missed which gates, and has the bundle of
    those that hold, where one does.
    """
    progress = progress or Silent()
    # The threads of BLAS spin while they wait for work, and the products here are small or beside other work.
    with _POOLS.limit(limits=1, user_api="blas"):
        ready = prepare(name, recipe, out, progress, force)
        if recipe.exporter is not None:
            with work.refusals(ready.out):
                return _export(ready, exporting.find(recipe.exporter), progress)
        small = prepare_draft(ready, recipe, progress)
        with work.refusals(ready.out):
            return _build(ready, progress, small)


def _build(ready: Prepared, progress: Progress, small: Prepared | None = None) -> Built:
    beside = ready.out.parent
    needs = [
        source.Need("the bundle takes", beside, ready.size),
        source.Need("its receipt", beside, ready.room),
        source.Need("its calibration", beside, feedback.room(ready.model.decoder, ready.fed)),
    ]
    source.fetch_weights(ready.origin, progress, *needs)
    with (
        source.open_weights(ready.origin) as checkpoint,
        adapters.opened(ready.adapters, families.stored(checkpoint.config, ready.model.decoder)) as merged,
        work.folder(ready.out, ready.force) as scratch,
    ):
        embeds = ready.model.embedding is not None
        context = ready.model.decoder.context if embeds else ready.recipe.context
        weights = families.open_model(checkpoint, context, merged.changes, headless=embeds)
        for sentence in weights.notes:
            progress.warn(sentence)
        coarse.refuse(ready.requests, weights)
        files = [seal.file_of(path, path.parent) for path in source.described(ready.origin, checkpoint)]
        signed = _as_signed(ready, files, progress)
        model = replace(ready.model, dtype=weights.dtype)
        if any(request.target.kv_cache == "q8" for request in ready.requests):
            progress.stage("Measuring keys and values", weights.decoder.n_layers)
            ids = probe.calibration(weights.decoder, ready.vectors)
            scales = reference.cache_scales(weights, ids, progress.advance, REPEATABLE)
            model = replace(model, cache_scales=scales)
        if ready.speaker is not None:
            ready = spoken.written(ready, ready.speaker, weights, model, scratch, progress)
        if ready.corpus is not None:
            progress.stage(f"Calibrating with {ready.corpus.name}", weights.decoder.n_layers * len(ready.passes))
            moments = feedback.Moments(scratch / "moments", ready.fed)
            counts = calibration.importance(weights, ready.passes, progress.advance, moments.see)
            model = replace(model, importance=counts, feedback=moments.finish())
        bundle = scratch / "bundle"
        draft = None if small is None else _build_draft(small, bundle, progress)
        files += seal.files_of_adapters(ready.adapters)
        compared = ready.compared(weights, scratch, progress)
        allotment = Allotment(ready, weights, model, progress)
        prover = ready.prover(weights, files, scratch, progress, model)

        def made(requests: Sequence[Request]) -> list[seal.Part]:
            return _write_and_prove(ready, requests, weights, model, prover, bundle / seal.VARIANTS, progress)

        prover.structure(allotment.requests)
        parts = made(allotment.requests)
        parts = [allotment.settled(part, lambda request: made([request])[0]) for part in parts]
        receipt = prover.receipt([part.verdict for part in parts if not part.verdict.missed])
        notes = [*ready.notes, *weights.notes, *signed, *compared, *allotment.notes]
        return _sealed(ready, parts, scratch, model, files, notes, draft=draft, receipt=receipt, made=allotment.made)


def _export(ready: Prepared, exporter: Exporter, progress: Progress) -> Built:
    """Have an exporter write the variant, prove it, and seal it."""
    size = 4 * ready.model.decoder.n_parameters
    source.fetch_weights(ready.origin, progress, source.Need("the bundle takes", ready.out.parent, 2 * size))
    with open_checkpoint(ready.origin.folder) as checkpoint, work.folder(ready.out, ready.force) as scratch:
        files = [seal.file_of(path, path.parent) for path in source.described(ready.origin, checkpoint)]
        signed = _as_signed(ready, files, progress)
        python = environment.ready(exporter.lock, progress)
        probing = probe.make(ready.model.decoder, ready.tokenizer, ready.model.decoder.context)
        scheme = exporting.scheme(exporter, ready.recipe)
        progress.stage(f"Exporting with {exporter.name}, in its environment", 1)
        made = exporting.export(exporter, scheme, python, checkpoint, ready.model.decoder, probing, scratch)
        progress.stage(f"Proving {made.export.id} against transformers", 1)
        verdict = exporting.prove(made, checkpoint, probing, scratch)
        for sentence in verdict.notes:
            progress.warn(sentence)
        variant = scratch / "bundle" / seal.VARIANTS / made.export.id
        variant.parent.mkdir(parents=True)
        made.folder.rename(variant)
        part = seal.Part(made.export, exporting.sizes(exporter, variant), verdict)
        model = replace(ready.model, decoder=made.decoder)
        return _sealed(ready, [part], scratch, model, files, [*ready.notes, *signed])


def _as_signed(ready: Prepared, files: Sequence[File], progress: Progress) -> list[str]:
    """Return a sentence of the source's signature, and tell it. Raises as ``source.as_signed``."""
    told = source.as_signed(ready.origin, files, ready.recipe.source_key)
    for sentence in told:
        progress.warn(sentence)
    return told


def _sealed(
    ready: Prepared,
    parts: Sequence[seal.Part],
    scratch: Path,
    model: Model,
    files: Sequence[File],
    notes: Sequence[str],
    *,
    draft: str | None = None,
    receipt: Receipt | None = None,
    made: Mapping[str, Allocation] = MappingProxyType({}),
) -> Built:
    """Seal the variants that hold, where any does, and keep the figures of those that do not; see ``seal.seal``.

    Raises ``VariantsFailedError`` where one does not hold.
    """
    bundle, built = scratch / "bundle", None
    if held := [part for part in parts if not part.verdict.missed]:
        told = [*notes, *(note for part in held for note in part.verdict.notes)]
        manifest, identity = seal.seal(
            bundle,
            ready.origin,
            files,
            model,
            ready.vectors,
            ready.recipe,
            held,
            told,
            draft,
            ready.corpus,
            receipt,
            made,
        )
        work.publish(bundle, ready.out, ready.force)
        built = Built(ready.out, identity, manifest)
    lost = [part for part in parts if part.verdict.missed]
    seal.write_evidence(scratch / ready.failed.name, lost)
    evidence.replace(scratch / ready.failed.name, ready.failed)
    if lost or built is None:
        raise VariantsFailedError({part.request.id: part.verdict.missed for part in lost}, built, ready.failed)
    return built


def _build_draft(small: Prepared, bundle: Path, progress: Progress) -> str:
    """Build the draft model into the bundle's folder and return its id. All of its variants must hold."""
    bundle.mkdir()
    try:
        return _build(replace(small, out=bundle / DRAFT), Within(progress, DRAFT)).id
    except VariantsFailedError as error:
        missed = {f"{DRAFT}/{variant}": gates for variant, gates in error.missed.items()}
        raise VariantsFailedError(missed, None, small.failed) from None


def _write_and_prove(
    ready: Prepared,
    requests: Sequence[Request],
    weights: Weights,
    model: Model,
    prover: Prover,
    variants: Path,
    progress: Progress,
) -> list[seal.Part]:
    beside = {request.id: plain for request in requests if (plain := ready.plain(request))}
    progress.stage("Writing " + ", ".join(request.id for request in requests), weights.decoder.n_parameters)
    written = write(weights, [*requests, *beside.values()], variants, model, progress.advance)
    parts = []
    for request, done in zip(requests, written[: len(requests)], strict=True):
        plain = beside.get(request.id)
        payload = None if plain is None else (plain, variants / plain.id)
        verdict = prover.variant(request, variants / request.id, payload)
        for sentence in verdict.notes:
            progress.warn(sentence)
        if verdict.missed:
            rmtree(variants / request.id)
        parts.append(seal.Part(request, done, verdict))
    for plain in beside.values():
        rmtree(variants / plain.id)
    return parts
