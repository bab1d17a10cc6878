"""What variants lose on the held-out text: for the receipt that is sealed with them.

The source's states are computed once for each window, and kept for later builds. Logits are the bulk, some gigabytes
of a large vocabulary: they lie in files, a few windows at a time, and of the source's all of them only where they fit
``KEPT``. A payload is run by its engine; where that computes as the reference does, in float32 throughout, the
reference takes its place over the payload's own weights, since such an engine needs a second a token on a processor
and the proof has held it to the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from math import exp, isfinite
from pathlib import Path
from typing import Final

import numpy as np

from edgepack.bundle import receipt
from edgepack.bundle.manifest import File
from edgepack.bundle.receipt import REFERENCE as REFERENCE
from edgepack.bundle.receipt import Figures, Measured, Receipt
from edgepack.errors import EngineError
from edgepack.runtime import KvCache
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.progress import Progress
from edgepack_packager.proof import compare, engine
from edgepack_packager.proof.compare import Positions
from edgepack_packager.proof.execution import ReadBack
from edgepack_packager.proof.held_out import HeldOut
from edgepack_packager.reference import EXACT
from edgepack_packager.targets import Request

KEPT: Final = 2 << 30
"""Bytes of the source's logits that may lie on the disk while variants are compared."""

TOGETHER: Final = 4
"""Windows whose logits are there at a time."""

Windows = Sequence[Sequence[int]]


class Measuring:
    """The held-out text, and what the source makes of it.

    ``states`` gives the reference's states of a window over the source's weights: float32 [1, n, h].
    """

    def __init__(
        self,
        weights: Weights,
        text: HeldOut,
        states: Callable[[Sequence[int]], Float32],
        scratch: Path,
        progress: Progress,
    ) -> None:
        self.text = text
        self._weights, self._states, self._scratch, self._progress = weights, states, scratch, progress
        windows, vocabulary = list(text.windows), weights.decoder.n_vocab
        self._groups = [windows[first : first + TOGETHER] for first in range(0, len(windows), TOGETHER)]
        self._fits = 4 * text.tokens * vocabulary <= KEPT
        self._expected: dict[int, list[Path]] = {}
        self._surprise: dict[int, list[Positions]] = {}

    def first(self) -> dict[Path, Sequence[int]]:
        """Return the windows that an engine runs while it is loaded for the probe, by the files for their logits."""
        return dict(zip(self._files("logits", 0), self._groups[0], strict=True))

    def by_engine(self, request: Request, folder: Path, kv_cache: KvCache, begun: bool = False) -> Figures:
        """Measure a payload with its engine, which has run ``first`` already where that is ``begun``.

        Raises ``EngineError``.
        """
        decoder = self._weights.decoder

        def run(number: int) -> None:
            if number or not begun:
                output, *others = self._files("logits", number)
                ids, *more = self._groups[number]
                engine.run(
                    request.target.runtime, folder, decoder, ids, kv_cache, output, dict(zip(others, more, strict=True))
                )

        return self._measure(request.id, run)

    def by_reference(self, request: Request, folder: Path) -> Figures:
        """Measure a payload with the reference over the weights that its files hold."""
        decoder = self._weights.decoder
        with closing(request.target.read(folder, decoder)) as reader:
            own = ReadBack(decoder, reader)

            def run(number: int) -> None:
                found = [reference.hidden(own, ids, self._listen) for ids in self._groups[number]]
                self._write(own, found, "logits", number)

            return self._measure(request.id, run)

    def receipt(self, files: Sequence[File], measured: Sequence[Measured]) -> Receipt:
        """Return what is sealed: the figures of variants, against the source in these files."""
        found = np.concatenate([each.reference_surprise for group in self._surprise.values() for each in group])
        mean, error = compare.mean(found)
        corpus, windows = self.text.corpus, self.text.windows
        return Receipt(
            version=receipt.VERSION,
            text=receipt.HeldOut(
                name=corpus.name, sha256=corpus.sha256, tokens=self.text.tokens, window=len(windows[0])
            ),
            source=receipt.source_digest(files),
            perplexity=_rounded(_power(mean)),
            perplexity_error=_rounded(_power(mean) * error),
            variants=list(measured),
        )

    def _measure(self, name: str, run: Callable[[int], None]) -> Figures:
        """Compare group by group what ``run`` writes of each with what the source makes of it."""
        _ = self._known  # a stage of its own, before this one
        vocabulary = self._weights.decoder.n_vocab
        found: list[Positions] = []
        self._progress.stage(f"Measuring {name} on held-out text", len(self.text.windows))
        for number, group in enumerate(self._groups):
            run(number)
            expected = self._expectation(number)
            files = self._files("logits", number)
            for ids, ours, theirs in zip(group, files, expected, strict=True):
                found.append(compare.positions(engine.rows(ours, vocabulary), engine.rows(theirs, vocabulary), ids))
                ours.unlink()
                self._progress.advance()
            self._surprise[number] = found[-len(group) :]
        return figures(found)

    def _expectation(self, number: int) -> list[Path]:
        """Return the files of the source's logits of a group, written anew where others had to make room."""
        if number not in self._expected:
            if not self._fits:
                for path in (path for paths in self._expected.values() for path in paths):
                    path.unlink()
                self._expected.clear()
            first = number * TOGETHER
            self._write(self._weights, self._known[first : first + TOGETHER], "expected", number)
            self._expected[number] = self._files("expected", number)
        return self._expected[number]

    @cached_property
    def _known(self) -> list[Float32]:
        """The source's states of each window: float32 [1, n, h]."""
        windows, layers = self.text.windows, self._weights.decoder.n_layers
        self._progress.stage("Computing the reference on held-out text", len(windows) * layers)
        return [self._states(ids) for ids in windows]

    def _write(self, weights: Weights, states: Sequence[Float32], kind: str, number: int) -> None:
        engine.write_logits(weights, np.concatenate(states), dict.fromkeys(self._files(kind, number), EXACT))

    def _listen(self) -> None:
        """Let whoever watches interrupt."""
        self._progress.advance(0)

    def _files(self, kind: str, number: int) -> list[Path]:
        return [self._scratch / f"{kind}.{number}.{index}" for index in range(len(self._groups[number]))]


