"""Loads models when they are asked for, and unloads them when nobody asks or when another needs the memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from math import inf
from time import monotonic

from edgepack import Model, errors
from edgepack.errors import EngineError
from edgepack_serve.figures import Figures
from edgepack_serve.hosting.hosted import Hosted
from edgepack_serve.hosting.opening import opened
from edgepack_serve.hosting.settings import Settings
from edgepack_serve.records import log
from edgepack_serve.refusals import RefusedError

_NO_ROOM = (errors.ContextTooLargeError, errors.EngineMissingError)
"""What a load raises where the memory is short. Both were planned at the start, when it was not."""

_GOES_ON = (errors.Cancelled, errors.EngineCrashedError, errors.EngineTimeoutError)
"""Failures after which the same model takes the next request."""


class Host:
    """All models of a server. Used on one event loop; engines are opened and closed on threads."""

    def __init__(
        self,
        models: Sequence[Hosted],
        settings: Settings,
        figures: Figures,
        opening: Callable[[Hosted, Settings], Model] = opened,
    ) -> None:
        """``opening`` opens a model, on a thread that may wait."""
        self.models: Mapping[str, Hosted] = {each.name: each for each in models}
        self.settings = settings
        self._figures = figures
        self._opening = opening
        self._one_load = asyncio.Lock()
        self._changed = asyncio.Event()  # when something is to be unloaded
        self._closing: set[asyncio.Task[None]] = set()

    def find(self, name: str) -> Hosted:
        """Return the model of a name. Raises ``RefusedError``."""
        if (found := self.models.get(name)) is None:
            raise RefusedError(
                404,
                f"model: {name!r} is not served here.",
                hint=f"It is one of: {', '.join(self.models)}.",
                code="model_not_found",
            )
        return found

    @asynccontextmanager
    async def lease(self, name: str, keep_s: float | None = None) -> AsyncIterator[Model]:
        """Hold a model for a request: it is loaded, and stays so until the block ends, and ``keep_s`` seconds after it.

        Raises ``RefusedError`` for a name that nothing has and where too many wait, and whatever ``load`` raises.
        """
        hosted = self.find(name)
        hosted.admit(self.settings.queue)
        began = monotonic()
        try:
            model = await self._loaded(hosted)
            try:
                yield model
            except EngineError as error:
                if not isinstance(error, _GOES_ON):
                    self._give_up(hosted, model)
                raise
        finally:
            hosted.leave(began, keep_s)
            self._changed.set()

    async def load(self, name: str) -> None:
        """Load a model ahead of its first request."""
        await self._loaded(self.find(name))

    async def sweep(self) -> None:
        """Unload what nobody asked for long enough, again and again."""
        while True:
            self._changed.clear()
            left = {hosted: self.left_s(hosted) for hosted in self._unloadable()}
            for hosted in [hosted for hosted, seconds in left.items() if seconds <= 0]:
                del left[hosted]
                async with self._one_load:  # what is asked for meanwhile is loaded once the memory is free
                    if hosted in self._unloadable() and self.left_s(hosted) <= 0:
                        await self._unload(hosted)
            soonest = min(left.values(), default=inf)
            with suppress(TimeoutError):
                async with asyncio.timeout(None if soonest == inf else soonest):
                    await self._changed.wait()

    def left_s(self, hosted: Hosted) -> float:
        """Return the seconds for which a model stays loaded if nobody asks for it, infinity for ever."""
        stays = self.settings.idle_s if hosted.keep_s is None else hosted.keep_s
        return inf if stays is None or hosted.pinned else hosted.used + stays - monotonic()

    async def close(self) -> None:
        """Free all engines, also those that are being opened."""
        for hosted in self.models.values():
            if hosted.loading is not None:
                await asyncio.wait({hosted.loading})
            if hosted.model is not None:
                await self._unload(hosted)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _loaded(self, hosted: Hosted) -> Model:
        if hosted.model is not None:
            return hosted.model
        if hosted.loading is None:
            hosted.loading = asyncio.create_task(self._load(hosted))
            hosted.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be left
        # Whoever asked first may go: the load goes on for the others.
        return await asyncio.shield(hosted.loading)

    async def _load(self, hosted: Hosted) -> Model:
        try:
            async with self._one_load:
                while True:
                    try:
                        hosted.model = await asyncio.to_thread(self._opening, hosted, self.settings)
                        hosted.used = monotonic()
                        self._figures.count("loads_total", model=hosted.name)
                        log.info("loaded", extra={"fields": {"model": hosted.name, "bundle": hosted.model.bundle_id}})
                        return hosted.model
                    except _NO_ROOM:
                        others = [each for each in self._unloadable() if each is not hosted]
                        if not others:
                            raise
                        await self._unload(min(others, key=lambda each: each.used))
        finally:
            hosted.loading = None

    def _unloadable(self) -> list[Hosted]:
        return [each for each in self.models.values() if each.model and not each.requests and not each.pinned]

    async def _unload(self, hosted: Hosted) -> None:
        model, hosted.model = hosted.model, None
        if model is not None:
            self._figures.count("unloads_total", model=hosted.name)
            log.info("unloaded", extra={"fields": {"model": hosted.name}})
            await _closed(model)

    def _give_up(self, hosted: Hosted, model: Model) -> None:
        """Close a model whose engine failed: the next request loads it again."""
        if hosted.model is model:
            hosted.model = None
            self._figures.count("unloads_total", model=hosted.name)
            log.error("gave up", extra={"fields": {"model": hosted.name}})
            task = asyncio.create_task(_closed(model))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


async def _closed(model: Model) -> None:
    try:
        await model.aclose()
    except EngineError as error:  # it is not used any more
        log.error("close", extra={"fields": {"error": str(error)}})
