"""That a number in a JSON text has an end: how far one may go on, which no grammar of a schema says."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from edgepack.structured.vocabulary import NUMERIC, Vocabulary

_LONGEST = 32  # characters; what exact arithmetic and every reader of JSON can hold
_POWER = re.compile(rb"[eE][+-]?([0-9]+)$")
_DIGITS = 3  # of a power of ten


class Digits:
    """Follows one answer, and knows the number that it ends in for now."""

    def __init__(self) -> None:
        self._number = b""
        self._in_string = self._escaped = False

    def push(self, data: bytes) -> None:
        """Go on with bytes of the answer."""
        for byte in data:
            if self._in_string:
                self._in_string = self._escaped or byte != ord('"')
                self._escaped = byte == ord("\\") and not self._escaped
            elif byte in NUMERIC and (self._number or byte not in b"eE"):  # not those of true and false
                self._number += bytes([byte])
            else:
                self._number, self._in_string = b"", byte == ord('"')

    def bounded(self, allowed: NDArray[np.bool_], vocabulary: Vocabulary) -> NDArray[np.bool_]:
        """Return those of the allowed tokens that leave a number readable: not too long, and finite.

        Where none would be left, it ends in a point or a sign, and has to go on: then all.
        """
        if not self._number:
            return allowed
        beginning = vocabulary.numeric
        fits = allowed & (beginning <= max(_LONGEST - len(self._number), 0))
        for token in np.flatnonzero(fits & (beginning > 0)):
            text = self._number + vocabulary.bytes[token][: beginning[token]]
            power = _POWER.search(text)
            if power and (len(power[1]) > _DIGITS or not math.isfinite(float(text))):
                fits[token] = False
        return fits if fits.any() else allowed
