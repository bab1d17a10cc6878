"""From a text to the words that byte-pair encoding works on, by the tokenizers library.

It is for tokenizers that do more than ``edgepack.text.words`` knows, and for bundles of before. The library takes added
tokens out, normalises, splits into words and does the first merges by rank; which is where the algorithm of byte-pair
encoding is, too, when it has done all that it can with merges of those ranks.

A prompt is tokenised whole, so that its ids are what they are for every other program. Only where a name of a special
token has a character that its template did not write, that character is hidden behind a stand-in while the library
looks for names, and is there again when it splits the text into words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.extras import needed
from edgepack.text.marks import PRIVATE, Marked
from edgepack.text.tables import Tables, damaged

if TYPE_CHECKING:
    from tokenizers import Encoding, NormalizedString, PreTokenizedString

_SPACE = "\u2581".encode()


@contextmanager
def _library() -> Iterator[None]:
    """Turn what the tokenizers library raises into ``BundleDamagedError``: it has no class of its own for errors, and
    where Rust panics, one that is no ``Exception``. What a signal's handler raises meanwhile goes through."""
    try:
        yield
    except BaseException as error:
        if (isinstance(error, Exception) or type(error).__name__ == "PanicException") and _comes_from_here(error):
            raise damaged(f"the tokenizers library says: {str(error).rstrip('.')}") from None
        raise


def _comes_from_here(error: BaseException) -> bool:
    """Whether an error was raised by what this module calls and is no code of Python, which has no frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename == __file__


class LibraryWords:
    """Makes words of texts. Raises ``BundleDamagedError``, and ``ExtraMissingError`` without the library."""

    def __init__(self, tables: Tables) -> None:
        with needed("The tokenizer of this bundle", "tokenizers"):
            import tokenizers

        self._tables = tables
        with _library():
            self._native = tokenizers.Tokenizer.from_str(tables.rest)
            places = max(self._native.get_vocab(with_added_tokens=True).values(), default=-1)
        if places >= len(tables.ids):
            raise damaged(f"its remainder has {places + 1} tokens, of which {len(tables.ids)} have an id")
        added = self._native.get_added_tokens_decoder()
        self._special = {place: token.content for place, token in added.items() if token.special}
        self._lock = Lock()

    def words(self, text: str, special: bool) -> Iterator[tuple[int, ...]]:
        """Yield the words of a text, as far as the library merges them, and each added token as a word of its own."""
        plain = text.plain if isinstance(text, Marked) else text
        with self._lock:  # a property of the shared object decides how the call treats special tokens
            self._native.encode_special_tokens = not special
            encoding = self._encoded(plain)
            if special and isinstance(text, Marked):
                encoding = self._as_said(text, encoding)
        ids = self._tables.ids
        return self._words([ids[place] for place in encoding.ids], encoding.word_ids)

    def _as_said(self, text: Marked, encoding: Encoding) -> Encoding:
        """Return the encoding of a text without the special tokens that others than its template name."""
        plain = hidden = text.plain
        stand_ins = _StandIns(plain)
        while places := [place for place in self._forged(text, encoding) if hidden[place] == plain[place]]:
            chars = list(hidden)
            for place in places:
                chars[place] = stand_ins[chars[place]]
            hidden = "".join(chars)
            encoding = self._restoring(hidden, stand_ins)
        return encoding

    def _forged(self, text: Marked, encoding: Encoding) -> Iterator[int]:
        """Yield a place in each special token of an encoding whose name the template did not write whole."""
        for index, id in enumerate(encoding.ids):
            if id in self._special and (span := encoding.token_to_chars(index)):
                yield from text.forged(self._special[id], *span)

    def _restoring(self, text: str, stand_ins: _StandIns) -> Encoding:
        """Return the encoding of a text whose stand-ins are characters again once its special tokens are found."""
        from tokenizers.pre_tokenizers import PreTokenizer, Sequence

        splitting = self._native.pre_tokenizer
        first = PreTokenizer.custom(stand_ins)
        self._native.pre_tokenizer = first if splitting is None else Sequence([first, splitting])
        try:
            return self._encoded(text)
        finally:
            self._native.pre_tokenizer = splitting

    def _encoded(self, text: str) -> Encoding:
        with _library():
            return self._native.encode(text, add_special_tokens=False)

    def _words(self, symbols: Sequence[int], words: Sequence[int | None]) -> Iterator[tuple[int, ...]]:
        """Yield the symbols of each word; a text that no rule splits, where no merge can reach over."""
        start = 0
        for place in range(1, len(symbols)):
            if words[place] != words[place - 1] or self._splits(symbols[place - 1], symbols[place]):
                yield tuple(symbols[start:place])
                start = place
        yield tuple(symbols[start:])

    def _splits(self, left: int, right: int) -> bool:
        return (
            self._tables.splits
            and self._tables.text(right).startswith(_SPACE)
            and not self._tables.text(left).endswith(_SPACE)
        )


class _StandIns(dict[str, str]):
    """A private character for each character that is hidden in a text, and a step that puts them back."""

    def __init__(self, text: str) -> None:
        self._free = _unused(text)

    def __missing__(self, char: str) -> str:
        self[char] = next(self._free)
        return self[char]

    def pre_tokenize(self, words: PreTokenizedString) -> None:
        """Put the characters back, as the tokenizers library asks a step of its own kind."""
        words.normalize(self._restore)

    def _restore(self, words: NormalizedString) -> None:
        for char, stand_in in self.items():
            words.replace(stand_in, char)


def _unused(text: str) -> Iterator[str]:
    used = set(text)
    yield from (char for char in map(chr, PRIVATE) if char not in used)
    raise UsageError("The prompt has every private character of Unicode.", hint="Leave some of them out.")
