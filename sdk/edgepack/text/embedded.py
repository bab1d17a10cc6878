"""The token ids of a text that is embedded: its prompt before it, and behind it what the tokenizer ends a text with."""

from __future__ import annotations

from edgepack.bundle.embedding import Embedding
from edgepack.errors import UsageError
from edgepack.text.tokenizer import Tokenizer


def prompt_of(embedding: Embedding, name: str | None) -> str:
    """Return the text of the prompt of that name, of the default one for None; "" is none. Raises ``UsageError``."""
    chosen = (embedding.default_prompt or "") if name is None else name
    if chosen == "":
        return ""
    if chosen not in embedding.prompts:
        known = ", ".join(map(repr, embedding.prompts)) or "none"
        raise UsageError(f"This bundle has no prompt {chosen!r} for a text.", hint=f"It knows: {known}.")
    return embedding.prompts[chosen]


def ids_of(tokenizer: Tokenizer, embedding: Embedding, text: str, prompt: str) -> list[int]:
    """Return all ids that the model reads of a text, of which none stands for a special token that the text names.

    The prompt's text and the other are one to the tokenizer, as sentence-transformers has it: their tokens may join.
    """
    return [*tokenizer.encode(prompt + text), *embedding.ends]
