"""What the entry point group ``llm`` names: the plug-in, or a warning where `llm` is too old for it.

An error here would end `llm` for everything else that it does.
"""

from __future__ import annotations

import warnings

try:
    from edgepack_llm.models import register_models as register_models
except ImportError as error:
    warnings.warn(f"llm finds no models of edgepack ({error}): pip install --upgrade llm", stacklevel=2)
