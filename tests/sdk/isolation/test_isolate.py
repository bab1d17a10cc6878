"""An engine in a process of its own: what breaks it, what its parent sees, and what is left of it."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import broken_runtimes
import msgspec
import numpy as np
import pytest
from broken_runtimes import ABORT, CHATTER, EXIT, HANG, HANG_HARD, ILLEGAL, KILL, LINGER, NAP, SEGFAULT, SHAPE, WAIT
from cancelling import cancelling
from decoders import describe

from edgepack.errors import (
    Cancelled,
    ContextTooLargeError,
    EngineCrashedError,
    EngineError,
    EngineMissingError,
    EngineTimeoutError,
    UsageError,
)
from edgepack.fake import FakeRuntime
from edgepack.isolation.isolate import IsolatedRuntime, IsolatedSession, isolated
from edgepack.runtime import Options, Sequences, Session, Snapshots, Step

DECODER = describe(n_vocab=300)
OPTIONS = Options(context=64, threads=1, kv_cache="f32", chunk=16)
IDS = list(range(40))
SOON_S = 1.0  # a limit for what would take for ever

Open = Callable[..., Session]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the broken runtimes' metadata."""
    return broken_runtimes.register(tmp_path / "site", monkeypatch).parent


@pytest.fixture
def opening(site: Path, tmp_path: Path) -> Iterator[Open]:
    opened: list[Session] = []

    def open_session(name: str = "fragile", variant: str = "q4", **limits: float) -> Session:
        opened.append(IsolatedRuntime(name, **limits).open(tmp_path / variant, DECODER, OPTIONS))
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()


class Pipe:
    """A named pipe that a child holds open for as long as it lives."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")

    def pid(self) -> int:
        """Return the child's process id."""
        os.set_blocking(self._file.fileno(), True)
        return int(self._file.readline())

    def wait(self) -> None:
        """Return when the child is no more."""
        assert select.select([self._file], [], [], 60)[0], "the child goes on"
        assert self._file.read() == b""


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipe:
    monkeypatch.setenv(broken_runtimes.HELD, str(tmp_path / "pipe"))
    return Pipe(tmp_path / "pipe")


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """What the same tokens give without isolation."""
    return FakeRuntime().open(Path(), DECODER, OPTIONS).forward_all(IDS)


# Crashes and hangs


def test_a_crash_is_an_error_and_the_next_call_works(opening: Open, expected: np.ndarray) -> None:
    session = opening()
    for token, end in [
        (ABORT, "was ended by SIGABRT"),
        (SEGFAULT, "was ended by SIGSEGV"),
        (ILLEGAL, "used instructions that this processor lacks (SIGILL)"),
        (KILL, "was killed (SIGKILL), as a system does that runs out of memory"),
        (EXIT, "ended by itself with exit code 3"),
    ]:
        np.testing.assert_array_equal(session.forward(IDS), expected[-1])
        assert session.length == 40
        with pytest.raises(EngineCrashedError) as caught:
            session.forward([1, token])
        assert f"/q4 {end}: engine.c:7: ENGINE_ASSERT(sound) failed." in caught.value.message
        assert caught.value.hint == "The next call starts another."
        assert session.length == 0
        with pytest.raises(ValueError, match="rewind to 1"):
            session.rewind(1)


def test_a_process_that_ends_takes_all_sequences_with_it(site: Path, pipe: Pipe, tmp_path: Path) -> None:
    options = replace(OPTIONS, sequences=3)
    session = IsolatedRuntime("held").open(tmp_path / "q4", DECODER, options)
    expected = FakeRuntime().open(Path(), DECODER, options)
    assert isinstance(session, Sequences)
    assert isinstance(expected, Sequences)
    try:
        steps = [Step(2, [1, 2, 3]), Step(0, [4])]
        session.forward_batch(steps)
        os.kill(pipe.pid(), signal.SIGKILL)
        with pytest.raises(EngineCrashedError, match="SIGKILL"):
            session.forward_batch([Step(2, [5]), Step(1, [6])])
        assert [session.length_of(each) for each in range(3)] == [0, 0, 0]
        found = session.forward_batch(steps)
        assert [session.length_of(each) for each in range(3)] == [1, 0, 3]
        for one, other in zip(found, expected.forward_batch(steps), strict=True):
            np.testing.assert_array_equal(one, other)
        assert session.copy(2, 1, 2) == session.length_of(1) == 2
    finally:
        session.close()


