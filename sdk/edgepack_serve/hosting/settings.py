"""How models are hosted. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepack.engines import Runtimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``backend`` to ``isolate`` are as ``edgepack.load`` has them. ``parallel`` requests of a model run at a time
    (None: up to 4, as the memory allows), and ``queue`` more may wait. An unpinned model is unloaded ``idle_s`` seconds
    after its last request, None: never. ``runtimes`` replaces the installed ones, for tests."""

    backend: str | None = None
    variant: str | None = None
    context: int | None = None
    kv_cache: str | None = None
    threads: int | None = None
    policy: Path | None = None
    isolate: bool = False
    parallel: int | None = None
    queue: int = 32
    idle_s: float | None = 600.0
    runtimes: Runtimes | None = None
