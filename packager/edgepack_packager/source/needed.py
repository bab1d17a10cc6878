"""Which files of a repository a build needs. It knows names only, and takes no weights but safetensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from edgepack_packager.checkpoint.files import INDEX, SINGLE, shards

_TEXT = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|chat_template)\.json"
    r"|chat_template\.jinja|additional_chat_templates/[^/]+\.jinja|README\.md"
    r"|modules\.json|config_sentence_transformers\.json|sentence_bert_config\.json"
    r"|\d+_\w+/config\.json|\d+_Dense/model\.safetensors"
    r"|model\.sig"
    r"|(LICEN[SC]E|NOTICE|USE_POLICY|COPYING)([-_.].*)?",
    re.IGNORECASE,
)
_FOLDERS = re.compile(r"(additional_chat_templates|\d+_\w+)/[^/]+$")


def seen(paths: Iterable[str]) -> set[str]:
    """Return the paths of files that matter: those at the top, and what has a folder of its own: templates, and the
    modules of sentence-transformers."""
    return {path for path in paths if "/" not in path or _FOLDERS.match(path)}


def text(names: Collection[str]) -> list[str]:
    """Return the files other than weights: configuration, tokenizer, templates, card, licence and
    signature, and what sentence-transformers reads; none in a folder but those that ``seen`` names."""
    return sorted(name for name in names if _TEXT.fullmatch(name))


def weights(names: Collection[str]) -> list[str]:
    """Return the files to begin with: the only one, or the index that names the shards, or shards without one."""
    return next(([name] for name in (SINGLE, INDEX) if name in names), shards(names))
