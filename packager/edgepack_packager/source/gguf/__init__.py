"""A GGUF file as a source: all but its weights, unfolded into a folder of the files that any other source has.

What reads those checks them as it checks anybody's. The weights stay in the file, and are read there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from math import prod
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from edgepack_packager.checkpoint import CONFIG
from edgepack_packager.checkpoint.gguf.file import GgufFile
from edgepack_packager.source.gguf import config, split
from edgepack_packager.source.gguf.keys import Keys, damaged
from edgepack_packager.source.gguf.tokenizer import Vocabulary, generation_config, tokenizer_config, tokenizer_json

SUFFIX = ".gguf"

# What holds each of a trained model's numbers, as it was or rounded once.
_FLOATS = frozenset({"F32", "F16", "BF16"})
_WORD = re.compile(r"[^\s#][^\n\r#]{0,199}")


def open_file(path: Path) -> GgufFile:
    """Open a file, and where it is a part of one that was split, that with all its parts.

    Raises ``SourceError`` where it is not a sound GGUF file, or a part is missing or not of the same file.
    """
    file = GgufFile(path, partial(damaged, path))
    try:
        place = split.Place.of(file)
    except BaseException:
        file.close()
        raise
    if place is None:
        return file
    file.close()
    return split.SplitFile(split.parts(path, place))


def unfold(path: Path) -> tuple[Path, list[str]]:
    """Write config.json, the tokenizer's files and a card of a file into a new folder, and return it with what whoever
    builds should know of the file, a sentence each.

    The folder is the caller's to remove. Raises ``SourceError`` for a damaged file, ``UnsupportedModelError`` for one
    that is not built.
    """
    with closing(open_file(path)) as file:
        keys = Keys(file)
        files: dict[str, Any] = {CONFIG: config.read(file)}
        if (keys.text("tokenizer.ggml.model") or "no_vocab") != "no_vocab":
            words = Vocabulary(keys)
            files["tokenizer.json"] = tokenizer_json(keys, words)
            files["tokenizer_config.json"] = tokenizer_config(keys, words)
            files["generation_config.json"] = generation_config(keys, words)
        notes = list(_notes(keys))
        card = _card(keys, notes)
    folder = Path(mkdtemp(prefix="edgepack-"))
    try:
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder, notes


def _notes(keys: Keys) -> Iterator[str]:
    """Say what the file had lost already of the model that it was made from, and what it does not say."""
    name = keys.file.path.name
    weights: Counter[str] = Counter()
    for info in keys.file.tensors.values():
        weights[info.type] += prod(info.shape)
    rounded = [kind for kind, _ in weights.most_common() if kind not in _FLOATS]
    if rounded:
        shares = ", ".join(f"{weights[kind] / weights.total():.1%} in {kind.lower()}" for kind in rounded)
        yield (
            f"{name} had lost precision before this build, with {shares} of its weights: what is proven and measured "
            "is measured against the file, not against the model that it was made from."
        )
    if _said(keys, "general.license") is None:
        yield f"{name} names no licence: find it where the file comes from."


def _card(keys: Keys, notes: list[str]) -> str:
    licence = {
        "license": _said(keys, "general.license"),
        "license_name": _said(keys, "general.license.name"),
        "license_link": _said(keys, "general.license.link"),
    }
    front = "".join(f"{field}: {value}\n" for field, value in licence.items() if value)
    name = _said(keys, "general.name") or split.title(keys.file.path)
    made = _said(keys, "general.base_model.0.repo_url") or _said(keys, "general.source.url")
    lines = [f"Read from the GGUF file {keys.file.path.name}.", *([f"It names as its origin: {made}"] if made else [])]
    return f"---\n{front}---\n# {name}\n\n" + "\n\n".join([*lines, *notes]) + "\n"


def _said(keys: Keys, key: str) -> str | None:
    """Return a text of one line; of another one, nothing."""
    text = (keys.text(key) or "").strip()
    return text if _WORD.fullmatch(text) else None
