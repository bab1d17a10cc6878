"""How threads of an engine of our own should wait for each other: for how long they spin before they sleep.

    python benchmarks/waiting.py BUNDLE [--neighbours 0 1 2] [--rounds 3] [--steps 16] [--loud]

The default is compared with spinning without end (what llama.cpp does), with sleeping at once, and with one thread: on
the gguf variant, whose adaptive threads are held, beside so many busy programs. Settings take turns in each round, and
the table has the median tokens a second, with the least and the most. It needs an engine of ``edgepack engine build``.
With ``--loud`` (Linux, as root) this program and its neighbours have the weight of nice -20 against all other sessions,
so that the machine is quiet for them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measure import neighbours

from edgepack.bundle.files import open_bundle
from edgepack.device.hardware import detect
from edgepack.runtime import Options
from edgepack_runtimes.gguf import library
from edgepack_runtimes.gguf.load import open_session
from edgepack_runtimes.gguf.session import GgufSession
from edgepack_runtimes.threads import Threads

PROMPT = [5 + 37 * place % 1000 for place in range(128)]


class Held(Threads):
    """As many threads at each step, whatever the steps cost."""

    def took(self, wall: float, cpu: float) -> None: ...


def rates(session: GgufSession, steps: int) -> tuple[float, float]:
    """Return tokens a second of a prefill of one chunk, and of so many steps of decode."""
    session.rewind(0)
    began = time.perf_counter()
    session.forward(PROMPT)
    middle = time.perf_counter()
    for token in range(steps):
        session.forward([token + 7])
    return len(PROMPT) / (middle - began), steps / (time.perf_counter() - middle)


def told(values: Sequence[float]) -> str:
    """Return a cell: the median, the least and the most."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--loud", action="store_true")
    asked = parser.parse_args()
    if asked.loud:
        if os.getsid(0) != os.getpid():
            os.execvp("setsid", ["setsid", "--wait", sys.executable, *sys.argv])
        Path("/proc/self/autogroup").write_text("-20")
    bundle, threads = open_bundle(asked.bundle), detect().threads
    variant = next(each.id for each in bundle.manifest.variants if each.runtime == "gguf")
    loaded = library.load(next(engine for engine in library.ENGINES if engine.own))
    settings = {"default": (threads, None), "spins": (threads, True), "sleeps": (threads, False), "one": (1, None)}
    options = Options(context=1024, threads=threads, kv_cache="f16", repack=False)
    session = open_session(loaded, bundle.variant_path(variant) / "model.gguf", bundle.manifest.decoder, options)
    print(f"{variant}, {loaded.version}, {threads} threads, load before {os.getloadavg()[0]:.1f}\n")
    print("| busy neighbours | threads | prefill, tokens/s | decode, tokens/s |\n|---|---|---|---|")
    for count in asked.neighbours:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
        with neighbours(count, own_session=False):
            for _ in range(asked.rounds):
                for name, (number, spin) in settings.items():
                    session._threads, session._spin = Held(number), spin
                    found[name].append(rates(session, asked.steps))
        for name, pairs in found.items():
            prefill, decode = zip(*pairs, strict=True)
            print(f"| {count} | {name} | {told(prefill)} | {told(decode)} |", flush=True)
    session.close()


if __name__ == "__main__":
    main()