@pytest.mark.parametrize("token", [HANG, HANG_HARD])
def test_a_hang_is_an_error_and_the_next_call_works(token: int, opening: Open, expected: np.ndarray) -> None:
    session = opening(timeout_s=SOON_S)
    session.forward(IDS)
    with pytest.raises(EngineTimeoutError, match=r"fragile on .*/q4 did not answer within 1 s and was ended\."):
        session.forward([token])
    assert session.length == 0
    np.testing.assert_array_equal(session.forward_all(IDS), expected)


def test_only_the_first_step_has_the_time_of_a_start(opening: Open) -> None:
    session = opening(timeout_s=0.1)
    session.forward([NAP])
    with pytest.raises(EngineTimeoutError):
        session.forward([NAP])
    session.forward([NAP])


def test_a_process_that_ends_between_two_calls(pipe: Pipe, opening: Open, expected: np.ndarray) -> None:
    session = opening()
    session.forward(IDS[:5])
    os.kill(pipe.pid(), signal.SIGKILL)
    with pytest.raises(EngineCrashedError, match="SIGKILL"):
        session.forward(IDS[5:])
    assert session.length == 0
    np.testing.assert_array_equal(session.forward(IDS), expected[-1])


def test_a_crash_of_the_load(opening: Open) -> None:
    with pytest.raises(EngineCrashedError, match=r"SIGABRT: engine\.c:7") as caught:
        opening("open-aborts")
    assert "doctor" in str(caught.value.hint)


def test_a_load_that_hangs(opening: Open) -> None:
    with pytest.raises(EngineTimeoutError, match="within 1 s"):
        opening("open-hangs", start_timeout_s=SOON_S)


# Errors that cross the border


@pytest.mark.parametrize(
    ("variant", "kind", "message", "hint"),
    [
        ("engine", EngineError, "model.bin: bad magic.", "Verify the bundle."),
        ("own", ContextTooLargeError, "Too large.", "Load with a smaller context."),
        ("value", ValueError, "no such value", None),
        ("type", EngineError, "The runtime raised TypeError: unsupported operand.", None),
    ],
)
def test_an_error_is_the_same_on_both_sides(
    variant: str, kind: type[Exception], message: str, hint: str | None, opening: Open
) -> None:
    with pytest.raises(kind) as caught:
        opening("open-raises", variant)
    assert type(caught.value) is kind
    assert getattr(caught.value, "message", str(caught.value)) == message
    assert getattr(caught.value, "hint", None) == hint


def test_logits_of_a_wrong_shape_are_refused(opening: Open) -> None:
    with pytest.raises(EngineError, match=r"shape \(3,\) instead of \(300,\)"):
        opening().forward([SHAPE])


def test_a_runtime_that_nobody_registered(opening: Open) -> None:
    with pytest.raises(EngineMissingError, match="No runtime is called 'nobody'"):
        opening("nobody")


def test_a_runtime_that_is_given_cannot_be_isolated() -> None:
    assert isolated("gguf", None).name == "gguf"
    with pytest.raises(UsageError, match="given as an object cannot be isolated"):
        isolated("fake", {"fake": FakeRuntime()})


@pytest.mark.parametrize("limits", [{"timeout_s": 0}, {"start_timeout_s": -1}, {"timeout_s": float("nan")}])
def test_limits_are_times(limits: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(limits))} is"):
        IsolatedRuntime("gguf", **limits)


