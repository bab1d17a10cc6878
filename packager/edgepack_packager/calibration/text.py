"""The text that a calibration runs: the user's, conversations of theirs, a built-in text, or what the model wrote.

The built-in one has several languages, code and answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from edgepack.errors import SourceError, brief
from edgepack_packager.calibration import messages
from edgepack_packager.calibration.messages import Conversation
from edgepack_packager.checkpoint.strictjson import open_plain

BUILT_IN: Final = "built-in"

AUTO: Final = "auto"
"""The text that the model writes itself."""

_LINES: Final = (".jsonl", ".ndjson")
"""How the names of files of conversations end."""

_LEAST: Final = 256
"""Tokens: fewer tell more of themselves than of the model."""

_MOST_BYTES: Final = 4 << 20
"""That are read of a file: what is behind them is not needed to have a thousand places to choose from."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text to calibrate with: what it is called, its words, and the sha256 of their UTF-8 bytes.

    ``conversations`` are what it holds, where it is JSON lines of messages. ``kept`` names the file of the bundle's
    evidence that it is kept in, where it is nowhere else: the model wrote it.
    """

    name: str
    text: str
    conversations: Sequence[Conversation] = ()
    kept: str | None = None

    @property
    def sha256(self) -> str:
        """The digest, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read(name: str) -> Corpus:
    """Return the built-in text, or that of a file in UTF-8: JSON lines of messages where its name ends in .jsonl.

    Raises ``SourceError`` for one that cannot be read, with the number of a line that holds no messages.
    """
    if name == BUILT_IN:
        return Corpus(name, files(__package__).joinpath("built-in.txt").read_text("utf-8"))
    path, (text, cut) = Path(name), words(name, "--calibrate")
    called = brief(path.name)
    if path.suffix.lower() not in _LINES:
        return Corpus(called, text)
    if cut and "\n" in text:
        text = text[: text.rindex("\n") + 1]  # what follows may be a part of a line
    return Corpus(called, text, messages.read(text, called))


def words(name: str, option: str) -> tuple[str, bool]:
    """Return the beginning of a plain file in UTF-8, which an option names, and whether there is more of it.

    Raises ``SourceError`` for one that cannot be read.
    """
    path, way = Path(name), f"Name a text file, or take {option} {BUILT_IN}."
    try:
        with open(open_plain(path, way), "rb") as file:
            data = file.read(_MOST_BYTES)
        cut = len(data) == _MOST_BYTES
        # A text that was cut may end within a character.
        return data.decode("utf-8-sig", errors="ignore" if cut else "strict"), cut
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}.", hint=way) from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{name} is no text in UTF-8: see byte {error.start}.", hint="Save it as UTF-8.") from None


def dictated(text: str, *, lines: bool) -> Corpus:
    """Return what a model wrote, as ``read`` will return it from the file that it is kept in: JSON ``lines``, or plain.

    Raises ``SourceError`` as ``read``.
    """
    kept = f"calibration{_LINES[0] if lines else '.txt'}"
    return Corpus(AUTO, text, messages.read(text, kept) if lines else (), kept)


def windows(
    corpus: Corpus, ids: Sequence[int], size: int, most: int, use: str = "calibration", option: str = "--calibrate"
) -> list[Sequence[int]]:
    """Return at most ``most`` windows of ``size`` of a text's ids, spread over it; one, shorter, where it has no more.

    One, two and four are among those that sixteen would be. Raises ``SourceError`` for a text that says too little,
    which names its ``use`` and the ``option`` that chose it.
    """
    if len(ids) < min(_LEAST, size):
        raise SourceError(
            f"{corpus.name} has {len(ids)} tokens, of which a {use} needs at least {min(_LEAST, size)}.",
            hint=f"Give it a longer text, or take {option} {BUILT_IN}.",
        )
    return [ids[place * size : (place + 1) * size] for place in _places(ids, size, most)]


def others(ids: Sequence[int], size: int, most: int) -> list[Sequence[int]]:
    """Return the whole windows of a text's ids that ``windows`` leaves out, in their order."""
    taken = set(_places(ids, size, most))
    return [ids[place * size : (place + 1) * size] for place in range(len(ids) // size) if place not in taken]


def _places(ids: Sequence[int], size: int, most: int) -> list[int]:
    whole = max(1, len(ids) // size)
    count = min(whole, most)
    return [index * whole // count for index in range(count)]
