"""Adapters: what was trained beside a model, merged into its tensors while they are read.

A kind of adapter is one module, which says what it makes of each tensor; here the tensors are found in the model that
is built, and all that can be wrong is said before the model's weights are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgepack.errors import SourceError, UnsupportedModelError, UsageError, brief
from edgepack_packager.adapters import mlx, peft
from edgepack_packager.adapters.change import Change
from edgepack_packager.checkpoint.files import ADAPTER, CONFIG
from edgepack_packager.checkpoint.safetensors import SafetensorsFile
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.families import names
from edgepack_packager.families.mapping import Change as Merge
from edgepack_packager.families.mapping import Stored


class Kind(Protocol):
    """What a module of a kind of adapter defines."""

    @property
    def FILE(self) -> str:  # noqa: N802 - a constant of the module
        """The name of the file with its tensors."""
        ...

    def read(self, config: Mapping[str, Any], file: SafetensorsFile, place: Path) -> dict[str, Change]:
        """Return what it makes of each tensor, by the tensor's name in the model that it was trained on."""
        ...

    def ties(self, config: Mapping[str, Any]) -> bool:
        """Say whether what it makes of the embedding of a tied model it makes of the head."""
        ...

    def base(self, config: Mapping[str, Any]) -> object:
        """Return the name of the model that it was trained on, as it is there."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """An adapter that a build was asked to merge: its folder, and what its deltas are multiplied with."""

    folder: Path
    scale: float = 1.0

    @property
    def name(self) -> str:
        """The folder's name, with the scale where it is not 1, as a bundle records it."""
        name = brief(self.folder.resolve().name)
        return name if self.scale == 1 else f"{name}:{self.scale:g}"

    @property
    def files(self) -> list[Path]:
        """What is read of it."""
        return [self.folder / ADAPTER, self.folder / _kind(self.folder, read_object(self.folder / ADAPTER)).FILE]


@dataclass(slots=True)
class Merged:
    """Open adapters: what they make of the tensors of a model, by first names, and what is to be said of them."""

    changes: dict[str, Merge] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def asked(text: str) -> Asked:
    """Return the adapter of ``FOLDER[:scale]``. Raises ``UsageError`` for a scale that is no number, or 0."""
    folder, colon, end = text.rpartition(":")
    if not colon or Path(text).is_dir() or not re.fullmatch(r"\s*[-+]?[\d.][\d.eE+-]*", end):
        return Asked(Path(text).expanduser())
    try:
        scale = float(end)
    except ValueError:
        scale = math.nan
    if not 0 < abs(scale) < 1e9:
        raise UsageError(
            f"{end!r} cannot be the scale of the adapter {folder}.", hint="Give a number that is not 0, as :0.5."
        )
    return Asked(Path(folder).expanduser(), scale)


@contextmanager
def opened(adapters: Sequence[Asked], stored: Stored, base: str | None = None) -> Iterator[Merged]:
    """Yield what adapters, one after the other, make of the tensors of a model; their files are open for the block.

    ``base`` is the name of the model. Raises ``SourceError`` for an adapter that is damaged or was trained on a model
    of another form, ``UnsupportedModelError`` for a kind that is not merged, ``UsageError`` for a scale that has no
    meaning.
    """
    merged = Merged()
    chains: dict[str, list[_Step]] = {}
    with ExitStack() as stack:
        for each in adapters:
            for tensor, change in _open(each, stored, base, stack, merged.notes).items():
                chain = chains.setdefault(tensor, [])
                if chain and change.whole is not None:
                    raise SourceError(
                        f"{each.folder} replaces {tensor}, which {chain[-1].folder} before it changes.",
                        hint="Give them in the other order, or leave one out.",
                    )
                chain.append(_Step(each.folder, tensor, each.scale, change))
        merged.changes = {tensor: _together(chain) for tensor, chain in chains.items()}
        yield merged


@dataclass(frozen=True, slots=True)
class _Step:
    """What one adapter makes of one tensor."""

    folder: Path
    tensor: str
    scale: float
    change: Change

    def rows(self, start: int, rows: Float32) -> Float32:
        """Return what becomes of rows. Raises ``SourceError`` where that is not finite."""
        with np.errstate(over="ignore"):
            result = self.change.rows(start, rows, self.scale)
        if not np.isfinite(result).all():
            raise SourceError(
                f"{self.folder}, merged into {self.tensor}, makes it a NaN or an infinity.",
                hint="Give it a smaller scale, or the model that it was trained on.",
            )
        return result


def _together(chain: Sequence[_Step]) -> Merge:
    def rows(start: int, rows: Float32) -> Float32:
        for step in chain:
            rows = step.rows(start, rows)
        return rows

    return rows


