"""Answers that are bound to a JSON schema, a regex or a grammar: which tokens may come next, and how to end in time.

llguidance says what a text may go on with. Its vocabulary is made here of the bytes that each token shows a user, so
that mask and text agree on every tokenizer. A second matcher follows the same answer byte by byte and knows how to
close it (``edgepack.structured.closing``), so that an answer is a whole one also where its length runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import SchemaError
from edgepack.extras import needed
from edgepack.structured.apart import apart
from edgepack.structured.closing import BYTES, Closing
from edgepack.structured.corrected import corrected
from edgepack.structured.digits import Digits
from edgepack.structured.json_schema import read_schema
from edgepack.structured.lark import literals, reason, to_lark
from edgepack.structured.shortest import Shortest
from edgepack.structured.vocabulary import Vocabulary, of_bytes, vocabulary_of
from edgepack.text.tokenizer import Tokenizer

_LONGEST = 32  # bytes of the tokens that a closing is written with
_SECONDS = 30.0


class Grammar:
    """What answers are bound to, for one tokenizer. ``asked`` is the argument that says so, in JSON values.

    ``opening``, unless it is None, is written before what is bound, with names of special tokens as those; the JSON
    behind it is in one line. ``asked`` tells it where it is.
    ``check`` is called again and again while it is made, and may end that.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop_ids: frozenset[int],
        asked: dict[str, Any],
        opening: str | None,
        check: Callable[[], None],
    ) -> None:
        from llguidance import LLMatcher

        ((self.kind, value),) = asked.items()
        if self.kind == "json_schema":
            asked = {self.kind: read_schema(value)}
            value = corrected(asked[self.kind])
        self.asked = asked if opening is None else {**asked, "opening": opening}
        self.opening = opening or ""
        one_line = opening is not None
        text = to_lark(self.kind, value, one_line)
        self.vocabulary = vocabulary
        self.stop_ids = stop_ids
        self.matcher = LLMatcher(vocabulary.native, text, log_level=0)
        usable = frozenset(byte for byte in BYTES if self._writes(byte))
        closing = _closing(self.kind, value, text, usable, check, one_line)
        if not closing.find():
            said = next((each.get_error() for each in (self.matcher, closing.matcher) if each.is_error()), "")
            why = reason(said) if said and "NoExtension" not in said else "no answer was found that fits"
            raise SchemaError(f"{self.kind}: {why}.", hint="Make it simpler, or less strict.")
        self.closing = closing

    def spells(self, text: str) -> bool:
        """Whether a regular expression or a grammar has a text written in it."""
        return self.kind != "json_schema" and any(text in word for word in literals(self.kind, self.asked[self.kind]))

    def write(self, data: bytes) -> list[int]:
        """Return tokens that show these bytes, none of them a stop: the longest that fits, again and again.

        Raises ``ValueError`` where a byte has no token.
        """
        ids = []
        while data:
            size = next((size for size in range(_LONGEST, 0, -1) if self._writes(data[:size])), 0)
            if not size:
                raise ValueError(f"no token shows {data[:1]!r}")
            ids.append(self.vocabulary.ids[data[:size]])
            data = data[size:]
        return ids

    def _writes(self, data: bytes) -> bool:
        token = self.vocabulary.ids.get(data)
        return token is not None and token not in self.stop_ids


def _closing(
    kind: str, value: Any, text: str, usable: frozenset[bytes], check: Callable[[], None], one_line: bool
) -> Closing:
    """Return the closing of an answer that has not begun, which is to be found yet."""
    from llguidance import LLMatcher

    def search(part: dict[str, Any]) -> str | None:
        check()
        try:
            lark = to_lark(kind, part, one_line)
        except SchemaError:  # alone it may lack what it refers to
            return None
        closing = Closing(matcher(lark), usable, words=literals(kind, part), check=check)
        return closing.path.decode() if closing.find() else None

    def matcher(lark: str) -> LLMatcher:
        return LLMatcher(of_bytes(), lark, log_level=0)

    if kind == "json_schema":
        shortest = Shortest(value, search)
        return Closing(matcher(text), usable, values=shortest.values(), words=shortest.ends(), check=check)
    return Closing(matcher(text), usable, words=literals(kind, value), check=check)


def compile_grammar(
    tokenizer: Tokenizer,
    n_vocab: int,
    stop_ids: frozenset[int],
    *,
    json_schema: Mapping[str, Any] | str | bool | type | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    opening: str | None = None,
) -> Grammar | None:
    """Return what binds the answers of a model with ``n_vocab`` rows, None where nothing is asked for.

    ``json_schema``: a mapping, the JSON text of one, a class with ``model_json_schema``, or True for any object.
    ``regex``: for the whole answer, in the syntax of Rust's regex crate, with \\d for 0 to 9. ``grammar``: in
    llguidance's kind of Lark. ``opening``: see ``Grammar``.
    Raises ``SchemaError`` for more than one of them, and for what is invalid, too large, cannot be enforced, has no
    answer, or takes too long; ``ExtraMissingError`` without the extra ``structured``.
    """
    asked = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    asked = {kind: value for kind, value in asked.items() if value is not None}
    if not asked:
        return None
    if len(asked) > 1:
        raise SchemaError(f"{' and '.join(asked)} are given together.", hint="Pass one of them.")
    if not isinstance(opening, str | None):
        raise SchemaError(f"opening is of type {type(opening).__name__}.", hint="Pass a str.")
    with needed(f"An answer bound by {next(iter(asked))}", "structured"):
        import jsonschema  # noqa: F401
        import llguidance  # noqa: F401
    vocabulary = vocabulary_of(tokenizer, n_vocab)
    return apart(lambda check: Grammar(vocabulary, stop_ids, asked, opening, check), _SECONDS)


