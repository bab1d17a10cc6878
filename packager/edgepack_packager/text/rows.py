"""Which of a tokenizer's tokens the model has rows for, and whether the ids in the file are those that are given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import SourceError
from edgepack_packager.text.files import TOKENIZER
from edgepack_packager.text.side import Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def check_ids(tokenizer: Mapping[str, Any], native: Tokenizer) -> None:
    """Refuse a file whose added tokens get other ids than it says: the library gives them without gaps."""
    for added in tokenizer.get("added_tokens") or []:
        given = native.token_to_id(added["content"])
        if given != added["id"]:
            raise SourceError(
                f"{TOKENIZER}: the added token {added['content']!r} has the id {added['id']}, and gets the id {given}: "
                "the library that reads the file leaves out ids without a token.",
                hint="Give each missing id a token in added_tokens, if the model was trained with the ids in the file.",
            )


def without_rowless(text: Text, tokens: Mapping[int, str], n_vocab: int) -> Text:
    """Return the text side without the added tokens that have no row in an embedding of ``n_vocab`` rows.

    Gemma 3 has a mark for images that its text models never see. More rows than tokens are allowed. Raises
    ``SourceError`` where the model needs a token that has no row: one of its ordinary ones, its BOS or a stop.
    """
    rowless = {id for id in tokens if id >= n_vocab}
    if not rowless:
        return text
    document = text.tokenizer
    added = {token["id"] for token in document.get("added_tokens") or []}
    for id in sorted(rowless):
        what = "stop token" if id in text.stops else "BOS token" if id == text.bos else "token"
        if what != "token" or id not in added:
            raise SourceError(
                f"{TOKENIZER} does not belong to the model: the {what} {tokens[id]!r} has the id {id}, "
                f"the embedding has {n_vocab} rows.",
                hint="Fetch the tokenizer and the weights from the same revision.",
            )
    kept = [token for token in document["added_tokens"] if token["id"] not in rowless]
    model = document["model"]
    if isinstance(model["vocab"], dict):
        model = model | {"vocab": {word: id for word, id in model["vocab"].items() if id not in rowless}}
    document = {**document, "added_tokens": kept, "model": model}
    data = json.dumps(document, ensure_ascii=False, indent=2).encode()
    return replace(text, files={**text.files, TOKENIZER: data}, tokenizer=document)
