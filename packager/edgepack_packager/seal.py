"""Seal a bundle: the files that all variants share, the evidence, and last of all the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import msgspec

from edgepack.bundle import manifest as manifests
from edgepack.bundle import receipt as receipts
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.embedding import VectorTest
from edgepack.bundle.files import DRAFT
from edgepack.bundle.manifest import EXPORTED, KV_CACHE, KV_CACHE_Q8, LOSS, VERSION, File, Manifest, Schema
from edgepack.bundle.receipt import Receipt
from edgepack.errors import SourceError
from edgepack.text.tables import FILE, decode
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import adapters, allocation, licence, provenance
from edgepack_packager.adapters import Asked as Adapter
from edgepack_packager.allocation import Allocation
from edgepack_packager.calibration.text import Corpus
from edgepack_packager.licence import Licence
from edgepack_packager.proof.prover import Verdict
from edgepack_packager.recipe import Recipe
from edgepack_packager.source import Source
from edgepack_packager.targets import Format, Model, Request, Written
from edgepack_packager.text import entries, generation, stops
from edgepack_packager.text.golden import Vectors
from edgepack_packager.text.side import Text

MANIFEST = "manifest.json"
VARIANTS = "variants"
EVIDENCE = "evidence"


def tokenizer_of(text: Text) -> Tokenizer:
    """Return the SDK's tokenizer over the compiled file: the one that a device will use."""
    return Tokenizer(decode(text.files[FILE]), text.bos, text.add_bos)


class Asked(Protocol):
    """What a variant was made for: a ``Request``, or what an exporter was asked for."""

    @property
    def id(self) -> str: ...

    @property
    def asked(self) -> str: ...

    @property
    def scheme(self) -> str: ...

    @property
    def packages(self) -> Mapping[str, str]: ...

    @property
    def target(self) -> Format: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A finished variant: what was asked, what its writer reports, what the proof says."""

    request: Asked
    written: Written
    verdict: Verdict


def seal(
    bundle: Path,
    origin: Source,
    source_files: Sequence[File],
    model: Model,
    vectors: Vectors,
    recipe: Recipe,
    parts: Sequence[Part],
    notes: Sequence[str] = (),
    draft: str | None = None,
    corpus: Corpus | None = None,
    receipt: Receipt | None = None,
    made: Mapping[str, Allocation] = MappingProxyType({}),
) -> tuple[Manifest, str]:
    """Complete a bundle whose variants are written and proven; return its manifest and its id.

    ``source_files`` are config.json, the weights and the adapters, ``notes`` what was passed over in the source,
    ``draft`` is the id of the bundle in its folder "draft", ``corpus`` what variants were calibrated with, ``receipt``
    what they lost on a held-out text, ``made`` how their forms were chosen, by id. Adds the text side, the licence, the
    model card, the evidence, the receipt, the recipe of forms and the documents of
    ``provenance``, and writes the manifest last.
    """
    text = text_of(model)
    for name, data in text.files.items():
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_bytes(data)
    terms = licence_of(origin, recipe, model.name)
    write_evidence(bundle / EVIDENCE, parts)
    if corpus is not None and corpus.kept is not None:
        (bundle / EVIDENCE / corpus.kept).write_text(corpus.text, "utf-8", newline="\n")
    if receipt is not None:
        (bundle / receipts.FILE).write_bytes(receipts.encode(receipt))
    used = (corpus.name, corpus.sha256) if corpus else None
    requests = [part.request for part in parts if isinstance(part.request, Request)]
    if recipe_of_forms := allocation.recipe(requests, made, model, used):
        (bundle / allocation.table.FILE).write_text(recipe_of_forms, "utf-8", newline="\n")
    decoder = model.decoder
    proven = all(part.verdict.proof for part in parts)
    manifest = Manifest(
        schema=Schema(VERSION, _features(vectors, parts, decoder, draft, recipe.sequence)),
        name=model.name,
        version=recipe.version,
        producer=_producer(recipe, model, parts, notes, corpus, receipt),
        source=manifests.Source(
            name=origin.name,
            repository=origin.repository,
            revision=origin.revision,
            files=list(source_files),
        ),
        license=licence.carry(terms, origin.folder, bundle, _described(origin), recipe.accept_licence),
        decoder=decoder,
        tokenizer=manifests.Tokenizer(
            rows=len(entries(text.tokenizer)), bos=text.bos, add_bos=text.add_bos, probes=vectors.probes
        ),
        stops=stops(text, model.config),
        chat=vectors.chat,
        generation=generation(text, thinks=vectors.chat is not None and vectors.chat.thinking is not None),
        context=manifests.Context(
            trained=decoder.trained_context,
            profile=decoder.context,
            verified=decoder.context if proven else 0,
            kv_values_per_token=decoder.kv_values_per_token,
        ),
        files=[file for file in files_of(bundle) if file.path.split("/")[0] not in (VARIANTS, DRAFT)],
        variants=[_variant(part, decoder, bundle / VARIANTS / part.request.id) for part in parts],
        draft=draft,
        embedding=model.embedding,
        sequence=recipe.sequence,
    )
    return finish(bundle, manifest, receipt)


def finish(bundle: Path, manifest: Manifest, receipt: Receipt | None) -> tuple[Manifest, str]:
    """Add the documents of where a bundle comes from, and write its manifest; return that and the bundle's id."""
    documents = provenance.documents(manifest, receipt)
    for name, document in documents.items():
        (bundle / name).write_bytes(document)
    manifest = provenance.listed(manifest, documents)
    data = manifests.encode(manifest)
    (bundle / MANIFEST).write_bytes(data)
    return manifest, hashlib.sha256(data).hexdigest()