def test_a_program_that_cannot_start_an_interpreter(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(EngineMissingError, match="needs a Python interpreter"):
        opening()


def test_an_interpreter_that_is_not_there(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EngineError, match="could not be started"):
        opening()


# The seam


def test_a_cancel_reaches_an_engine_that_hears_late(opening: Open, expected: np.ndarray) -> None:
    session = opening()
    session.forward(IDS[:20])
    with cancelling(session), pytest.raises(Cancelled):
        session.forward([WAIT])
    assert session.length == 20
    np.testing.assert_array_equal(session.forward_all(IDS[20:]), expected[20:])


def test_an_engine_prints_into_the_void_and_reads_nothing(
    opening: Open, capfd: pytest.CaptureFixture[str], expected: np.ndarray
) -> None:
    session = opening(start_timeout_s=30)
    session.forward([CHATTER])
    session.rewind(0)
    np.testing.assert_array_equal(session.forward(IDS), expected[-1])
    session.close()
    assert capfd.readouterr() == ("", "")


def test_snapshots_cross_the_border_and_outlive_a_crash(opening: Open, expected: np.ndarray) -> None:
    session = opening()
    assert isinstance(session, Snapshots)
    session.forward(IDS)
    session.rewind(30)
    state = session.snapshot()
    with pytest.raises(EngineCrashedError):
        session.forward([ABORT])
    session.restore(state)
    assert session.length == 30
    np.testing.assert_array_equal(session.forward_all(IDS[30:]), expected[30:])
    with pytest.raises(ValueError, match="snapshot"):
        session.restore(b"no snapshot")
    assert session.length == 0
    np.testing.assert_array_equal(session.forward(IDS), expected[-1])


def test_a_runtime_without_snapshots_has_none_here(opening: Open, expected: np.ndarray) -> None:
    session = opening("plain")
    assert isinstance(session, IsolatedSession)
    assert not isinstance(session, Snapshots)
    np.testing.assert_array_equal(session.forward(IDS), expected[-1])


# What is left of it


@pytest.mark.parametrize("token", [1, LINGER])
def test_closing_ends_the_process_even_where_the_engine_does_not(token: int, pipe: Pipe, opening: Open) -> None:
    session = opening()
    session.forward([token])
    session.close()
    pipe.pid()
    pipe.wait()


def test_a_session_that_nobody_has_any_more_ends(pipe: Pipe, site: Path) -> None:
    session = IsolatedRuntime("fragile").open(Path("q4"), DECODER, OPTIONS)
    session.forward(IDS[:3])
    del session
    gc.collect()
    pipe.pid()
    pipe.wait()


def start(script: str) -> subprocess.Popen[str]:
    """Start a program with ``open(**limits)``, which returns an isolated session, and in a process group of its own."""
    head = f"""
        import os, signal, sys, warnings
        from pathlib import Path
        import msgspec
        from edgepack.bundle.decoder import Decoder
        from edgepack.errors import EngineError
        from edgepack.isolation.isolate import IsolatedRuntime
        from edgepack.runtime import Options
        def open(**limits):
            decoder = msgspec.json.decode({msgspec.json.encode(DECODER)!r}, type=Decoder)
            return IsolatedRuntime("fragile", **limits).open(Path("q4"), decoder, Options(64, 1, "f32", 16))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


def outcome(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = program.communicate(timeout=120)
    return program.returncode, out, err


@pytest.mark.parametrize(
    "script",
    [
        "session = open(); session.forward([1, 2])",
        "import threading; threading.Thread(target=lambda: open().forward([1])).start()",
        "session = open(); session.cycle = session",
        f"""
        import threading
        def work():
            opened = open()
            try:
                ready.set()
                opened.forward([{HANG}])
            except EngineError:
                pass
        ready = threading.Event()
        threading.Thread(target=work, daemon=True).start()
        ready.wait()
        """,
    ],
)
def test_a_program_that_forgets_to_close_ends_in_silence(script: str, pipe: Pipe, site: Path) -> None:
    assert outcome(start(script)) == (0, "", "")
    pipe.pid()
    pipe.wait()


@pytest.mark.parametrize(
    ("limit_s", "then"),
    [(600, "signal.pause()"), (600, f"session.forward([{HANG}])"), (2, f"session.forward([{HANG_HARD}])")],
)
def test_a_process_does_not_outlive_its_parent(limit_s: float, then: str, pipe: Pipe, site: Path) -> None:
    program = start(f"""
        session = open(timeout_s={limit_s})
        session.forward([1])
        print("ready", flush=True)
        {then}
    """)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    program.kill()
    pipe.pid()
    pipe.wait()
    program.communicate()


def test_a_ctrl_c_is_the_parents_alone(site: Path) -> None:
    program = start("""
        session = open()
        session.forward([1, 2, 3])
        try:
            print("ready", flush=True)
            signal.pause()
        except KeyboardInterrupt:
            session.forward([4])
            print(session.length)
    """)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    os.killpg(program.pid, signal.SIGINT)
    assert outcome(program) == (0, "4\n", "")


def test_a_ctrl_c_in_a_forward_leaves_a_session_that_works(site: Path) -> None:
    program = start(f"""
        from threading import Timer
        session = open()
        session.forward([1, 2, 3])
        Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            session.forward([{HANG}])
        except KeyboardInterrupt:
            print(session.length)
        session.forward([4])
        print(session.length)
    """)
    assert outcome(program) == (0, "0\n1\n", "")


def test_a_fork_that_ends_takes_nothing_with_it(site: Path) -> None:
    program = start("""
        session = open()
        session.forward([1, 2, 3])
        warnings.simplefilter("ignore")  # of a fork with threads
        if (pid := os.fork()) == 0:
            sys.exit()
        os.waitpid(pid, 0)
        session.forward([4])
        print(session.length)
    """)
    assert outcome(program) == (0, "4\n", "")
