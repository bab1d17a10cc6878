"""ggml's own quantisers, for a packager that wants its bytes."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import EngineError, UsageError
from edgepack_runtimes.gguf.header import TYPES
from edgepack_runtimes.gguf.library import Library

# Not lent: what nobody here writes, of which ggml has some only with tables that it makes first.
_OTHERS: Final = frozenset(
    {"iq1_m", "iq1_s", "iq2_s", "iq2_xs", "iq2_xxs", "iq3_xxs", "mxfp4", "tq1_0", "tq2_0"},
)
_IDS: Final = {name: (number, block, nbytes) for number, (name, block, nbytes) in TYPES.items() if name not in _OTHERS}


def quantize(
    library: Library, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Encode float32 [n, k] as uint8 [n, bytes of a row] with ``ggml_quantize_chunk``.

    ``importance`` is what an error in each column counts, float32 [k]: a row of llama.cpp's importance matrix.
    ``type_name`` is ggml's in any case, such as "q4_K". Threads may call it at once: the interpreter's lock is free
    meanwhile. Raises ``UsageError`` (a ``ValueError``) for an unknown type, another dtype or rank, or rows that are
    not whole blocks.
    """
    if type_name.lower() not in _IDS:
        raise UsageError(f"ggml's type {type_name!r} is not lent.", hint=f"Choose one of: {', '.join(sorted(_IDS))}.")
    number, block, block_bytes = _IDS[type_name.lower()]
    if rows.ndim != 2 or rows.dtype != np.float32 or rows.shape[1] % block or not rows.shape[1]:
        raise UsageError(
            f"{type_name} takes float32 rows of whole blocks of {block}, not {rows.dtype} of shape {rows.shape}."
        )
    source = np.ascontiguousarray(rows)
    n, columns = source.shape
    counts = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if counts is not None and counts.shape != (columns,):
        raise UsageError(f"The importance of {columns} columns has the shape {counts.shape}.")
    encoded = np.empty((n, columns // block * block_bytes), np.uint8)
    address = None if counts is None else counts.ctypes.data
    written = library.native.ggml_quantize_chunk(
        number, source.ctypes.data, encoded.ctypes.data, 0, n, columns, address
    )
    if written != encoded.nbytes:
        raise EngineError(f"ggml wrote {written} bytes for {type_name} rows that take {encoded.nbytes}.")
    return encoded
