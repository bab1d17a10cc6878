"""What a build settles before it touches a weight, so that whatever can be refused without them is refused at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgepack import extras
from edgepack.bundle import work
from edgepack.bundle.manifest import File
from edgepack.device.hardware import detect
from edgepack.errors import EdgepackError, EngineMissingError, SourceError, UsageError
from edgepack.isolation import probing
from edgepack.runtime import Support
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import (
    adapters,
    allocation,
    calibration,
    coarse,
    embedding,
    evidence,
    exporting,
    families,
    foresight,
    licence,
    seal,
    source,
)
from edgepack_packager.adapters import Asked
from edgepack_packager.calibration import dictation
from edgepack_packager.calibration.text import AUTO, Corpus
from edgepack_packager.checkpoint import CONFIG
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.exporting import Exporter, environment
from edgepack_packager.families import quantised
from edgepack_packager.families.gguf import GgufWeights
from edgepack_packager.families.mapping import MappedWeights
from edgepack_packager.progress import Progress
from edgepack_packager.proof import held_out, probe, reading, receipt
from edgepack_packager.proof.held_out import HeldOut
from edgepack_packager.proof.outlived import Adapted
from edgepack_packager.proof.prover import Prover
from edgepack_packager.recipe import Recipe
from edgepack_packager.source import Source
from edgepack_packager.targets import FLOAT_BITS, Model, Request
from edgepack_packager.text import generation, golden, read_text, thinking, warnings
from edgepack_packager.text.compiled import compiled
from edgepack_packager.text.golden import Vectors

_OR = "Or leave their targets out with --target, or seal them without proof: --unproven"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A build whose weights are not there yet: what it makes, of what, with which engines, and where.

    ``model`` has the element type "bf16" until the weights say theirs, which changes no scheme and little of the size.
    ``failed`` is the folder for the evidence of variants that fail, ``notes`` what was passed over in the source,
    ``adapters`` what is merged into it. ``force`` replaces an older bundle at ``out``. ``corpus`` is what it calibrates
    with, ``passes`` its token ids, see ``calibration.importance``; ``speaker`` is the variant that writes that text,
    where the model does; ``held_out`` is what variants are judged on.
    """

    origin: Source
    recipe: Recipe
    out: Path
    failed: Path
    model: Model
    tokenizer: Tokenizer
    vectors: Vectors
    requests: Sequence[Request]
    engines: Mapping[str, Support]
    notes: Sequence[str]
    adapters: Sequence[Asked] = ()
    force: bool = False
    corpus: Corpus | None = None
    passes: Sequence[Sequence[Sequence[int]]] = ()
    held_out: HeldOut | None = None
    speaker: Request | None = None

    def plain(self, request: Request) -> Request | None:
        """Return the plain scheme in the bytes of a variant, which is measured beside it and not sealed.

        Of a calibrated scheme the same one; of a variant with forms of its own the largest that takes no more bytes, or
        the smallest. None for a plain scheme, where the one in these bytes makes nonsense of a model without a
        calibration, and where no text is held out.
        """
        if self.held_out is None or not (request.calibrated or request.called):
            return None
        if request.called:
            return self._nearest(request)
        return None if request.scheme in request.target.needs_calibration else replace(request, scales="own")

    def _nearest(self, request: Request) -> Request:
        target, decoder, dtype = request.target, self.model.decoder, self.model.dtype
        most = request.measure(decoder, dtype).tensor_bytes
        schemes = [name for name, bits in target.schemes.items() if bits < FLOAT_BITS and name not in target.for_grids]
        sizes = {
            name: target.measure(decoder, dtype, name).tensor_bytes
            for name in schemes
            if not coarse.is_coarse(target, name)
        }
        scheme = min(sizes, key=lambda name: (sizes[name] > most, abs(sizes[name] - most)))
        return Request(target, scheme, scheme, called=f"{request.called}={scheme}")  # no name that a recipe may give

    @property
    def size(self) -> int:
        """The bytes that the variants will take, as their targets measure them, those that are not sealed included."""
        model, written = self.model, [*self.requests, *filter(None, map(self.plain, self.requests))]
        return sum(each.measure(model.decoder, model.dtype).data_bytes for each in written)

    @property
    def fed(self) -> frozenset[str]:
        """The matrices whose errors are made good in some variant."""
        decoder, dtype = self.model.decoder, self.model.dtype
        return frozenset().union(*(each.fed(decoder, dtype) for each in self.requests))

    @property
    def room(self) -> int:
        """The bytes of logits that measuring on the held-out text takes for a while."""
        return receipt.room(self.held_out, self.model.decoder.n_vocab) if self.held_out else 0

    def prover(
        self, weights: Weights, files: Sequence[File], scratch: Path, progress: Progress, model: Model
    ) -> Prover:
        """Return the proof over the weights of these files, which writes what it needs into ``scratch``.

        ``model`` is what is written.
        """
        text, limit = seal.text_of(self.model), self.recipe.max_kl
        adapted = None
        if isinstance(weights, MappedWeights) and self.adapters:
            adapted = Adapted(weights.unchanged, weights.changed, [each.scale for each in self.adapters])
        return Prover(
            weights,
            files,
            text,
            self.vectors,
            self.tokenizer,
            self.engines,
            scratch,
            progress,
            max_kl=limit,
            importance=model.importance,
            feedback=model.feedback,
            calibrating=self.passes[0][0] if self.passes else (),
            adapted=adapted,
            held_out=self.held_out,
            embedding=model.embedding,
            unproven=self.recipe.unproven,
        )

    def compared(self, weights: Weights, scratch: Path, progress: Progress) -> list[str]:
        """Hold what was read of a GGUF file to llama.cpp, and return a sentence of it; nothing for another source."""
        file, model = self.origin.file, self.model
        if file is None or not isinstance(weights, GgufWeights) or self.recipe.unproven:
            return []
        progress.stage(f"Comparing {file.name} with llama.cpp", 1)
        ids = probe.make(weights.decoder, self.tokenizer).ids
        told = reading.prove(weights, seal.text_of(model), self.vectors, self.tokenizer, ids, scratch)
        progress.warn(told)
        return [told]


