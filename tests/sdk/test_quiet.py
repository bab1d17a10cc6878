"""Offline and quiet: a program that loads a bundle and generates opens no socket, writes only into the state folder,
prints nothing, and ends with exit code 0 in whatever order its objects go.

Each program is an interpreter of its own, with empty folders where a library could leave something. It is watched by an
audit hook, which the interpreters that it starts have too, and by strace, because no audit hook sees native code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgepack_packager.build import Built

ENGINES = ("gguf", "mlx", "onnx")
BEGIN = """
import sys, edgepack

def load():
    chosen = {"backend": sys.argv[2], "variant": sys.argv[2] + "-f32"} if sys.argv[2] else {}
    return edgepack.load(sys.argv[1], context=128, threads=2, **chosen)

"""
USE = """
with load() as model:
    model.generate("What is", max_tokens=4)
    with model.stream("What is") as stream:
        next(stream)
"""

PLANTED = """
import os, sys
from edgepack_runtimes.gguf import GgufRuntime
opened = GgufRuntime.open
def open_badly(*arguments):
    FAULT
    return opened(*arguments)
GgufRuntime.open = open_badly
"""

FOLDERS = ("cache", "home", "tmp", "work")
# Beside itself, and what says on a Mac how much memory there is.
PROGRAMS = (sys.executable, "sysctl", "vm_stat")
NETWORK = "socket", "socketpair", "connect", "bind", "sendto", "sendmsg", "sendmmsg"
OPENING = "open", "openat"
CHANGING = (
    *("creat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
    *("unlink", "unlinkat", "rmdir", "truncate"),
)
STRACE = ("strace", "-ff", "-qq", "-y", "-s", "4096", "-e", "trace=execve," + ",".join((*NETWORK, *OPENING, *CHANGING)))


class Place:
    """A bundle, and the folders of a program that uses it."""

    def __init__(self, bundle: Path, folder: Path, state: Path) -> None:
        self.bundle = bundle
        self.folder = folder
        self.state = state
        for name in FOLDERS:
            (folder / name).mkdir()

    def run(self, script: str, engine: str, under: Sequence[str] = (), **variables: str) -> Iterator[str]:
        """Run a script after ``BEGIN``, and yield what it printed and left behind. "" lets edgepack choose."""
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "TMPDIR": str(self.folder / "tmp"),
            "EDGEPACK_STATE": str(self.state),
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        }
        done = subprocess.run(
            [*under, sys.executable, "-c", BEGIN + script, str(self.bundle), engine],
            cwd=self.folder / "work",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            yield f"exit {done.returncode}"
        yield from (f"print {line}" for line in (done.stdout + done.stderr).splitlines())
        for name in FOLDERS:
            yield from (f"left {path}" for path in (self.folder / name).rglob("*"))

    def audit(self, script: str, engine: str) -> Iterator[str]:
        """Run a script and yield what is not quiet in it, by the audit events of Python."""
        needs("test", "-d", "/proc/self/fd")
        events = self.folder / "events"
        hook = Path(__file__).parents[1] / "watched"
        yield from self.run(script, engine, WATCHED=str(events), PYTHONPATH=str(hook))
        for line in events.read_text().splitlines():
            kind, _, detail = line.partition("\t")
            if not self.allows(kind, detail):
                yield f"{kind} {detail}"

    def trace(self, script: str, engine: str) -> Iterator[str]:
        """Run a script and yield what is not quiet in it, by its system calls."""
        needs("strace", "-f", "true")
        logs = self.folder / "calls"
        logs.mkdir()
        yield from self.run(script, engine, (*STRACE, "-o", str(logs / "of")))
        for log in logs.iterdir():
            for line in log.read_text(errors="replace").splitlines():
                call = re.match(r"(\w+)\((.*)\) += \d", line)  # a number below zero is a call that failed
                for kind, detail in asked(*call.groups()) if call else ():
                    if not self.allows(kind, detail):
                        yield f"{kind} {detail}"

    def alone(self, script: str, engine: str) -> Iterator[str]:
        """Run a script without any network interface, and yield what it printed and left behind."""
        unshare = ("unshare", "--net", "--map-root-user")
        needs(*unshare, "true")
        yield from self.run(script, engine, unshare)

    def allows(self, kind: str, detail: str) -> bool:
        """Whether a program may do so. What is in the folder for temporary files must be gone in the end."""
        if kind == "write":
            written = Path(detail)
            return detail == "/dev/null" or any(map(written.is_relative_to, (self.state, self.folder / "tmp")))
        if kind == "library":
            return Path(detail).is_relative_to(sys.prefix)
        return kind == "program" and detail in PROGRAMS


def asked(call: str, arguments: str) -> Iterator[tuple[str, str]]:
    """What a line of strace says that a program did: kinds and details as the audit hook gives them."""
    if call in NETWORK:
        yield "socket", f"{call}({arguments})"
    # Each path may be relative to an open folder before it.
    paths = [os.path.join(*found) for found in re.findall(r'(?:<([^>]*)>, )?"([^"]*)"', arguments)]
    if call == "execve":
        yield "program", paths[0]
    if call in CHANGING or (call in OPENING and re.search("O_WRONLY|O_RDWR|O_CREAT", arguments)):
        yield from (("write", path) for path in paths)


def needs(*command: str) -> None:
    """Skip a test where a command does not work."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    if done.returncode:
        pytest.skip(f"not possible here: {' '.join(command)} {done.stderr.strip()}")


