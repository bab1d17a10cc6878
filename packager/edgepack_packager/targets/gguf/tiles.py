"""A matrix whose columns a file has in another order, with all that is said of them: moved before it is quantised.

So blocks are of the file's columns. What an error in a column counts moves along, and so does what makes errors good:
the order in which columns are rounded stays what it is, and each goes to its new place.
"""

from __future__ import annotations

import numpy as np

from edgepack_packager.checkpoint.gguf.names import Tiles
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.feedback import Feedback, Part


def moved(
    tiles: Tiles, rows: Float32, importance: Float32 | None, feedback: Feedback | None
) -> tuple[Float32, Float32 | None, Feedback | None]:
    """Return rows [n, columns], the importance [columns] and the feedback of a matrix for the file's columns."""
    order = tiles.order()
    if importance is not None:
        importance = importance[order]
    if feedback is not None:
        places = np.argsort(order)
        feedback = [Part(places[part.columns], part.packed) for part in feedback]
    return np.ascontiguousarray(rows[:, order]), importance, feedback


def moved_back(tiles: Tiles, rows: Float32) -> Float32:
    """Return rows [n, columns] of a file with their columns in canonical order."""
    found = np.empty_like(rows)
    found[:, tiles.order()] = rows
    return found
