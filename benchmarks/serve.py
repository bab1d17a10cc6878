"""Servers of one model beside each other: total tokens a second, time to the first token, and memory, by clients.

    python benchmarks/serve.py BUNDLE [--onnx] [--llama-server FILE] [--llama-cpp-python PYTHON]
        [--clients 1 2 4 8] [--rounds 3] [--seconds 10] [--answer 64]

Contenders: ``edgepack serve`` with the one gguf variant of the bundle, with ``--onnx`` also its onnx variant;
llama.cpp's llama-server and llama-cpp-python's server (PYTHON is the interpreter that has it), both with the very file
of the gguf variant. Each has as many slots as the most clients, a context of ``--context`` tokens a slot, an f16 KV
cache where it can, weights as they are stored where it can, and as many threads as edgepack takes here;
llama-cpp-python's has one slot. All run for the whole time, and one at a time has clients: in each round every number
of clients asks every contender, in turns. A client asks one question after the other for ``--seconds``, each another
one behind a system prompt that all share, and reads the stream.

Tokens are those of the usage that a server reports (llama-cpp-python's reports none of a stream: there, the pieces of
text), spread evenly over the time from a question to the end of its answer, and counted as far as that lies in those
seconds: so all clients ask all the time, however long answers are. Medians of the rounds, with the least and the most.
The first token is timed by the client: p50 and p95 of all questions. Memory is the largest resident set of the server's
processes (VmHWM), in MiB. The last column is the speed over that of one client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from urllib.error import URLError
from urllib.request import urlopen

from edgepack.bundle.files import open_bundle
from edgepack.device.hardware import detect

SYSTEM = "You answer questions about the world for visitors of a museum. Be friendly, and keep to what is known. " * 3
TOPICS = ("the sea", "old clocks", "bees", "the moon", "bread", "bridges", "glass", "maps", "salt", "violins")


@dataclass(frozen=True, slots=True)
class Answered:
    """What a client saw of an answer: when it asked, when the first token came and the last, and how many came."""

    began: float
    first: float
    ended: float
    tokens: int

    def until(self, end: float) -> float:
        """Return the tokens that came before a time, as if all took as long."""
        return self.tokens * (min(self.ended, end) - self.began) / (self.ended - self.began)


@dataclass(frozen=True, slots=True)
class Server:
    """A contender that runs: its port, the name of its model, and its process."""

    name: str
    port: int
    model: str
    process: subprocess.Popen[bytes]

    def peak_mib(self) -> int:
        """Return the largest resident set so far, of all its processes."""
        return sum(_peak(each) for each in _tree(self.process.pid)) >> 10


async def ask(server: Server, number: int, answer: int) -> Answered:
    """Ask a question and read the answer's stream."""
    question = f"Tell me about {TOPICS[number % len(TOPICS)]}, number {number}."
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    wanted = {"model": server.model, "messages": messages, "max_tokens": answer, "temperature": 0.0, "stream": True}
    body = json.dumps(wanted | {"stream_options": {"include_usage": True}}).encode()
    began, first, tokens, pieces = time.perf_counter(), 0.0, 0, 0
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"{server.name}: {status.decode()} {(await reader.read(2000)).decode()}")
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if any(each["delta"].get("content") for each in event.get("choices", ())):
            first, pieces = first or time.perf_counter(), pieces + 1
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
    writer.close()
    ended = time.perf_counter()
    return Answered(began, first or ended, ended, tokens or pieces)


async def run(server: Server, clients: int, asked: argparse.Namespace, begin: int) -> tuple[float, list[Answered]]:
    """Return the tokens a second of so many clients together, and what their questions took."""
    numbers, end = count(begin), time.perf_counter() + asked.seconds

    async def client() -> list[Answered]:
        found = []
        while time.perf_counter() < end:
            found.append(await ask(server, next(numbers), asked.answer))
        return found

    found = [each for answers in await asyncio.gather(*(client() for _ in range(clients))) for each in answers]
    return sum(each.until(end) for each in found) / asked.seconds, found


