"""The source of a bundle as a Hugging Face folder with its adapters merged, for engines that load such folders.

``edgepack export --to vllm`` writes it: vLLM, SGLang, TGI, TensorRT-LLM, MLC and ExLlama take the same layout. Every
file that the weights come from has the digest that the manifest records, so that this is the model of the bundle. What
no adapter changes stays as it is, bit for bit; a changed tensor is rounded to the type that its file stores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgepack.bundle.files import Bundle, listed
from edgepack.bundle.manifest import File, Manifest
from edgepack.device.limits import context_limit
from edgepack.errors import SourceError, UsageError
from edgepack_packager import adapters, families, seal, source
from edgepack_packager.adapters import Asked as Adapter
from edgepack_packager.checkpoint import CONFIG, INDEX, Checkpoint, open_checkpoint
from edgepack_packager.checkpoint.safetensors import Entry
from edgepack_packager.checkpoint.weights import Float32, row_blocks
from edgepack_packager.families import names
from edgepack_packager.families.mapping import Change
from edgepack_packager.progress import Silent
from edgepack_packager.targets.gguf.quantize import to_bf16

GENERATION = "generation_config.json"
_CARRIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja", "README.md",
)  # fmt: skip
_BLOCK = 1 << 20


class Asked(Protocol):
    """What an export is asked for: see ``edgepack_ship.exports.export.Export``."""

    @property
    def bundle(self) -> Bundle: ...

    @property
    def asked(self) -> str | None: ...

    @property
    def source(self) -> str | None: ...

    @property
    def adapters(self) -> Sequence[Path]: ...


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written: see ``edgepack_ship.exports.export.Made``."""

    variant: None
    differs: tuple[str, ...]
    use: tuple[str, ...]


def write(asked: Asked, folder: Path) -> Merged:
    """Write config.json, the weights under the names that they have on the hub, the text side, the defaults of
    generation with all stops, and the licence.

    Raises ``UsageError`` where the source, or an adapter, has to be named, ``SourceError`` where it is another than the
    bundle's.
    """
    manifest = asked.bundle.manifest
    if asked.asked is not None:
        raise UsageError("vllm gets the source, not a variant.", hint="Leave --variant out.")
    if manifest.embedding is not None:
        raise UsageError(
            f"{manifest.name} makes vectors of texts, and only models that write are merged.",
            hint="Give the engine the repository that the bundle was built from.",
        )
    recorded = {file.path: file for file in manifest.source.files}
    merged = _adapters(manifest, recorded, asked.adapters)
    origin = source.find(_named(asked))
    if origin.file is not None or CONFIG not in recorded:
        raise UsageError(
            "The bundle was built from a GGUF file, which has no folder on the hub.",
            hint="Export it to llamacpp, or give the engine the model that the file was made of.",
        )
    size = sum(file.size for file in recorded.values())
    source.fetch_weights(origin, Silent(), source.Need("the export takes", folder, size))
    _copy(origin.folder / CONFIG, folder / CONFIG, recorded)
    with open_checkpoint(origin.folder) as checkpoint:
        for path in checkpoint.files:
            _copy(path, folder / path.name, recorded)
        if (origin.folder / INDEX).is_file():
            (folder / INDEX).write_bytes((origin.folder / INDEX).read_bytes())
        changed = _merge(checkpoint, merged, folder) if merged else set()
    for name in (*_CARRIED, *manifest.license.files):
        if name in listed(manifest):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(asked.bundle.read(name))
    (folder / GENERATION).write_text(json.dumps(_generation(asked.bundle), indent=2) + "\n", "utf-8")
    context = context_limit(manifest)[0]
    use = (f"vllm serve . --max-model-len {context}", "python -m sglang.launch_server --model-path .")
    return Merged(None, tuple(_differs(manifest, changed)), use)


def _named(asked: Asked) -> str:
    """Return the name of the source: what was given, or the repository that is recorded."""
    recorded = asked.bundle.manifest.source
    if asked.source is not None:
        return asked.source
    if recorded.repository is None or recorded.revision is None:
        raise UsageError(
            f"{asked.bundle.manifest.name} was built from a folder, {recorded.name}.",
            hint="Name that folder with --source.",
        )
    return f"{recorded.repository}@{recorded.revision}"


def _adapters(manifest: Manifest, recorded: Mapping[str, File], given: Sequence[Path]) -> list[Adapter]:
    """Return the recorded adapters, in folders that were given in the same order. Raises as ``write``."""
    said = manifest.producer.recipe.get("adapters", [])
    called = said if isinstance(said, list) else []
    if len(given) != len(called):
        wanted = f"merges {', '.join(called)}" if called else "merges none"
        raise UsageError(
            f"{manifest.name} {wanted}, and {len(given)} adapters were given.",
            hint="Name the folder of each with --adapter, in this order." if called else "Leave --adapter out.",
        )
    found = [Adapter(folder, _scale(name, folder)) for name, folder in zip(called, given, strict=True)]
    for file in seal.files_of_adapters(found):
        if recorded.get(file.path) != file:
            raise _another(Path(file.path))
    return found


