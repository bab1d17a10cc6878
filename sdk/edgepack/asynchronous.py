"""``load`` for an event loop. It imports nothing on the loop's thread: what a load needs takes a while to import."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Unpack

if TYPE_CHECKING:
    from edgepack.loading import LoadOptions, Where
    from edgepack.model import Model


async def aload(
    bundle: Where,
    backend: str | None = None,
    context: int | None = None,
    kv_cache: str | None = None,
    **options: Unpack[LoadOptions],
) -> Model:
    """Load a bundle while the event loop goes on. Arguments and errors as in ``load``."""

    def loading() -> Model:
        from edgepack.loading import load

        return load(bundle, backend, context, kv_cache, **options)

    return await asyncio.to_thread(loading)