def figures(found: Sequence[Positions]) -> Figures:
    """Return the figures of all windows together, each with four significant digits.

    Raises ``EngineError`` where logits were no numbers.
    """
    kl, same, ours, theirs = (
        np.concatenate([getattr(each, name) for each in found])
        for name in ("kl", "same", "surprise", "reference_surprise")
    )
    more, more_error = compare.mean(ours - theirs)
    ratio = _power(more)
    named: Mapping[str, float] = {
        "kl": compare.mean(kl)[0],
        "kl_error": compare.mean(kl)[1],
        "kl_p99": float(np.quantile(kl, 0.99)),
        "top1": compare.mean(same)[0],
        "top1_error": compare.mean(same)[1],
        "perplexity": _power(compare.mean(ours)[0]),
        "ratio": ratio,
        "ratio_error": min(ratio * more_error, _power(_LARGEST)),
    }
    if not all(isfinite(value) for value in named.values()):
        raise EngineError("The logits on the held-out text are not all finite numbers.")
    return Figures(**{name: _rounded(value) for name, value in named.items()})


def room(text: HeldOut, vocabulary: int) -> int:
    """Return the bytes that logits take at a time: a group of a payload's, and all or a group of the source's."""
    group = 4 * vocabulary * sum(map(len, text.windows[:TOGETHER]))
    whole = 4 * vocabulary * text.tokens
    return group + (whole if whole <= KEPT else group)


_LARGEST: Final = 700.0
"""The natural logarithm of what a perplexity is cut to; a float ends at e^709."""


def _power(nats: float) -> float:
    return exp(min(nats, _LARGEST))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
