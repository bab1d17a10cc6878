"""A prompt in the tokens that a cache holds: a model's own answer is often not spelt as the tokenizer would spell it.

Tokenising begins anew at each added token, such as one that ends a turn. So what stands between two of them may be
exchanged for other tokens of the same bytes, and the text that the engine sees stays the same to its last byte. Added
tokens are compared by their ids: what only reads like one is none.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.prefix import common_length
from edgepack.text.tokenizer import Tokenizer


def respelt(prompt: Sequence[int], held: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a prompt with those of ``held`` as far as both say the same, part by part.

    A part goes from one added token to the next; the last of a prompt, which nothing ends, stays as it is.
    """
    ids: list[int] = []
    common = common_length(prompt, held)
    here = there = _start(prompt, common, tokenizer)
    ids.extend(prompt[:here])
    while (ends := _end(prompt, here, tokenizer)) < len(prompt):
        other = _end(held, there, tokenizer)
        if not _same(prompt[here:ends], held[there:other], tokenizer):
            break
        ids.extend(held[there:other])
        here, there = ends, other + 1
        if other == len(held) or held[other] != prompt[ends]:
            break
        ids.append(prompt[ends])
        here += 1
    return [*ids, *prompt[here:]]


def _parts(token: int, tokenizer: Tokenizer) -> bool:
    """Whether a token parts a text in two that are tokenised each alone; also one that says nothing is no text."""
    return token in tokenizer.added_ids or not tokenizer.token_bytes(token)


def _start(ids: Sequence[int], end: int, tokenizer: Tokenizer) -> int:
    """Return where the part begins that ``end`` lies in."""
    return next((place + 1 for place in reversed(range(end)) if _parts(ids[place], tokenizer)), 0)


def _end(ids: Sequence[int], start: int, tokenizer: Tokenizer) -> int:
    """Return where the part ends that begins at ``start``."""
    return next((place for place in range(start, len(ids)) if _parts(ids[place], tokenizer)), len(ids))


def _same(a: Sequence[int], b: Sequence[int], tokenizer: Tokenizer) -> bool:
    return a == b or b"".join(map(tokenizer.token_bytes, a)) == b"".join(map(tokenizer.token_bytes, b))