@pytest.fixture
def place(demo_bundle: Built, tmp_path: Path) -> Place:
    """For a device that opens its first bundle."""
    return Place(demo_bundle.path, tmp_path, tmp_path / "state")


@pytest.fixture(scope="module")
def known_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def known(demo_bundle: Built, tmp_path: Path, known_state: Path) -> Place:
    """For a device that knows its engines."""
    return Place(demo_bundle.path, tmp_path, known_state)


@pytest.mark.parametrize("engine", ["", *ENGINES])
def test_no_audit_event_tells_of_a_socket_a_program_or_a_write_elsewhere(engine: str, place: Place) -> None:
    assert list(place.audit(USE, engine)) == []


@pytest.mark.parametrize("engine", ["", *ENGINES])
def test_no_system_call_asks_for_a_socket_a_program_or_a_write_elsewhere(engine: str, place: Place) -> None:
    assert list(place.trace(USE, engine)) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_is_not_missed(engine: str, place: Place) -> None:
    assert list(place.alone(USE, engine)) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_model_leaves_no_thread(engine: str, known: Place) -> None:
    """Some engines keep a pool of threads for the whole process; a second model must not add to it."""
    script = """
import os
def threads():
    with load() as model:
        model.generate("What is", max_tokens=4)
    return len(os.listdir("/proc/self/task"))
first = threads()
later = [threads() for _ in range(5)]
assert max(later) <= first + 2, [first, *later]  # one may take a moment to end
"""
    needs("test", "-d", "/proc/self/task")
    assert list(known.run(script, engine)) == []