def licence_of(origin: Source, recipe: Recipe, name: str) -> Licence:
    """Return the licence of a source, or the one that was given for it, in a bundle of that name."""
    found = licence.read_licence(origin.folder)
    return found if recipe.licence is None else licence.given(found, Path(recipe.licence), name)


def write_evidence(folder: Path, parts: Sequence[Part]) -> None:
    """Write all figures of each variant into a new folder: ``<variant>.json``."""
    folder.mkdir()
    for part in parts:
        evidence = msgspec.json.encode(part.verdict.evidence)
        (folder / f"{part.request.id}.json").write_bytes(msgspec.json.format(evidence, indent=1) + b"\n")


def text_of(model: Model) -> Text:
    """Return the model's text side. Raises ``SourceError`` for a source without a tokenizer."""
    if model.text is None:
        raise SourceError(f"{model.name} has no tokenizer.json.", hint="Fetch the model's tokenizer files as well.")
    return model.text


def _features(vectors: Vectors, parts: Sequence[Part], decoder: Decoder, draft: str | None, sequence: int) -> list[str]:
    caches = {part.request.target.kv_cache for part in parts}
    cache = [KV_CACHE] if caches - {None} else []
    cache += [KV_CACHE_Q8] if "q8" in caches else []
    loss = [LOSS] if any(part.verdict.proof and part.verdict.proof.loss for part in parts) else []
    exported = [EXPORTED] if decoder.exported else []
    exported += [manifests.EMBEDDING] if decoder.headless else []
    chat = vectors.chat.features if vectors.chat else []
    released = [manifests.SEQUENCE] if sequence else []
    return [*cache, *loss, *exported, *chat, *([manifests.DRAFT] if draft else []), *released]


def _producer(
    recipe: Recipe,
    model: Model,
    parts: Sequence[Part],
    notes: Sequence[str],
    corpus: Corpus | None,
    receipt: Receipt | None,
) -> manifests.Producer:
    unusual: dict[str, str | int | list[str]] = {} if recipe.kv_cache == "f32" else {"kv_cache": recipe.kv_cache}
    unusual |= {} if recipe.max_kl is None else {"max_kl": f"{recipe.max_kl:.12g}"}
    unusual |= {"no_chat": 1} if recipe.no_chat else {}
    unusual |= {"draft": 1} if recipe.draft else {}
    unusual |= {"exporter": recipe.exporter} if recipe.exporter else {}
    unusual |= {"recipe": 1} if recipe.table else {}
    unusual |= {"thinks": 1} if recipe.thinks else {}
    unusual |= {"licence": 1} if recipe.licence else {}
    unusual |= {"adapters": [adapters.asked(text).name for text in recipe.adapters]} if recipe.adapters else {}
    unusual |= {"quality": recipe.quality} if recipe.quality else {}
    unusual |= {"calibrate": corpus.name, "calibrate_sha256": corpus.sha256} if corpus else {}
    requests = [part.request for part in parts if isinstance(part.request, Request)]
    fed = [request.id for request in requests if request.fed(model.decoder, model.dtype)]
    unusual |= {"error_feedback": fed} if fed else {}
    unusual |= {"receipt": receipt.text.name} if recipe.receipt and receipt else {}
    unusual |= {"notes": list(notes)} if notes else {}
    packages = {name: version(name) for name in ("numpy", "tokenizers", "jinja2")}
    for part in parts:
        packages |= part.request.packages
    return manifests.Producer(
        edgepack=version("edgepack"),
        packages=dict(sorted(packages.items())),
        recipe={
            "targets": list(recipe.targets),
            "quants": list(recipe.quants),
            "context": model.decoder.context,
            "unproven": int(recipe.unproven),
            **unusual,
        },
    )


def _variant(part: Part, decoder: Decoder, folder: Path) -> manifests.Variant:
    request, written, target, test = part.request, part.written, part.request.target, part.verdict.self_test
    return manifests.Variant(
        id=request.id,
        target=target.name,
        runtime=target.runtime,
        floor=target.floor(decoder),
        kv_cache=target.kv_cache,
        quantization=manifests.Quantization(
            asked=request.asked,
            scheme=request.scheme,
            bits=written.bits(decoder),
            fallbacks=list(written.fallbacks),
        ),
        weights_bytes=written.weights_bytes,
        loading_bytes=written.loading_bytes,
        files=files_of(folder),
        proof=part.verdict.proof,
        self_test=test if isinstance(test, manifests.SelfTest) else None,
        vector_test=test if isinstance(test, VectorTest) else None,
    )


def files_of(folder: Path) -> list[File]:
    """Return the manifest's entries of all files below a folder, sorted by path."""
    return [file_of(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]


def file_of(path: Path, folder: Path) -> File:
    """Return the manifest's entry of a file: its path relative to ``folder``, its size in bytes and its sha256."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return File(path=path.relative_to(folder).as_posix(), size=file.tell(), sha256=digest.hexdigest())


def files_of_adapters(asked: Sequence[Adapter]) -> list[File]:
    """Return the manifest's entries of the files of adapters: ``adapters/1/adapter_config.json``, and so on."""
    return [
        msgspec.structs.replace(file, path=f"adapters/{number}/{file.path}")
        for number, each in enumerate(asked, 1)
        for file in (file_of(path, each.folder) for path in each.files)
    ]


def _described(origin: Source) -> str:
    if origin.repository is None:
        return origin.name
    return f"{origin.repository} at {origin.revision}" if origin.revision else origin.repository
