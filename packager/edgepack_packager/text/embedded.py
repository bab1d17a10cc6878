"""The texts with all their ids that a bundle of a model which embeds records, held to the tokenizers library."""

from __future__ import annotations

from collections.abc import Iterator

from edgepack.bundle.embedding import Embedding, TextIds
from edgepack.errors import ProofError, UnsupportedModelError
from edgepack.text.embedded import ids_of
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.text.battery import TEXTS
from edgepack_packager.text.files import TOKENIZER
from edgepack_packager.text.sentence_transformers import SETTINGS
from edgepack_packager.text.side import Text

_WITH_PROMPT = TEXTS[2:6]


def probes(text: Text, tokenizer: Tokenizer, embedding: Embedding) -> list[TextIds]:
    """Return the battery's texts, alone, and some behind each prompt, with the ids that the source's tokenizer gives.

    Left out are texts that name an added token: there a text of a user is text, and no token. Raises ``ProofError``
    where other ids are found, ``UnsupportedModelError`` for a prompt that names such a token.
    """
    from tokenizers import Tokenizer as Library

    library = Library.from_buffer(text.files[TOKENIZER])
    library.no_truncation()
    library.no_padding()
    names = [token["content"] for token in text.tokenizer.get("added_tokens") or []]
    found = []
    for name, words in _asked(embedding):
        prompt = embedding.prompts[name] if name else ""
        if named := next((each for each in names if each in prompt), None):
            raise UnsupportedModelError(
                f"{SETTINGS}: the prompt {name!r} names the token {named!r}, which is not built."
            )
        if any(each in prompt + words for each in names):
            continue
        ids, wanted = ids_of(tokenizer, embedding, words, prompt), library.encode(prompt + words).ids
        if ids != wanted:
            raise ProofError(
                f"The text {words!r} behind the prompt {name!r} gives the ids {ids[-8:]} at its end in the place of "
                f"{wanted[-8:]}.",
                hint="Report this, with the model's name.",
            )
        found.append(TextIds(prompt=name, text=words, ids=ids))
    return found


def _asked(embedding: Embedding) -> Iterator[tuple[str, str]]:
    yield from (("", words) for words in TEXTS)
    yield from ((name, words) for name in embedding.prompts for words in _WITH_PROMPT)
