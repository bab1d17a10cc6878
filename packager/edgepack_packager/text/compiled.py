"""The compiled tokenizer of a bundle, and its proof: the ids that it gives are those of the tokenizers library."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgepack.errors import ProofError
from edgepack.text.compiling import compile_tokenizer
from edgepack.text.tables import FILE, Tables, decode, encode
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import cache
from edgepack_packager.text.battery import TEXTS
from edgepack_packager.text.files import TOKENIZER
from edgepack_packager.text.side import Text

_MIXED = 2000  # texts of tokens in any order, as no training text has them
_LONGEST = 12  # tokens of such a text
_SEED = 0

NEEDS_LIBRARY = (
    "A device needs the tokenizers library for what this tokenizer does before its merges: "
    "pip install 'edgepack[tokenizers]'."
)


def compiled(text: Text) -> Text:
    """Return the text side with the compiled tokenizer among its files, which an earlier build may have proven, and a
    note where devices need a library for it.

    Raises ``UnsupportedModelError`` for a tokenizer that is not plain BPE, ``ProofError`` at the first text that it
    splits otherwise than the library does.
    """
    source = text.files[TOKENIZER]
    name = cache.key(b"compiled tokenizer", source)
    data = cache.recall(name)
    if data is None:
        data = encode(compile_tokenizer(source))
        prove(source, decode(data))
        cache.keep(name, data)
    notes = text.notes if decode(data).front is not None else (*text.notes, NEEDS_LIBRARY)
    return replace(text, files={**text.files, FILE: data}, notes=notes)


def prove(json_bytes: bytes, tables: Tables) -> None:
    """Compare the ids of the battery, of every token's text and of mixtures. Raises ``ProofError``."""
    import tokenizers

    library, ours = tokenizers.Tokenizer.from_buffer(json_bytes), Tokenizer(tables, None, False)
    library.no_truncation()
    library.no_padding()
    pieces = [ours.piece(id) for id in sorted(library.get_vocab(with_added_tokens=True).values())]
    mixed = [*TEXTS, *_mixed(pieces, [ours.token(id) for id in sorted(ours.special_ids)])]
    for special, texts in ((False, pieces + mixed), (True, mixed)):
        library.encode_special_tokens = not special
        for text, wanted in zip(texts, library.encode_batch(texts, add_special_tokens=False), strict=True):
            found = ours.encode(text, special=special)
            if found != wanted.ids:
                raise ProofError(
                    f"{FILE} failed the proof: it gives {found} where {TOKENIZER} gives {wanted.ids}, for {text!r}.",
                    hint="Report this, with the model's name.",
                )


def _mixed(pieces: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    choice = random.Random(_SEED)
    for _ in range(_MIXED):
        kinds = choice.choices((pieces, names or pieces), weights=(4, 1), k=choice.randint(1, _LONGEST))
        yield "".join(map(choice.choice, kinds))
