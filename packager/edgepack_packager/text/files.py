"""The files of a source's text side, and how they spell a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.errors import SourceError
from edgepack.text.chat import TEMPLATE as TEMPLATE
from edgepack.text.chat import TOOL_USE as TOOL_USE
from edgepack_packager.checkpoint.strictjson import parse_object

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
GENERATION = "generation_config.json"

CARRIED = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, GENERATION, TEMPLATE)


def parsed(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Return a file as a JSON object, an empty one where the source lacks it. Raises ``SourceError``."""
    return parse_object(files[name], name) if name in files else {}


def token_name(said: Mapping[str, Any], key: str, place: str) -> str | None:
    """Return the text of the token that a parsed file names: a string, or an object with a "content"."""
    value = said.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    if value is not None and not isinstance(text, str):
        raise SourceError(f"{place}: {key} must be text, not {value!r}.", hint="Correct or remove it.")
    return text
