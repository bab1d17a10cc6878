"""Runtimes that break in the ways of native code. ``register`` makes them known by an entry point alone, so that a
child process finds them as it finds anybody's."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack.device.hardware import Hardware
from edgepack.errors import Cancelled, ContextTooLargeError, EngineError
from edgepack.fake import FakeRuntime, FakeSession
from edgepack.isolation.probing import INSIDE
from edgepack.runtime import Options, Session, Support

ASKED, HELD = "EDGEPACK_TEST_ASKED", "EDGEPACK_TEST_HELD"
WORDS = b"engine.c:7: ENGINE_ASSERT(sound) failed\n"

# Tokens that make a session break.
ABORT, SEGFAULT, ILLEGAL, KILL, EXIT, HANG, HANG_HARD, NAP, WAIT, SHAPE, CHATTER, LINGER = range(100, 112)


def register(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register the runtimes of this module for the rest of a test, and return the folder of their metadata."""
    metadata = folder / "broken_runtimes-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-runtimes\nVersion: 1.0\n")
    classes = {name: kind for name, kind in globals().items() if name.startswith(("Probe", "Open"))}
    lines = [f"{kind.name} = broken_runtimes:{name}" for name, kind in classes.items()]
    lines += ["absent = no_such_module:Runtime", "malformed = no module at all"]
    (metadata / "entry_points.txt").write_text("\n".join(["[edgepack.runtimes]", *lines, ""]))
    monkeypatch.syspath_prepend(folder)
    return metadata


class Probe(FakeRuntime):
    """A runtime that runs anywhere. It adds a line to the file that ``ASKED`` names for each time that it is asked."""

    name = "sound"

    def probe(self, hardware: Hardware) -> Support:
        if place := os.environ.get(ASKED):
            with open(place, "a") as file:
                file.write("asked\n")
        self.fail()
        return super().probe(hardware)

    def fail(self) -> None: ...


class OpenHoldsAPipe(Probe):
    """Its process holds the pipe open that ``HELD`` names."""

    name = "held"

    def open(self, variant: Path, decoder: Decoder, options: Options) -> FakeSession:
        self._held = open(os.environ[HELD], "w")  # noqa: SIM115 - until the process ends
        self._held.write(f"{os.getpid()}\n")
        self._held.flush()
        return super().open(variant, decoder, options)


class OpenTellsItsThreads(Probe):
    """It says by what rule threads of OpenMP wait in its process."""

    name = "telling"

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Session:
        raise EngineError(f"waits: {os.environ.get('OMP_WAIT_POLICY')}")


class ProbeAborts(Probe):
    name = "aborts"

    def fail(self) -> None:
        os.write(2, WORDS)
        os.abort()


class ProbeSegfaults(Probe):
    name = "segfaults"

    def fail(self) -> None:
        ctypes.string_at(0)


class ProbeIllegal(Probe):
    name = "illegal"

    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGILL)


class ProbeHangs(Probe):
    name = "hangs"

    def fail(self) -> None:
        ctypes.PyDLL(None).pause()  # with the interpreter's lock


class ProbeExits(Probe):
    name = "exits"

    def fail(self) -> None:
        os._exit(0)


class ProbeExitsWithCode(Probe):
    name = "exits-with-code"

    def fail(self) -> None:
        os._exit(3)


class ProbeRaises(Probe):
    name = "raises"

    def fail(self) -> None:
        raise ImportError("libengine.so: undefined symbol")


class ProbeChatters(Probe):
    name = "chatters"

    def fail(self) -> None:
        print("loading engine ...")
        os.write(1, b"{}\n" * 100_000)


class ProbeTells(Probe):
    """A runtime whose version is what it sees of the probe's own variable."""

    name = "tells"

    def probe(self, hardware: Hardware) -> Support:
        return Support(("cpu",), version=os.environ.get(INSIDE))


class ProbeLies(Probe):
    name = "lies"

    def probe(self, hardware: Hardware) -> Any:
        return {"devices": "all of them"}


class OpenFragile(FakeRuntime):
    """A runtime whose sessions break at the tokens above."""

    name = "fragile"

    def open(self, variant: Path, decoder: Decoder, options: Options) -> FakeSession:
        return Fragile(self, decoder, options)


class OpenPlain(FakeRuntime):
    """A runtime whose sessions have no snapshots."""

    name = "plain"

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Any:
        return Plain(super().open(variant, decoder, options))


class OpenAborts(FakeRuntime):
    name = "open-aborts"

    def open(self, variant: Path, decoder: Decoder, options: Options) -> FakeSession:
        os.write(2, WORDS)
        os.abort()


class OpenHangs(FakeRuntime):
    name = "open-hangs"

    def open(self, variant: Path, decoder: Decoder, options: Options) -> FakeSession:
        Event().wait()
        raise AssertionError


class OwnError(ContextTooLargeError):
    """An error that only this module knows."""


class OpenRaises(FakeRuntime):
    """A runtime that raises what the name of the variant's folder says."""

    name = "open-raises"

    def open(self, variant: Path, decoder: Decoder, options: Options) -> FakeSession:
        raise {
            "engine": EngineError("model.bin: bad magic.", hint="Verify the bundle."),
            "own": OwnError("Too large.", hint="Load with a smaller context."),
            "value": ValueError("no such value"),
            "type": TypeError("unsupported operand"),
        }[variant.name]


class Fragile(FakeSession):
    """A fake session with ways to break. While its process lives it holds the pipe open that ``HELD`` names."""

    def __init__(self, runtime: FakeRuntime, decoder: Decoder, options: Options) -> None:
        super().__init__(runtime, decoder, options)
        self._chunk = options.chunk
        self._stop = Event()
        self._deaf = 2
        self._lingers = False
        if place := os.environ.get(HELD):
            self._held = open(place, "w")  # noqa: SIM115 - until the process ends
            self._held.write(f"{os.getpid()}\n")
            self._held.flush()

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        assert len(tokens) <= self._chunk
        token = tokens[-1]
        if token in (ABORT, SEGFAULT, ILLEGAL, KILL, EXIT):
            os.write(2, WORDS)
        match token:
            case 100:
                os.abort()
            case 101:
                ctypes.string_at(0)
            case 102:
                os.kill(os.getpid(), signal.SIGILL)
            case 103:
                os.kill(os.getpid(), signal.SIGKILL)
            case 104:
                os._exit(3)
            case 105:
                Event().wait()
            case 106:
                ctypes.PyDLL(None).pause()  # with the interpreter's lock
            case 107:
                Event().wait(0.5)
            case 108:
                self._stop.wait()
                raise Cancelled("The engine was told to stop.")
            case 109:
                return np.zeros(3, np.float32)
            case 110:
                print("noise from Python")
                os.write(1, b"noise from below\n" * 10_000)
                assert os.read(0, 1) == b""
            case 111:
                self._lingers = True
        return super().forward(tokens)

    def cancel(self) -> None:
        self._deaf -= 1  # an engine that has not quite begun hears nothing
        if self._deaf < 0:
            self._stop.set()
        super().cancel()

    def close(self) -> None:
        if self._lingers:
            ctypes.PyDLL(None).pause()
        super().close()


class Plain:
    """No more of a session than the seam asks for."""

    device = "cpu"

    def __init__(self, session: Session) -> None:
        self.forward, self.forward_all, self.rewind = session.forward, session.forward_all, session.rewind
        self.cancel, self.close = session.cancel, session.close
        self._session = session

    @property
    def length(self) -> int:
        return self._session.length