ORDERS = {
    "nothing is closed": """
        model = load()
        model.generate("What is", max_tokens=4)
    """,
    "nothing is used": "model = load()",
    "nobody keeps the model": "load()",
    "closed twice": """
        with load() as model:
            model.generate("What is", max_tokens=4)
        model.close()
        model.close()
    """,
    "the model goes before its stream": """
        model = load()
        stream = model.stream("What is")
        stream.__enter__()
        next(stream)
        del model
    """,
    "the stream goes before its model": """
        model = load()
        stream = model.stream("What is")
        stream.__enter__()
        next(stream)
        del stream
    """,
    "the model is closed under its stream": """
        model = load()
        stream = model.stream("What is")
        stream.__enter__()
        next(stream)
        model.close()
    """,
    "a stream that nobody enters": """
        model = load()
        stream = model.stream("What is")
    """,
    "an exit in the middle of a stream": """
        with load() as model, model.stream("What is") as stream:
            next(stream)
            sys.exit()
    """,
    "an exception in the middle of a stream": """
        try:
            with load() as model, model.stream("What is") as stream:
                next(stream)
                raise LookupError
        except LookupError:
            pass
    """,
    "two models, the first goes first": """
        one, two = load(), load()
        two.generate("What is", max_tokens=4)
        del one
    """,
    "kept by a module": """
        import types
        sys.modules["application"] = types.ModuleType("application")
        sys.modules["application"].model = load()
    """,
    "kept by builtins": """
        import builtins
        builtins.model = load()
    """,
    "kept by a cycle": """
        class Application:
            pass
        application = Application()
        application.itself, application.model = application, load()
        application.stream = application.model.stream("What is")
        del application
    """,
    "kept by a thread's locals": """
        import threading
        local = threading.local()
        local.model = load()
        def work():
            local.model = load()
            local.model.generate("What is", max_tokens=4)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """,
    "used at exit": """
        import atexit
        model = load()
        atexit.register(model.generate, "What is", max_tokens=4)
    """,
    "a daemon thread generates": """
        import threading
        model, running = load(), threading.Event()
        def work():
            while True:
                with model.stream("What is", seed=1) as stream:
                    for chunk in stream:
                        running.set()
        threading.Thread(target=work, daemon=True).start()
        running.wait()
    """,
    "a thread outlives the main one": """
        import threading
        model, running = load(), threading.Event()
        def work():
            with model.stream("What is", max_tokens=40) as stream:
                for chunk in stream:
                    running.set()
        threading.Thread(target=work).start()
        running.wait()
    """,
    "an exit in a signal's handler": """
        import os, signal, threading
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit())
        running = threading.Event()
        def work():
            running.wait()
            os.kill(os.getpid(), signal.SIGUSR1)
        threading.Thread(target=work).start()
        with load() as model:
            while True:
                with model.stream("What is", seed=1) as stream:
                    for chunk in stream:
                        running.set()
    """,
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_end_is_quiet(engine: str, order: str, known: Place) -> None:
    assert list(known.run(textwrap.dedent(ORDERS[order]), engine)) == []


# What an engine might do when it opens a model, who hears it, and as what.
NATIVE = "import ctypes, os; libc = ctypes.CDLL(None); "
FAULTS = {
    "a socket": ("audit", "import socket; socket.socket().close()", "socket"),
    "a name that is looked up": ("audit", "import socket; socket.getaddrinfo('127.0.0.1', 80)", "socket"),
    "a program": ("audit", "import subprocess; subprocess.run(['true'])", "program true"),
    "a file in the user's home": ("audit", "import os; open(os.path.expanduser('~/engine'), 'w').close()", "write"),
    "a folder that is gone again": ("audit", "import os; os.mkdir('../home/x'); os.rmdir('../home/x')", "write"),
    "a library from elsewhere": ("audit", "import ctypes; ctypes.CDLL('libc.so.6')", "library libc.so.6"),
    "a native socket": ("trace", NATIVE + "libc.socket(2, 1, 0)", "socket"),
    "a native program": ("trace", NATIVE + "libc.system(b'true')", "program"),
    "a native file": ("trace", NATIVE + "libc.creat(b'../home/engine', 0o600)", "write"),
    "a native file that is gone again": ("trace", NATIVE + "libc.mkdir(b'x', 0o700); libc.rmdir(b'x')", "write x"),
    "onnxruntime's telemetry": (
        "trace",
        "import onnxruntime; onnxruntime.InferenceSession(sys.argv[1] + '/variants/onnx-f32/model.onnx')",
        "write",
    ),
    "an address elsewhere": (
        "alone",
        "import socket; socket.create_connection(('192.0.2.1', 9), 5)",
        "print OSError: [Errno 101]",
    ),
    "a print": ("run", "print('Loading ...')", "print Loading ..."),
    "a warning": ("run", "import warnings; warnings.warn('slow')", "print"),
    "a native print": ("run", NATIVE + "libc.write(2, b'ggml_init', 9)", "print ggml_init"),
    "a file in the cache": ("run", "import os; open(os.environ['XDG_CACHE_HOME'] + '/id', 'w').close()", "left"),
    "a temporary file that stays": ("run", "import tempfile; tempfile.mkstemp()", "left"),
    "an abort at exit": ("run", "import atexit, os; atexit.register(os.abort)", "exit -6"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_engine_is_heard(fault: str, known: Place) -> None:
    watcher, code, word = FAULTS[fault]
    script = PLANTED.replace("FAULT", code) + USE
    assert any(found.startswith(word) for found in getattr(known, watcher)(script, "gguf"))
