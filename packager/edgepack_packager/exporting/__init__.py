"""Exporters write payloads of models that edgepack has no family for, proven against transformers in its place.

An exporter is a package of others with dependencies that exclude edgepack's: it runs in an environment of its own
(``environment``), shut in (``sandbox``), as a small program (``inside/``). What that computed with transformers, in
float32, is what the payload is then held to through edgepack's own runtime: there is no reference of such a model here.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from edgepack.bundle import manifest
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Gate
from edgepack.device.hardware import detect
from edgepack.errors import BuildError, EngineError, SourceError, UsageError
from edgepack_packager import families
from edgepack_packager.checkpoint import CONFIG, INDEX, Checkpoint
from edgepack_packager.exporting import sandbox, weights
from edgepack_packager.exporting.config import describe as describe
from edgepack_packager.exporting.environment import Lock
from edgepack_packager.exporting.graph import OnnxPayload
from edgepack_packager.exporting.spelled import MlxPayload
from edgepack_packager.proof import child, compare, engine, loss
from edgepack_packager.proof.gates import Finding, gate, missed
from edgepack_packager.proof.probe import Probe
from edgepack_packager.proof.prover import Verdict
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Format, Written

NMSE: Final = 1e-10
"""The limit of what is computed in float32 on both sides, as of an exact variant: ``docs/proof.md``."""

STEPS: Final = 32
"""Ids that are run one by one as well: a graph is traced once, and a step of one token may go another way in it."""

LOGITS: Final = "logits"
FACTS: Final = "facts.json"
_MIB: Final = 1 << 20


class Payload(Format, Protocol):
    """What an exporter writes: a format's files, the one of them with the weights, and their readers."""

    @property
    def files(self) -> tuple[str, ...]: ...

    @property
    def weights(self) -> str: ...

    def described(self, folder: Path, decoder: Decoder, exporter: str, n_parameters: int) -> Decoder:
        """Return a decoder with what the files in a folder say. Raises ``UnsupportedModelError``."""
        ...

    def digests(self, folder: Path) -> Iterator[bytes]:
        """Yield ``weights.digest`` of each tensor."""
        ...


@dataclass(frozen=True, slots=True)
class Exporter:
    """A program that writes payloads: in which format and which quantisations, and from which packages.

    ``reads`` is the newest major version of transformers whose config.json it understands. ``script`` is run in the
    environment of ``lock``.
    """

    name: str
    format: Payload
    schemes: tuple[str, ...]
    reads: int
    lock: Lock
    script: Path


_INSIDE: Final = Path(str(files(__package__).joinpath("inside")))
EXPORTERS: Final = (
    Exporter(
        "optimum",
        OnnxPayload(),
        ("f32",),
        4,
        Lock("optimum", download=276_000_000, disk=1_200_000_000),
        _INSIDE / "export_optimum.py",
    ),
    Exporter(
        "mlx-lm",
        MlxPayload(),
        ("f32",),
        5,
        Lock("mlx-lm", download=258_000_000, disk=1_200_000_000),
        _INSIDE / "export_mlx_lm.py",
    ),
)


def scheme(exporter: Exporter, recipe: Recipe) -> str:
    """Return the quantisation that a recipe asks of an exporter. Raises ``UsageError`` for a target or a quantisation
    that it does not write."""
    only = exporter.format.name
    if targets := [name for name in recipe.targets if name.lower() != only]:
        raise UsageError(
            f"--target {targets[0]} was given with --exporter {exporter.name}, which writes {only} alone.",
            hint=f"Leave it out, or say --target {only}.",
        )
    asked = {quant.lower().removeprefix(f"{only}:") for quant in recipe.quants}
    if len(asked) > 1 or not asked <= {*exporter.schemes}:
        raise UsageError(
            f"--exporter {exporter.name} cannot write {', '.join(recipe.quants)}.",
            hint=f"It writes one of: {', '.join(exporter.schemes)}.",
        )
    return next(iter(asked), exporter.schemes[0])


def needless(exporter: Exporter, config: Mapping[str, Any]) -> str | None:
    """Return what to say of a model that edgepack builds itself, None of another."""
    with suppress(SourceError):
        families.find(config)
        return (
            f"edgepack builds this architecture itself, in fewer bits and against its reference: leave out --exporter "
            f"{exporter.name}."
        )
    return None


def find(name: str) -> Exporter:
    """Return the exporter of that name. Raises ``UsageError`` where there is none."""
    for each in EXPORTERS:
        if each.name == name:
            return each
    known = ", ".join(each.name for each in EXPORTERS)
    raise UsageError(f"No exporter is called {name!r}.", hint=f"Choose from: {known}.")


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the program says: versions of the packages that it used, the elements of the model's tensors, and the
    tensors of the checkpoint that its class has no place for."""

    packages: dict[str, str]
    parameters: int
    unused: list[str]


@dataclass(frozen=True, slots=True)
class Export:
    """A variant that an exporter wrote: as a ``Request`` says what a target was asked for."""

    exporter: Exporter
    scheme: str
    packages: Mapping[str, str]

    @property
    def id(self) -> str:
        """The variant's name in the bundle."""
        return f"{self.exporter.name}-{self.scheme}"

    @property
    def asked(self) -> str:
        """The quantisation, which has one name."""
        return self.scheme

    @property
    def target(self) -> Payload:
        """The format, and the runtime that it is for."""
        return self.exporter.format