def prepare(name: str, recipe: Recipe, out: Path | None, progress: Progress, force: bool = False) -> Prepared:
    """Settle all that needs no weights; arguments and errors are those of ``build.build``."""
    try:
        return _prepare(name, recipe, out, progress, force)
    except OSError as error:
        if isinstance(error, EdgepackError):
            raise
        place = error.filename or name
        raise SourceError(f"{place} cannot be read: {error.strerror}.", hint="Check its path and its rights.") from None


def _prepare(name: str, recipe: Recipe, out: Path | None, progress: Progress, force: bool) -> Prepared:
    origin = source.find(name)
    config = read_object(origin.folder / CONFIG)
    if recipe.exporter is not None:
        return _for_export(name, exporting.find(recipe.exporter), origin, config, recipe, out, progress, force)
    decoder = families.describe(config, recipe.context)
    asked = [adapters.asked(text) for text in recipe.adapters]
    if asked and origin.file is not None:
        raise UsageError(
            f"--adapter was given with {origin.file.name}: they are merged into a checkpoint, not into a GGUF file.",
            hint="Build the checkpoint that the file was made from.",
        )
    with adapters.opened(asked, families.stored(config, decoder), origin.repository or origin.name) as merged:
        notes = [*origin.notes, *families.notes(config), *merged.notes]
    called, out, failed = _placed(name, origin, recipe, out, force)
    model = Model(called, decoder, "bf16", config)
    model = replace(model, decoder=embedding.described(model, origin, recipe))
    model, tokenizer, vectors = _with_text(model, origin, recipe)
    decoder, text = model.decoder, seal.text_of(model)
    given = None if recipe.table is None else allocation.table.read(Path(recipe.table))
    requests = recipe.requests(model, given)
    named = recipe.text(given)
    corpus = None if named in (None, AUTO) else calibration.text.read(named)
    told = [] if corpus is None else calibration.told(corpus, tokenizer, text, vectors.chat)
    passes = [] if corpus is None else calibration.passes(corpus, told, decoder.context)
    judged = None
    if not recipe.unproven and model.embedding is None:
        payloads = len(requests) + sum(each.calibrated or bool(each.called) for each in requests)
        judged = held_out.choose(recipe.receipt, corpus, told, tokenizer, decoder, payloads)
    hardware = detect()
    supports = {name: probing.probe(name, hardware) for name in sorted({each.target.runtime for each in requests})}
    engines = _engines(supports, recipe.unproven)
    speaker = dictation.speaker(requests, engines, model) if named == AUTO else None
    notes += text.notes
    silent = vectors.chat is not None and vectors.chat.thinking is None
    doubt = thinking.doubt(origin.repository or origin.name) if silent else None
    for sentence in (*notes, *warnings(text), doubt, foresight.obstacle(model, requests, hardware, supports)):
        if sentence:
            progress.warn(sentence)
    if quantised.declared(config) and (size := source.weights_size(origin)) is not None:
        quantised.refuse_size(origin.repository, config, size, decoder.n_parameters)
    return Prepared(
        origin,
        recipe,
        out,
        failed,
        model,
        tokenizer,
        vectors,
        requests,
        engines,
        notes,
        adapters=asked,
        force=force,
        corpus=corpus,
        passes=passes,
        held_out=judged,
        speaker=speaker,
    )