def _scale(recorded: str, folder: Path) -> float:
    """Return the scale that is recorded behind an adapter's name, 1 where none is."""
    _, colon, scale = recorded.rpartition(":")
    if colon and Adapter(folder).name != recorded:
        with suppress(ValueError):
            return float(scale)
    return 1.0


def _copy(path: Path, to: Path, recorded: Mapping[str, File]) -> None:
    """Copy a file of the source. Raises ``SourceError`` where it is not the one that the bundle was built from."""
    digest = hashlib.sha256()
    with open(path, "rb") as file, open(to, "xb") as copy:
        while block := file.read(_BLOCK):
            digest.update(block)
            copy.write(block)
    known = recorded.get(path.name)
    if known is None or known.sha256 != digest.hexdigest():
        raise _another(path)


def _another(path: Path) -> SourceError:
    return SourceError(
        f"{path} is not the file that the bundle was built from: its sha256 is another.",
        hint="Give the revision that edgepack inspect names, or build the bundle again.",
    )


def _merge(checkpoint: Checkpoint, asked: Sequence[Adapter], folder: Path) -> set[str]:
    """Write what adapters make of tensors over them, in the files that were copied; return the types of those."""
    config = checkpoint.config
    stored = families.stored(config, families.describe(config))
    called = {kept: name for name, kept in names.plain(checkpoint.tensors, stored.firsts).items()}
    types = set()
    with adapters.opened(asked, stored) as merged:
        changes = dict(merged.changes)
        if stored.head not in stored.shapes and stored.embedding in changes:  # a copy of a tied embedding
            changes[stored.head] = changes[stored.embedding]
        for path in checkpoint.files:
            with open(folder / path.name, "r+b") as file:
                for name, entry, change in _changed(checkpoint, path, called, stored.firsts, changes):
                    types.add(entry.dtype)
                    for offset, data in _rows(checkpoint, name, entry, change):
                        file.seek(offset)
                        file.write(data)
    return types


def _changed(
    checkpoint: Checkpoint,
    path: Path,
    called: Mapping[str, str],
    firsts: Mapping[str, str],
    changes: Mapping[str, Change],
) -> Iterator[tuple[str, Entry, Change]]:
    """Yield the tensors of a file that change."""
    for name, entry in checkpoint.tensors.items():
        change = changes.get(firsts.get(called[name], ""))
        if change is not None and checkpoint.file_of(name) == path:
            yield name, entry, change


def _rows(checkpoint: Checkpoint, name: str, entry: Entry, change: Change) -> Iterator[tuple[int, bytes]]:
    """Yield a changed tensor in blocks of rows: where each lies in its file, and its bytes."""
    at = entry.offset
    for start, stop in row_blocks(entry.shape):
        data = STORED[entry.dtype](change(start, checkpoint.rows(name, start, stop)))
        yield at, data
        at += len(data)


def _f16(values: Float32) -> bytes:
    with np.errstate(over="ignore"):
        rounded = values.astype("<f2")
    if not np.isfinite(rounded).all():
        raise SourceError(
            "A merged tensor has values beyond those of float16, in which the source stores it.",
            hint="Export a variant instead: those keep what they can hold.",
        )
    return rounded.tobytes()


STORED: Mapping[str, Callable[[Float32], bytes]] = {
    "F64": lambda values: values.astype("<f8").tobytes(),
    "F32": lambda values: values.astype("<f4").tobytes(),
    "F16": _f16,
    "BF16": lambda values: to_bf16(values).astype("<u2").tobytes(),
}
"""What makes bytes of float32 in the types of a file."""


def _generation(bundle: Bundle) -> dict[str, Any]:
    """Return the source's defaults of generation, with every stop of the bundle among its ends."""
    said: Any = {}
    if GENERATION in listed(bundle.manifest):
        said = json.loads(bundle.read(GENERATION))
    found = dict(said) if isinstance(said, dict) else {}
    ids = [stop.id for stop in bundle.manifest.stops]
    if ids:
        found["eos_token_id"] = ids if len(ids) > 1 else ids[0]
    if bundle.manifest.tokenizer.bos is not None:
        found.setdefault("bos_token_id", bundle.manifest.tokenizer.bos)
    return found


def _differs(manifest: Manifest, types: set[str]) -> Iterator[str]:
    narrow = sorted(types & {"BF16", "F16"})
    if narrow:
        yield f"Merged tensors are rounded to {' and '.join(narrow)}, as the source stores them; the bundle's are not."
    if manifest.chat is not None and manifest.chat.date is not None:
        day = manifest.chat.date.day
        yield f"The engine prints today's date in prompts, where edgepack prints {day} or the day given."
    if manifest.chat is not None:
        yield "The engine makes control tokens of their names in what users write; edgepack makes text of them."
    if manifest.draft is not None:
        yield "The draft model stays behind."
