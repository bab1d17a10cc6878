"""The held-out text: what variants are judged on, which no calibration has seen.

It is read in windows that each begin anew, as many as a receipt asks for, or, where nobody asked, as cost little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.receipt import BUILT_IN as BUILT_IN
from edgepack.bundle.receipt import WHOLE as WHOLE
from edgepack.errors import SourceError, brief
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.calibration.text import Corpus, windows, words

WINDOW: Final = 512
"""Tokens that see each other; the context, where that is shorter."""

SHORT: Final = 2048
"""Tokens of one that nobody asked for, at most."""

BUDGET: Final = 20.0
"""CPU seconds that it may take, by ``cost``."""

SHARED: Final = 0.01
"""Of the runs of ``RUN`` tokens, what may stand in the calibration's text too, as rules of tables and digits do."""

RUN: Final = 13

_FLOPS: Final = 40e9
_SCORES: Final = 80e6
"""What one core does in a second of products and of attention scores, which numpy passes over several times."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A text, the windows of token ids that are compared, all of the same length, and the ids of the whole text."""

    corpus: Corpus
    windows: Sequence[Sequence[int]]
    ids: Sequence[int] = ()

    @property
    def tokens(self) -> int:
        """The ids of all windows."""
        return sum(map(len, self.windows))


def read(name: str) -> Corpus:
    """Return the built-in text, or that of a file in UTF-8. Raises ``SourceError`` for one that cannot be read."""
    if name == BUILT_IN:
        return Corpus(name, files(__package__).joinpath("held-out.txt").read_text("utf-8"))
    return Corpus(brief(Path(name).name), words(name, "--receipt")[0])


def choose(
    asked: str | None,
    calibration: Corpus | None,
    told: Sequence[int],
    tokenizer: Tokenizer,
    decoder: Decoder,
    payloads: int,
) -> HeldOut | None:
    """Return what so many payloads are judged on: ``WHOLE`` tokens of the text that was asked for, or fewer of the
    built-in one, None where a model is too large for any.

    ``told`` are the calibration's ids. Raises ``SourceError`` for a text that cannot be read or says too little, and as
    ``refuse_shared``.
    """
    size = min(WINDOW, decoder.context)
    most = WHOLE // size
    if asked is None:
        most = min(SHORT // size, int(BUDGET / ((1 + payloads) * cost(decoder, size))))
        if not most:
            return None
    corpus = read(asked or BUILT_IN)
    ids, start = tokenizer.encode(corpus.text, bos=False), tokenizer.encode("")  # BOS, where a text begins with it
    if calibration is not None:
        refuse_shared(corpus, ids, calibration, told)
    own = windows(corpus, ids, size - len(start), most, "receipt", "--receipt")
    return HeldOut(corpus, [(*start, *each) for each in own], ids)


def cost(decoder: Decoder, size: int) -> float:
    """Return about how many CPU seconds the reference takes for a window of ``size`` tokens.

    It follows from the model alone: by a clock, the same build would choose another number of windows each time.
    """
    products = 2.0 * decoder.n_parameters * size
    return products / _FLOPS + sum(each.n_heads for each in decoder.attentions) * size * size / _SCORES


def overlap(ids: Sequence[int], others: Sequence[int]) -> float:
    """Return the share of the runs of ``RUN`` tokens in ``ids`` that ``others`` has as well."""
    runs, known = ([tuple(some[at : at + RUN]) for at in range(len(some) - RUN + 1)] for some in (ids, others))
    there = set(known)
    return sum(run in there for run in runs) / max(1, len(runs))


def refuse_shared(corpus: Corpus, ids: Sequence[int], calibration: Corpus, told: Sequence[int]) -> None:
    """Refuse a text that shares more than ``SHARED`` of its runs of tokens with what a calibration's told the model.

    ``ids`` are the text's, ``told`` the calibration's: a file of conversations spells its words otherwise. Raises
    ``SourceError``.
    """
    share = 1.0 if corpus.sha256 == calibration.sha256 else overlap(ids, told)
    if share > SHARED:
        raise SourceError(
            f"{corpus.name} cannot judge what {calibration.name} calibrated: {share:.1%} of its runs of {RUN} tokens "
            f"stand there too, and {SHARED:.0%} may.",
            hint="Hold another text out with --receipt, or calibrate with another.",
        )
