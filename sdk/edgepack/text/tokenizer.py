"""Text to token ids and back, from a bundle's ``tokenizer.bin``. It knows nothing of chat, sampling or engines.

Two styles of tokenizer are known, told apart by the decoder section of tokenizer.json: byte-level BPE, where each
character of a token stands for a byte, and SentencePiece-style BPE, where "▁" is a space and ``<0xNN>`` a byte.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from edgepack.errors import BundleError, UnsupportedModelError, UsageError
from edgepack.text.bpe import Bpe
from edgepack.text.letters import BYTE_OF
from edgepack.text.messages import whole
from edgepack.text.tables import LONGEST, Tables, damaged
from edgepack.text.words import MOST_GROWTH

_SPACE = "\u2581"
_BYTE_TOKENS = {f"<0x{byte:02X}>" for byte in range(256)}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False


class _Step(msgspec.Struct):
    """A step of the decoder section, with the fields of those that are understood here."""

    type: str
    decoders: list[_Step] = []
    pattern: dict[str, str] | None = None
    content: str | None = None
    start: int = 0
    stop: int = 0


class _Normalizer(msgspec.Struct):
    """A step before any other, with what it may put in a character's place."""

    type: str
    normalizers: list[_Normalizer] = []
    content: str = ""
    prepend: str = ""

    @property
    def shrinks(self) -> int:
        """How many times as short it may make a text, 0 where that is not known. A character of NFC stands for what
        takes up to three times its bytes (Unicode Standard Annex 15, "Maximum expansion factors")."""
        known = {"Prepend": 1, "Replace": int(bool(self.content)), "NFC": 3, "Sequence": 1}
        return math.prod((each.shrinks for each in self.normalizers), start=known.get(self.type, 0))

    @property
    def growth(self) -> int:
        """How many times as long it may make a text, what Unicode itself composes or decomposes aside."""
        return math.prod((each.growth for each in self.normalizers), start=len(self.content) + len(self.prepend) or 1)


class _Model(msgspec.Struct):
    """What the library's model has of the vocabulary, all that a text may begin as among it."""

    vocab: dict[str, int] = {}


class _File(msgspec.Struct):
    """The parts of tokenizer.json that decide what bytes a token stands for, and how long a text may become."""

    normalizer: _Normalizer | None = None
    model: _Model = msgspec.field(default_factory=_Model)
    decoder: _Step | None = None
    added_tokens: list[_Added] = []


