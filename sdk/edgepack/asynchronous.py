"""``load`` for an event loop. It imports nothing on the loop's thread: what a load needs takes a while to import."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepack.bundle.files import Bundle
    from edgepack.model import Model


async def aload(bundle: str | os.PathLike[str] | Bundle, backend: str | None = None, **options: Any) -> Model:
    """Load a bundle while the event loop goes on. Arguments and errors as in ``load``."""

    def loading() -> Model:
        from edgepack.loading import load

        return load(bundle, backend, **options)

    return await asyncio.to_thread(loading)
