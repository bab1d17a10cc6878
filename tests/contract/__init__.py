"""What edgepack promises on every engine: one function a promise, and below it the faults that must break it.

A promise takes a ``Case``, one engine over the demo bundle's exact variant, and asserts. A fault changes one piece of
the SDK or of the engine so that the promise does not hold any more: a promise that no fault breaks says nothing.
``tests/contract/test_contract.py`` runs them all.
"""

from __future__ import annotations

import pytest

_THEMES = ("text", "ends", "limits", "stopping", "loops", "turns", "bound", "thinking", "surface")
pytest.register_assert_rewrite(*(f"contract.{theme}" for theme in _THEMES))
