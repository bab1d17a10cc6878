"""A process forks while an engine works: the child loads a model of its own or is refused at once, and ends at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgepack_packager.build import Built

SCRIPT = """
import os, sys, threading, time, warnings
import edgepack
warnings.simplefilter("ignore")  # of a fork with threads
bundle, engine = sys.argv[1:]

def load():
    return edgepack.load(bundle, engine, 256, variant=f"{engine}-f32", threads=2)

def answered(child):
    for _ in range(2000):
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False

with load() as model:
    before = model.generate("Once", max_tokens=6).text
    working = True
    work = lambda: [model.generate("a b " * 40, max_tokens=9) for _ in iter(lambda: working, False)]
    busy = threading.Thread(target=work)
    busy.start()
    for asks in (True, True, False):
        time.sleep(0.02)
        if not (child := os.fork()):
            if asks:
                try:
                    model.generate("x")
                except edgepack.EngineError as error:
                    print(error, flush=True)
                model.close()
                try:
                    with load() as own:
                        print(own.generate("Once", max_tokens=6).text == before, flush=True)
                except edgepack.EngineError as error:
                    print(error, flush=True)
                os._exit(0)
            sys.exit()
        print("child", answered(child), flush=True)
    working = False
    busy.join()
    print(model.generate("Once", max_tokens=6).text == before)
"""
OLD = "A model does not survive a fork. Load it in the process that uses it."
MLX = (
    "mlx was in use where this process was forked from, and does not survive a fork. "
    "Start the process anew (multiprocessing calls it spawn), or load with isolate=True."
)


@pytest.mark.parametrize("engine", ["gguf", "onnx", "mlx"])
def test_a_fork_of_a_busy_process_answers_or_is_refused(engine: str, demo_bundle: Built) -> None:
    command = [sys.executable, "-c", SCRIPT, str(demo_bundle.path), engine]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    child = [OLD, MLX if engine == "mlx" else "True", "child True"]
    assert (done.stdout.splitlines(), done.stderr) == ([*child, *child, "child True", "True"], "")