@dataclass(frozen=True, slots=True)
class Made:
    """What an exporter left: the variant's decoder, with the graph's inputs and outputs, its folder, the logits of the
    probe by transformers, and what the program said."""

    export: Export
    decoder: Decoder
    folder: Path
    logits: Path
    facts: Facts


def export(
    exporter: Exporter, scheme: str, python: Path, checkpoint: Checkpoint, decoder: Decoder, probe: Probe, scratch: Path
) -> Made:
    """Run an exporter on a checkpoint, and return what it wrote into a new folder of ``scratch``.

    It gets a folder of the config and the safetensors alone. Raises ``BuildError`` where it fails, or writes what is no
    variant, and ``UnsupportedModelError`` for a graph that no runtime here can drive.
    """
    source, out = scratch / "source", scratch / "exported"
    source.mkdir()
    out.mkdir()
    (source / CONFIG).write_text(json.dumps(dict(checkpoint.config)), "utf-8")
    for path in checkpoint.files:
        (source / path.name).symlink_to(path.resolve())
    index = checkpoint.folder / INDEX
    if index.exists():
        (source / index.name).symlink_to(index.resolve())
    size = 4 * sum(math.prod(entry.shape) for entry in checkpoint.tensors.values())
    job = sandbox.job(source, out, list(probe.ids), detect().threads, size)
    sandbox.run(f"The exporter {exporter.name}", python, exporter.script, job, scratch)
    rows = 4 * len(probe.ids) * decoder.n_vocab
    payload = exporter.format
    most = dict.fromkeys(payload.files, 64 * _MIB) | {payload.weights: 2 * size + 64 * _MIB}
    most |= {LOGITS: rows, FACTS: _MIB}
    found = sandbox.written(out, most)
    if found[LOGITS].stat().st_size != rows:
        raise BuildError(f"The exporter {exporter.name} wrote no logits of {len(probe.ids)} tokens.")
    facts = _facts(found[FACTS])
    folder = scratch / "variant"
    folder.mkdir()
    for name in payload.files:
        shutil.move(found[name], folder / name)
        (folder / name).chmod(0o644)
    package = next(iter(facts.packages))
    told = payload.described(folder, decoder, f"{package} {facts.packages[package]}", facts.parameters)
    return Made(Export(exporter, scheme, facts.packages), told, folder, found[LOGITS], facts)


def sizes(exporter: Exporter, variant: Path) -> Written:
    """Return a variant's sizes: a graph may hold a matrix twice, once transposed, and so more than its parameters."""
    size = (variant / exporter.format.weights).stat().st_size
    return Written(data_bytes=size, tensor_bytes=size, weights_bytes=size, fallbacks=())


def prove(made: Made, checkpoint: Checkpoint, probe: Probe, scratch: Path) -> Verdict:
    """Hold a variant to transformers: its logits through the runtime, and the weights that it has. It raises for no
    gate."""
    against = f"transformers {made.facts.packages['transformers']}"
    evidence: dict[str, object] = {"variant": made.export.id, "against": against, "ids": probe.ids, "text": probe.text}
    try:
        name, gates = _gates(made, probe, scratch)
    except EngineError as error:
        return Verdict(None, None, evidence | {"missed": [error.message]}, (error.message.rstrip("."),))
    held = made.export.exporter.format.digests(made.folder)
    lacking = weights.missing(held, checkpoint, made.facts.unused)
    findings = [*map(Finding, gates), Finding(gate("tensors.missing", len(lacking), "<=", 0), ", ".join(lacking[:3]))]
    columns = made.decoder.n_vocab
    ours = scratch / "ours"
    lost = loss.measure(engine.rows(ours, columns), engine.rows(made.logits, columns), probe)
    gates = [finding.gate for finding in findings]
    evidence |= {"engine": name, "loss": msgspec.to_builtins(lost), "gates": msgspec.to_builtins(gates)}
    if failed := missed(findings):
        return Verdict(None, None, evidence | {"missed": failed}, tuple(failed))
    proof = manifest.Proof(engine=name, tokens=len(probe.ids), gates=gates, loss=lost, against=against)
    return Verdict(proof, loss.self_test(engine.rows(ours, columns), probe), evidence, notes=_notes(made))


def _gates(made: Made, probe: Probe, scratch: Path) -> tuple[str, list[Gate]]:
    """Run the probe in chunks and its beginning one by one; leave the first's logits in ``scratch / "ours"``."""
    columns = made.decoder.n_vocab
    gates, name = [], ""
    for what, ids, chunk in (("nmse", probe.ids, child.CHUNK), ("steps", probe.ids[:STEPS], 1)):
        output = scratch / ("ours" if what == "nmse" else what)
        job = child.Job(made.export.target.runtime, str(made.folder), made.decoder, list(ids), "f32", str(output))
        name = child.run(msgspec.structs.replace(job, chunk=chunk))
        found = compare.nmse(engine.rows(output, columns), islice(engine.rows(made.logits, columns), len(ids)))
        gates.append(gate(f"transformers.{what}", found, "<=", NMSE))
    return name, gates


def _notes(made: Made) -> tuple[str, ...]:
    unused = made.facts.unused
    if not unused:
        return ()
    return (f"{len(unused)} tensors of the checkpoint have no place in its class and are left out, as {unused[0]}.",)


def _facts(path: Path) -> Facts:
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=Facts)
    except msgspec.DecodeError as error:
        raise BuildError(f"The exporter's {FACTS} is not what it should be: {error}.") from None
    if not facts.packages or "transformers" not in facts.packages or facts.parameters < 1:
        raise BuildError(f"The exporter's {FACTS} says nothing of its packages or of the model.")
    return facts