def _open(adapter: Asked, stored: Stored, base: str | None, stack: ExitStack, notes: list[str]) -> dict[str, Change]:
    """Return what an adapter makes of each tensor of a model, by first names, all checked but the order."""
    folder, place = adapter.folder, adapter.folder / ADAPTER
    if not place.is_file():
        raise _no_adapter(folder)
    config = read_object(place)
    kind = _kind(folder, config)
    if not (folder / kind.FILE).exists():
        raise _no_adapter(folder)
    file = SafetensorsFile(folder / kind.FILE)
    stack.callback(file.close)
    if not file.entries:
        raise SourceError(f"{file.path} holds no tensor.", hint="Save the adapter again.")
    found: dict[str, Change] = {}
    passed_over = []
    for name, change in kind.read(config, file, place).items():
        first = _first(name, stored)
        if first is None:
            if not re.fullmatch(stored.ignored, name):
                raise SourceError(
                    f"{file.path} changes {name}, which the model does not have.",
                    hint="Give the model that the adapter was trained on.",
                )
            passed_over.append(name)
        elif first in found:
            raise SourceError(f"{file.path} changes {first} twice.", hint="Save the adapter again.")
        else:
            found[first] = change
    _tie(found, stored, kind.ties(config), file.path)
    for first, change in found.items():
        change.check(stored.shapes[first])
        if change.whole is not None and adapter.scale != 1:
            raise UsageError(
                f"{folder} replaces {first} whole, which a scale of {adapter.scale:g} has no meaning for.",
                hint="Leave the scale out.",
            )
    called = adapter.folder.resolve().name
    if passed_over:
        notes.append(
            f"{len(passed_over)} tensors of the adapter {brief(called)} are passed over, such as "
            f"{brief(passed_over[0])}: they belong to a part that is not packed."
        )
    notes += _other_base(brief(called), kind.base(config), base)
    return found


def _kind(folder: Path, config: Mapping[str, Any]) -> Kind:
    if "peft_type" in config:
        return peft
    if "fine_tune_type" in config or "lora_parameters" in config:
        return mlx
    raise SourceError(
        f"{folder / ADAPTER} is of neither PEFT nor mlx-lm.", hint="Give the folder that one of them saved, whole."
    )


def _no_adapter(folder: Path) -> SourceError:
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if CONFIG in present and ADAPTER not in present:
        return SourceError(f"{folder} is a model, not an adapter.", hint="Build it on its own.")
    if "adapter_model.bin" in present:
        return SourceError(
            f"{folder} has no {peft.FILE}, only adapter_model.bin: a pickle, which runs its author's code when it is "
            "loaded.",
            hint="Where you trust it, load it with PEFT and save it again with save_pretrained().",
        )
    if ADAPTER in present:
        return SourceError(
            f"{folder} has {ADAPTER}, and neither {peft.FILE} nor {mlx.FILE}.", hint="Fetch all files of the adapter."
        )
    inside = sorted(path.parent for path in folder.glob(f"*/{ADAPTER}")) if present else []
    hint = f"Give the folder in it that has one: {inside[0]}" if inside else "Give the folder that PEFT or mlx-lm made."
    return SourceError(f"{folder} has no {ADAPTER}.", hint=hint)


def _first(name: str, stored: Stored) -> str | None:
    """Return the first name of a tensor that a model, or its body alone, calls so; None where it has none."""
    plain = names.unwrapped(name)
    return next((stored.firsts[each] for each in (plain, f"model.{plain}") if each in stored.firsts), None)


def _tie(found: dict[str, Change], stored: Stored, ties: bool, path: Path) -> None:
    """Refuse what would give a tied model a head of its own, and leave out a head that repeats the embedding."""
    if stored.head in stored.shapes:
        return
    head, embedding = found.pop(stored.head, None), found.get(stored.embedding)
    if head is None and (embedding is None or ties):
        return
    if head is not None:
        head.check(stored.shapes[stored.embedding])
    if head is not None and embedding is not None and head.same(embedding):
        return
    one, other = (stored.embedding, stored.head) if head is None else (stored.head, stored.embedding)
    raise UnsupportedModelError(
        f"{path} changes {one} otherwise than {other}, and the model has one tensor for both.",
        hint='Merge it with PEFT, set "tie_word_embeddings" to false in config.json, and build that.',
    )


def _other_base(called: str, said: object, base: str | None) -> list[str]:
    """Return a note where an adapter names another base: by the last part of its name, as of a path."""
    if not isinstance(said, str) or not said or base is None:
        return []
    ours, theirs = (re.split(r"[/\\]", name.rstrip("/\\"))[-1] for name in (base, said))
    if ours.lower() == theirs.lower():
        return []
    return [f"The adapter {called} says that it was trained on {brief(theirs)}, and is merged into {brief(ours)}."]
