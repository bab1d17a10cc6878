"""Which files of a checkpoint hold its weights, told by their names; and what a place holds that has none."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from edgepack.errors import SourceError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
WITH_BASE = "Build its base, and have it merged into that: edgepack build BASE --adapter FOLDER"

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII)
"""One of the files that llama.cpp's gguf-split makes of one: the name of that, and the number of how many it is."""

_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors", re.ASCII)
_MOST = 99_999
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MISTRAL = re.compile(r"consolidated(-\d+-of-\d+)?\.safetensors", re.IGNORECASE)


def shards(names: Collection[str]) -> list[str]:
    """Return the numbered shards, where all of them are there: their headers say what an index would."""
    found, whole = _numbered(names)
    return found if found == whole else []


def _numbered(names: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the numbered shards that are there, and all that there must be by the numbers of the first."""
    found = {name: match for name in sorted(names) if (match := _SHARD.fullmatch(name))}
    if not found:
        return [], []
    number, total = next(iter(found.values())).groups()
    # No model has as many shards as a number can say.
    numbers = range(1, min(int(total), _MOST) + 1)
    return list(found), [f"model-{each:0{len(number)}}-of-{total}.safetensors" for each in numbers]


def no_weights(place: object, names: Collection[str]) -> SourceError:
    """Return the error of a place whose files, of these names, have no weights that a build can begin with."""
    found, whole = _numbered(names)
    if found:
        lacking = next((name for name in whole if name not in found), None)
        if lacking is None:
            return SourceError(
                f"{place} has shards of more than one set, such as {found[-1]}, and no {INDEX}.",
                hint="Remove those that are out of date, or fetch the index.",
            )
        return SourceError(f"{place} has {found[0]}, and lacks {lacking}.", hint="Fetch all weight files of the model.")
    other = sorted(name for name in names if name.lower().endswith(".safetensors") and not name.startswith("."))
    if other and all(name.lower().startswith("adapter_") for name in other):
        return SourceError(
            f"{place} has no weights of a model, only an adapter, {other[0]}.",
            hint=WITH_BASE,
        )
    if native := [name for name in other if _MISTRAL.fullmatch(name)]:
        return SourceError(
            f"{place} has no {SINGLE}, only {native[0]}: as a rule the weights under Mistral's own names.",
            hint=f"Take the model in Hugging Face layout; if its tensors are model.layers..., rename it {SINGLE}.",
        )
    if other:
        return SourceError(
            f"{place} has no {SINGLE}; its weights are named {other[0]}.",
            hint=f"Rename {other[0]} to {SINGLE}."
            if len(other) == 1
            else "Load them with transformers and save them again with save_pretrained().",
        )
    if pickles := sorted(name for name in names if any(fnmatch(name, pattern) for pattern in _PICKLES)):
        return SourceError(
            f"{place} has no {SINGLE}, only {pickles[0]}: a pickle, which runs its author's code when it is loaded.",
            hint="Use a revision with safetensors weights, or where you trust the file load it with transformers and "
            "save it again with save_pretrained().",
        )
    if gguf := sorted(name for name in names if name.lower().endswith(".gguf")):
        return SourceError(
            f"{place} has no {SINGLE}, only {gguf[0]}.", hint=f"Give the GGUF file itself{way_to(place, gguf[0])}"
        )
    return SourceError(f"{place} has neither {SINGLE} nor {INDEX}.", hint="Fetch the weights as safetensors.")


def way_to(place: object, name: str) -> str:
    """Return the end of a hint: where a file of a folder is, or how a repository's is fetched, with all its parts."""
    if isinstance(place, Path):
        return f": {place / name}"
    part = PART.fullmatch(name)
    wanted = f"--include '{part[1]}-*-of-{part[3]}.gguf'" if part else name
    return f", once it is fetched: hf download {place} {wanted}"
