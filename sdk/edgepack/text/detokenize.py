"""Token ids to text, one token at a time: whole characters only, in constant time and memory per token."""

from __future__ import annotations

from codecs import getincrementaldecoder

from edgepack.text.tokenizer import Tokenizer

_Utf8 = getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of a growing sequence of tokens.

    ``at_start`` says that no text stands before the first token, so that the space which SentencePiece-style
    tokenizers put in front of every text is dropped. After text, that space is a real one and stays.
    The pieces joined are what ``bytes.decode("utf-8", errors="replace")`` gives for all bytes at once, without the
    character at their end that lacks bytes: U+FFFD stands for what cannot become one.
    """

    def __init__(self, tokenizer: Tokenizer, *, at_start: bool = True) -> None:
        self._tokenizer = tokenizer
        self._utf8 = _Utf8(errors="replace")
        self._drop_space = at_start and tokenizer.strips_space

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; empty while a character lacks bytes."""
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text

    @property
    def unfinished(self) -> bool:
        """Whether the last character lacks bytes, so that the tokens say more than the text."""
        return bool(self._utf8.getstate()[0])
