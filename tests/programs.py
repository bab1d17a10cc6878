"""The programs in ``examples``: started as their users start them, or loaded to be given a model of a test's own."""

from __future__ import annotations

import subprocess
import sys
from importlib import util
from pathlib import Path
from threading import Event
from types import ModuleType

from edgepack import Model, fake
from edgepack.fake import FakeSession

FOLDER = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.name for path in FOLDER.glob("*.py"))


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(FOLDER / name), *map(str, arguments)]


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


def load(name: str) -> ModuleType:
    spec = util.spec_from_file_location(Path(name).stem, FOLDER / name)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Endless:
    """A model whose answers fill its context, and which stands still at a step until it is told to go on."""

    def __init__(self, stops_at: int = 20) -> None:
        self.steps = 0
        self.stands, self.go = Event(), Event()
        self._stops_at = stops_at
        self.model: Model = fake.model(says=[ord("a")] * 4096, before_step=self._step)

    def _step(self, session: FakeSession) -> None:
        self.steps += 1
        if self.steps == self._stops_at:
            self.stands.set()
            assert self.go.wait(60)
