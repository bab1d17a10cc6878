"""Which files of a repository a build needs. It knows names only, and takes no weights but safetensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from edgepack_packager.checkpoint.files import INDEX, SINGLE, shards

_TEXT = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|chat_template)\.json"
    r"|chat_template\.jinja|additional_chat_templates/[^/]+\.jinja|README\.md"
    r"|(LICEN[SC]E|NOTICE|USE_POLICY|COPYING)([-_.].*)?",
    re.IGNORECASE,
)


def seen(paths: Iterable[str]) -> set[str]:
    """Return the paths of files that matter: those at the top, and the templates that have a folder of their own."""
    return {path for path in paths if "/" not in path or path.startswith("additional_chat_templates/")}


def text(names: Collection[str]) -> list[str]:
    """Return the files other than weights: configuration, tokenizer, templates, card and licence; none in a folder but
    ``additional_chat_templates``."""
    return sorted(name for name in names if _TEXT.fullmatch(name))


def weights(names: Collection[str]) -> list[str]:
    """Return the files to begin with: the only one, or the index that names the shards, or shards without one."""
    return next(([name] for name in (SINGLE, INDEX) if name in names), shards(names))
