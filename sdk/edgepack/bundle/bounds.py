"""Bounds of what a file says of a model: far above any model's, below what would fill a memory or overflow an engine's
integers."""

from __future__ import annotations

from typing import Annotated

import msgspec

MAX_LAYERS = 512
Count = Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
Width = Annotated[int, msgspec.Meta(gt=0, le=1 << 24)]
Layers = Annotated[int, msgspec.Meta(gt=0, le=MAX_LAYERS)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=MAX_LAYERS)]
HeadSize = Annotated[int, msgspec.Meta(gt=0, le=1 << 14)]
Taps = Annotated[int, msgspec.Meta(gt=1, le=64)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
PortName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
