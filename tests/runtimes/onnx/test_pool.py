"""Threads of onnxruntime that rest: the results stay, and a session ends in whatever way with some of them at rest."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import variants
from models import make_llama
from numpy.typing import NDArray
from variants import token_ids

from edgepack.bundle.decoder import Decoder
from edgepack_packager.build import Built
from edgepack_runtimes.onnx.pool import Pool

TASKS = Path("/proc/self/task")
Start = Callable[..., "variants.Session"]


@pytest.fixture(scope="module", params=["f32", "int4_mixed"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """What opens a variant with rows enough for several blocks of work."""
    folder = tmp_path_factory.mktemp("pool")
    decoder = variants.pack("onnx", make_llama(folder / "source", hidden=256), folder / "onnx", request.param)
    return partial(_start, folder / "onnx", decoder)


def _start(folder: Path, decoder: Decoder, **options: object) -> variants.Session:
    session = variants.start("onnx", folder, decoder, **options)
    session.ids = token_ids(decoder, 140)  # type: ignore[attr-defined]
    return session


def logits(session: variants.Session, each: Callable[[int], None] = lambda step: None) -> NDArray[np.float32]:
    """Return the logits of a chunk of 128, and of 12 single steps; ``each`` is called before each of them."""
    ids = session.ids  # type: ignore[attr-defined]
    session.rewind(0)
    rows = []
    for step, tokens in enumerate([ids[:128], *([id] for id in ids[128:])]):
        each(step)
        rows.append(session.forward(tokens))
    return np.array(rows)


def pool(session: variants.Session) -> Pool:
    found = session._pool  # type: ignore[attr-defined]
    assert isinstance(found, Pool)
    return found


def test_results_depend_on_no_number_of_threads(start: Start) -> None:
    expected = logits(start())
    for threads in (2, 3, 8):
        for spin in (None, True, False):
            session = start(threads=threads, spin=spin)
            assert np.array_equal(logits(session), expected), (threads, spin)
            session.close()


def test_results_depend_on_no_rest(start: Start) -> None:
    expected = logits(start())
    session = start(threads=4, spin=True)
    assert np.array_equal(logits(session, lambda step: pool(session).use(1 + (step * 7) % 4)), expected)


def switches(task: str) -> int:
    """Return how often a thread has left its core."""
    lines = (TASKS / task / "status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


@pytest.mark.skipif(not TASKS.exists(), reason="this system does not tell what its threads do")
def test_a_thread_at_rest_takes_no_part(start: Start) -> None:
    before = set(os.listdir(TASKS))
    session = start(threads=2, spin=False)  # a thread that sleeps leaves its core at every operator
    (worker,) = set(os.listdir(TASKS)) - before

    def works() -> bool:
        then = switches(worker)
        logits(session)
        return switches(worker) != then

    for count in (1, 2, 1, 2):
        pool(session).use(count)
        # The thread may be on its way, and on a busy machine for long.
        assert any([works(), works(), works()] == [count == 2] * 3 for _ in range(50)), count


def test_a_session_adapts_where_nothing_was_said(start: Start) -> None:
    session = start(threads=2)
    session._threads.took(1.0, 1.0)  # type: ignore[attr-defined]  # another program has a core
    session.forward([1])
    assert len(pool(session)._resting) == 1
    for spin in (True, False):
        assert start(threads=2, spin=spin)._threads is None


@pytest.mark.skipif(not TASKS.exists(), reason="this system does not tell what its threads do")
@pytest.mark.parametrize("end", ["close", "drop", "wake"])
def test_a_session_ends_with_threads_at_rest(start: Start, end: str) -> None:
    gc.collect()
    before = len(os.listdir(TASKS))
    for _ in range(5):
        session = start(threads=4, spin=True)
        pool(session).use(1)
        session.forward([1, 2, 3])
        if end == "wake":
            pool(session).use(4)
        if end != "drop":
            session.close()
        del session
        assert len(os.listdir(TASKS)) == before


EXIT = """
import os, sys, threading, warnings
import edgepack
from edgepack.runtime import Options, find
from edgepack_runtimes.onnx import pool
pool._PATIENCE_S = 600.0
warnings.simplefilter("ignore")  # of a fork with threads
bundle = edgepack.open_bundle(sys.argv[1])

def work():
    global session
    options = Options(64, 3, "f32", spin=True)
    session = find("onnx").open(bundle.variant_path("onnx-f32"), bundle.manifest.decoder, options)
    session._pool.use(1)
    session.forward([1, 2, 3])
    ready.set()

how, ready = sys.argv[2], threading.Event()
if how == "main":
    work()
else:
    threading.Thread(target=work, daemon=True).start()
    ready.wait()
if how == "fork" and not os.fork():
    sys.exit()
if how == "fork":
    assert os.wait()[1] == 0
print("ends")
"""


@pytest.mark.parametrize("how", ["main", "daemon", "fork"])
def test_a_process_ends_with_threads_at_rest(demo_bundle: Built, how: str) -> None:
    command = [sys.executable, "-c", EXIT, str(demo_bundle.path), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")


def test_a_session_is_closed_in_its_thread_while_others_run(start: Start) -> None:
    def work() -> None:
        for _ in range(5):
            session = start(threads=3, spin=True)
            pool(session).use(1)
            found.append(np.array_equal(logits(session), expected))
            session.close()

    expected, found = logits(start()), []
    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [True] * 15