class Constraint:
    """The state of one answer of at most ``limit`` tokens; ``at_start``: it begins a text, see ``Detokenizer``.

    ``beside`` of the tokens are something else's, before the answer; ``least`` are those of its shortest form.
    It can always be closed within the tokens that are left, as long as each token that is accepted was shown to
    ``closing`` before. Raises ``SchemaError`` where not even the shortest answer that was found fits the limit.
    """

    def __init__(self, grammar: Grammar, limit: int, *, beside: int = 0, at_start: bool = True) -> None:
        self._grammar = grammar
        self._matcher = grammar.matcher.deep_copy()
        self._closing = grammar.closing.copy()
        self._ahead: int | None = None  # the token that the closing has seen and the matcher has not
        self._drops_space = at_start and grammar.vocabulary.strips_space
        self._digits = Digits() if grammar.kind == "json_schema" else None
        n_vocab = grammar.vocabulary.n_vocab
        self._stops = np.array([token for token in grammar.stop_ids if token < n_vocab], np.intp)
        self.least = len(self._written(self._closing.path))
        if (least := self.least + beside) > limit:
            with_it = f", and what stands before it {beside}" if beside else ""
            raise SchemaError(
                f"The answer may have {limit} tokens, but the shortest that fits the {grammar.kind} has {self.least}"
                f"{with_it}.",
                hint=f"Pass max_tokens={least} or more, and load a context that holds them.",
            )

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """The tokens that may come next, bool [n_vocab], the caller's own; stop tokens where the answer may end.

        Raises ``SchemaError`` where the grammar has become too complex for llguidance.
        """
        vocabulary = self._grammar.vocabulary
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise SchemaError(f"The grammar is too complex: {reason(self._matcher.get_error())}.", hint="Simplify it.")
        mask = np.unpackbits(bits, count=vocabulary.n_vocab + 1, bitorder="little").view(np.bool_)
        allowed, may_end = mask[:-1], mask[-1]
        if self._drops_space:
            for first, tokens in vocabulary.spaced.items():
                fits = self._closing.allows(first)
                for token in tokens:
                    allowed[token] = fits and self._closing.allows(vocabulary.bytes[token][1:])
        allowed[self._stops] = may_end
        return allowed if self._digits is None else self._digits.bounded(allowed, vocabulary)

    @property
    def finished(self) -> bool:
        """Whether nothing but a stop token may follow."""
        return self._matcher.is_stopped()

    def closing(self, token: int, left: int) -> list[int] | None:
        """Return None where the answer can go on with this token, else the tokens that close it in its place.

        ``left``: how many tokens there may be, this one included. A question only: it changes nothing.
        """
        if token in self._grammar.stop_ids:
            return None
        self._step_back()
        path = self._closing.path
        if self._closing.advance(self._shown(token)):
            rest = self._closing.path
            if len(rest) < left or len(self._grammar.write(rest)) < left:
                self._ahead = token
                return None
            self._closing.retreat()
        return self._written(path)

    def accept(self, token: int) -> None:
        """Go on with a token that is allowed. Raises ``ValueError`` for another; the state is then of no use."""
        if token in self._grammar.stop_ids:
            return
        data = self._shown(token)
        ids = self._grammar.write(data) if self._drops_space else [token]
        if not (self._grammar.vocabulary.bytes[token] and self._matcher.consume_tokens(ids)):
            raise ValueError(f"token {token} is not allowed here")
        if self._ahead != token:
            self._step_back()
            self._closing.advance(data)
        self._ahead = None
        self._drops_space = False
        if self._digits is not None:
            self._digits.push(data)

    def _step_back(self) -> None:
        if self._ahead is not None:
            self._closing.retreat()
            self._ahead = None

    def _shown(self, token: int) -> bytes:
        """Return the bytes that a token adds to the text that the user sees."""
        data = self._grammar.vocabulary.bytes[token]
        return data.removeprefix(b" ") if self._drops_space else data

    def _written(self, data: bytes) -> list[int]:
        """Return tokens that show these bytes next."""
        if not self._drops_space:
            return self._grammar.write(data)
        spaced = self._grammar.write(b" " + data)
        return spaced if data.startswith(b" ") else min(spaced, self._grammar.write(data), key=len)