def _for_export(
    name: str,
    exporter: Exporter,
    origin: Source,
    config: Mapping[str, Any],
    recipe: Recipe,
    out: Path | None,
    progress: Progress,
    force: bool,
) -> Prepared:
    """Settle what an exporter is to make: no request of a target, and a decoder of which only the sizes are known."""
    if origin.file is not None:
        raise UsageError(
            f"--exporter was given with {origin.file.name}: exporters read checkpoints.",
            hint="Build the checkpoint that the file was made from.",
        )
    exporting.scheme(exporter, recipe)
    decoder = exporting.describe(config, exporter.reads, recipe.context)
    environment.refuse(exporter.lock)
    called, out, failed = _placed(name, origin, recipe, out, force)
    embedding.refuse_export(origin)
    model, tokenizer, vectors = _with_text(Model(called, decoder, "f32", config), origin, recipe)
    engines = _engines({exporter.format.runtime: probing.probe(exporter.format.runtime, detect())})
    notes = [*origin.notes, *seal.text_of(model).notes]
    for sentence in (*notes, *warnings(seal.text_of(model)), exporting.needless(exporter, config)):
        if sentence:
            progress.warn(sentence)
    return Prepared(origin, recipe, out, failed, model, tokenizer, vectors, (), engines, notes, force=force)


def _placed(name: str, origin: Source, recipe: Recipe, out: Path | None, force: bool) -> tuple[str, Path, Path]:
    """Return the bundle's name, its folder and that of failures, once it may be written and its terms are accepted."""
    called = recipe.name or origin.name
    out = out or Path(f"{called}.edgepack")
    work.refuse_existing(out, force)
    failed = evidence.evidence_of_failures(out)
    source.fetch_text(origin)
    source.refuse_unsigned(origin, recipe.source_key)
    licence.check(licence.read_licence(origin.folder), name, called, recipe.accept_licence)
    return called, out, failed


def _with_text(model: Model, origin: Source, recipe: Recipe) -> tuple[Model, Tokenizer, Vectors]:
    """Return a model with the text side of its source, the tokenizer that devices will use, and the vectors."""
    embeds = bool(model.decoder.headless)
    read = read_text(origin.folder, model.config, model.decoder, chat=not (recipe.no_chat or embeds), embeds=embeds)
    text = compiled(seal.text_of(replace(model, text=read)))
    generation(text)  # what is wrong in it is refused now
    tokenizer = seal.tokenizer_of(text)
    vectors = golden.vectors(text, tokenizer, recipe.date, recipe.thinks)
    recipe.check_chat(vectors.chat)
    model = replace(model, text=text)
    if embeds:
        made, text = embedding.read(origin, model.decoder, text, tokenizer)
        model = replace(model, text=text, embedding=made)
    return model, tokenizer, vectors


def _engines(supports: Mapping[str, Support], unproven: bool | None = None) -> dict[str, Support]:
    """Return the runtimes that prove their variants, each of which was asked in a child process; unproven, none does.

    ``unproven`` is None where that cannot be asked for.

    Raises ``EngineMissingError`` where one of them cannot run here.
    """
    if unproven:
        return {}
    absent = {name: support for name, support in supports.items() if not support.devices}
    if absent:
        reasons = " ".join(f"{name}: {support.reason}" for name, support in absent.items())
        installs = [support.install for support in absent.values() if support.install]
        way = f"Install with: {extras.together(installs)}" if installs else "Build on a machine that has them"
        raise EngineMissingError(
            f"The engines of all targets must prove their variants, and some cannot run here: {reasons}",
            hint=f"{way}." if unproven is None else f"{way}. {_OR}",
        )
    return dict(supports)