class Tokenizer:
    """The tokenizer of one bundle. It may be used from several threads.

    ``bos`` is the id of the token that begins a text, ``add_bos`` the bundle's policy of prepending it. ``n_tokens``
    are the entries of the vocabulary, added tokens included; the model's embedding may have more rows.
    Raises ``BundleError`` for a policy without a token, ``UnsupportedModelError`` for a tokenizer of another style.
    """

    def __init__(self, tables: Tables, bos: int | None, add_bos: bool) -> None:
        if add_bos and bos is None:
            raise BundleError("The bundle asks for a BOS token, but names none.", hint="Build the bundle again.")
        try:
            parts = msgspec.json.decode(tables.rest, type=_File)
        except (msgspec.DecodeError, RecursionError) as error:
            raise damaged(f"its remainder is no tokenizer: {error}") from None
        if parts.normalizer is not None and parts.normalizer.growth > MOST_GROWTH:
            raise damaged(f"its normalizer may make a text more than {MOST_GROWTH} times as long")
        for token in parts.added_tokens:
            if not 0 <= token.id < len(tables.ends) or len(token.content.encode()) > LONGEST:
                raise damaged(f"the added token {token.id} is none of its tokens")
        self._bytes_of, self.strips_space = _style(parts.decoder)
        self._bpe = Bpe(tables)
        self._bos = bos
        self._add_bos = add_bos
        self.n_tokens = tables.n_tokens
        self._covers = self._longest(tables, parts)
        letters = parts.model.vocab.keys()
        # A vocabulary may lack bytes, which then become nothing.
        byte_level = self._bytes_of is _byte_level_bytes
        self._dropped = bytes(byte for letter, byte in BYTE_OF.items() if byte_level and letter not in letters)
        self._strips = any(token.lstrip or token.rstrip for token in parts.added_tokens)
        self.added_ids = frozenset(token.id for token in parts.added_tokens)
        self.special_ids = frozenset(token.id for token in parts.added_tokens if token.special)
        self._bytes: dict[int, bytes] = {
            token.id: b"" if token.special else self._added_bytes(token.content) for token in parts.added_tokens
        }

    @classmethod
    def from_json(cls, json_bytes: bytes, bos: int | None, add_bos: bool) -> Tokenizer:
        """Return the tokenizer of a ``tokenizer.json``, compiled here, which needs the tokenizers library. Raises as
        ``compile_tokenizer`` too."""
        from edgepack.text.compiling import compile_tokenizer

        return cls(compile_tokenizer(json_bytes), bos, add_bos)

    def encode(self, text: str, *, bos: bool | None = None, special: bool = False) -> list[int]:
        """Return the token ids of a text.

        ``bos`` says whether BOS is prepended; None means the bundle's policy. A BOS that the text already begins
        with is not doubled. With ``special``, the names of special tokens in the text become those tokens, which a
        rendered chat template needs; without it they are ordinary text, so that no user's text can open or end a
        turn. Raises ``UsageError`` for a text that has no UTF-8 form.
        """
        if not isinstance(text, str):
            raise UsageError(f"The text is of type {type(text).__name__}.", hint="Pass a str.")
        whole(text, "The text")
        ids = self._bpe.encode(text, special=special)
        wanted = self._add_bos if bos is None else bos
        if wanted and self._bos is None:
            raise UsageError("This bundle's tokenizer has no BOS token.", hint="Leave out bos=True.")
        if wanted and self._bos is not None and ids[:1] != [self._bos]:
            ids.insert(0, self._bos)
        return ids

    def at_least(self, text: str) -> int:
        """Return how many tokens a text has at least: its bytes over those that one may stand for; 0 where nothing
        follows from them."""
        counted = "".join(text.split()) if self._strips else text
        data = counted.encode("utf-8", "surrogatepass").translate(None, self._dropped)
        return -(-len(data) // self._covers) if self._covers else 0

    def _longest(self, tables: Tables, parts: _File) -> int:
        """Return the most bytes of a text that one token may stand for, 0 where that is not known."""
        shrinks = 1 if parts.normalizer is None else parts.normalizer.shrinks
        byte_level = self._bytes_of is _byte_level_bytes
        # Without a token for each byte there may be one for many characters.
        if not shrinks or not (byte_level or parts.model.vocab.keys() >= _BYTE_TOKENS):
            return 0
        ends = np.frombuffer(tables.ends, "<u4")
        lengths = np.diff(ends, prepend=ends[:1] * 0)
        longest = int(lengths.max())
        if byte_level:  # a character is a byte, and is written with one or two
            places = np.flatnonzero(lengths >= longest // 2).tolist()
            longest = max(len(_byte_level_bytes(self._bpe.text(place).decode())) for place in places)
        added = [len(token.content.encode()) for token in parts.added_tokens]
        return shrinks * max(longest, *added, 1)

    def token(self, token_id: int) -> str:
        """Return a token as the vocabulary writes it. Raises ``UsageError`` for an id without one."""
        text = self._bpe.text(token_id).decode()
        if not text:
            raise UsageError(f"The tokenizer has no token {token_id}.", hint=f"It has {self.n_tokens} tokens.")
        return text

    def piece(self, token_id: int) -> str:
        """Return a token as people read it: its text, or the name of a special token. What is no whole character of
        UTF-8 becomes U+FFFD, an id without a token nothing."""
        if token_id in self.special_ids:
            return self.token(token_id)
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to a text.

        Special tokens add none, nor do ids without a token, which a model can emit when its embedding is padded.
        An added token that is not special adds its content as it is written.
        """
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._bytes_of(self._bpe.text(token_id).decode())
        return known

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of a whole sequence; bytes that are no UTF-8 become U+FFFD."""
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.strips_space else text

    def _added_bytes(self, content: str) -> bytes:
        return self._bytes_of(content) if self._bytes_of is _sentencepiece_bytes else content.encode()


def _style(decoder: _Step | None) -> tuple[Callable[[str], bytes], bool]:
    """Return how a token becomes bytes, and whether a text's first space belongs to the tokenizer."""
    steps = [] if decoder is None else list(_flat(decoder))
    kinds = [step.type for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level_bytes, False
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"]:
        replace, strip = steps[0], steps[3:]
        spaces = replace.pattern == {"String": _SPACE} and replace.content == " "
        if spaces and not strip:
            return _sentencepiece_bytes, False
        if spaces and [(s.type, s.content, s.start, s.stop) for s in strip] == [("Strip", " ", 1, 0)]:
            return _sentencepiece_bytes, True
    found = ", ".join(kinds) or "nothing"
    raise UnsupportedModelError(
        f"tokenizer.json: decoder: {found} is neither byte-level BPE nor SentencePiece-style with byte fallback.",
        hint="Only these two styles are supported.",
    )


def _flat(step: _Step) -> Iterable[_Step]:
    if step.type != "Sequence":
        yield step
    for inner in step.decoders:
        yield from _flat(inner)


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:  # an entry that is not written in the byte alphabet stands for itself
        return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(_SPACE, " ").encode()