@contextmanager
def serving(name: str, model: str, port: int, command: Sequence[object], health: str) -> Iterator[Server]:
    """Yield a contender once it answers, and end it."""
    log = Path(f"{os.environ.get('TMPDIR', '/tmp')}/serve-{port}.log")
    with log.open("wb") as out, subprocess.Popen([str(each) for each in command], stdout=out, stderr=out) as process:
        try:
            end = time.monotonic() + 300
            while not _is_up(port, health):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{name} does not run: {log.read_text(errors='replace')[-800:]}")
                time.sleep(0.2)
            yield Server(name, port, model, process)
        finally:
            process.send_signal(signal.SIGINT)


def contenders(asked: argparse.Namespace) -> Iterator[object]:
    """Yield a context for each contender."""
    bundle, slots, threads = open_bundle(asked.bundle, verify="sizes"), max(asked.clients), detect().threads
    name = bundle.manifest.name
    served = [sys.executable, "-m", "edgepack", "serve", f"{name}={asked.bundle}", "--parallel", slots, "--pin", name]
    for backend in ("gguf", "onnx") if asked.onnx else ("gguf",):
        port = _free()
        command = [*served, "--backend", backend, "--context", asked.context, "--port", port]
        yield serving(f"edgepack, {backend}", name, port, command, "/readyz")
    ids = [each.id for each in bundle.manifest.variants if each.runtime == "gguf"]
    if len(ids) != 1:  # else the plan chooses, and not always the same
        raise SystemExit(f"{asked.bundle} has {len(ids)} gguf variants. Make one of one: edgepack split --variant ID.")
    file = bundle.variant_path(ids[0]) / "model.gguf"
    if asked.llama_server:
        port, settings = _free(), ["-np", slots, "-c", slots * asked.context, "-t", threads, "-tb", threads]
        settings.append("--no-repack")  # weights as stored, as edgepack has them
        command = [asked.llama_server, "-m", file, "--port", port, "--host", "127.0.0.1", *settings]
        yield serving("llama-server", name, port, command, "/health")
    if asked.llama_cpp_python:
        port, settings = _free(), ["--n_ctx", asked.context, "--n_threads", threads, "--interrupt_requests", "false"]
        command = [asked.llama_cpp_python, "-m", "llama_cpp.server", "--model", file, "--port", port, *settings]
        yield serving("llama-cpp-python", name, port, command, "/v1/models")


def main() -> None:
    """Ask all contenders in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--llama-cpp-python", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    asked = parser.parse_args()
    speeds: dict[tuple[str, int], list[float]] = defaultdict(list)
    firsts: dict[tuple[str, int], list[float]] = defaultdict(list)
    peaks: dict[tuple[str, int], int] = {}
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        servers = [stack.enter_context(each) for each in contenders(asked)]  # type: ignore[arg-type, var-annotated]
        for server in servers:
            asyncio.run(run(server, 1, asked, 100_000))
        for number in range(asked.rounds):
            for clients in asked.clients:
                for server in servers[:: -1 if number % 2 else 1]:
                    begin = 1000 * number + 100 * clients
                    speed, found = asyncio.run(run(server, clients, asked, begin))
                    speeds[server.name, clients].append(speed)
                    firsts[server.name, clients] += [each.first - each.began for each in found]
                    peaks[server.name, clients] = server.peak_mib()
    print("| server | clients | tokens/s | first token p50, s | p95, s | MiB | to one client |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for server in servers:
        for clients in asked.clients:
            key, one = (server.name, clients), median(speeds[server.name, asked.clients[0]])
            low, middle, high = min(speeds[key]), median(speeds[key]), max(speeds[key])
            p95 = quantiles(firsts[key], n=20)[-1] if len(firsts[key]) > 1 else firsts[key][0]
            row = f"{middle:.1f} ({low:.1f}-{high:.1f}) | {median(firsts[key]):.2f} | {p95:.2f} | {peaks[key]}"
            print(f"| {server.name} | {clients} | {row} | {middle / one:.2f} |")
    print(f"\n{detect().processor}, {detect().threads} threads; load average before: {load:.1f}.")


def _is_up(port: int, path: str) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _tree(pid: int) -> list[int]:
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(each for child in children for each in _tree(child))]


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
