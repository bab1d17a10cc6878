"""Run token ids through a variant in a process of its own, so that an engine's crash becomes a sentence."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from edgepack.bundle.decoder import Decoder
from edgepack.device.hardware import detect
from edgepack.errors import EdgepackError, EngineError
from edgepack.isolation import process
from edgepack.runtime import Hidden, KvCache, Options, find

CHUNK = 128
TIMEOUT_S = 3600.0
"""Some hundred tokens of any model that fits a host take minutes: an engine that needs more has stopped."""

T = TypeVar("T")


class Job(msgspec.Struct, frozen=True):
    """What the child does: open ``variant``, run ``ids``, write their logits to ``output``: float32 [n, n_vocab]; of a
    model without a head their states, [n, hidden size].

    ``more`` are other texts, each from an empty cache, by the files that their logits go to. A step has ``chunk`` ids.
    """

    runtime: str
    variant: str
    decoder: Decoder
    ids: list[int]
    kv_cache: KvCache
    output: str
    more: dict[str, list[int]] = {}
    chunk: int = CHUNK


class Answer(msgspec.Struct, frozen=True):
    """What the child says: the engine's package and its version, or why there are no logits."""

    engine: str | None = None
    error: str | None = None


def run(job: Job) -> str:
    """Run a job in a child process and return the engine's package and its version; the logits are in ``job.output``.

    Raises ``EngineError`` with the engine's own reason, or with how its process ended.
    """
    place = f"{job.runtime} on {Path(job.variant).name}"
    answer = ask("edgepack_packager.proof.child", job, place, Answer)
    if answer.engine is None:
        raise EngineError(f"The engine of {place} failed: {answer.error}")
    return answer.engine


def ask(module: str, job: msgspec.Struct, place: str, kind: type[T]) -> T:
    """Give a job to a module that runs as a program of its own, and return its answer.

    Raises ``EngineError``, which names ``place``, for a program that ends without one, or not within ``TIMEOUT_S``.
    """
    what = f"The engine of {place}"
    try:
        output = process.run(what, module, given=msgspec.json.encode(job), timeout_s=TIMEOUT_S)
        return msgspec.json.decode(output, type=kind)
    except EngineError as error:
        raise type(error)(error.message, hint="Run `edgepack doctor` to see what is installed.") from None
    except msgspec.DecodeError:
        raise EngineError(f"{what} ended without an answer.") from None
    except OSError as error:
        raise EngineError(f"{what} could not be started: {error.strerror}.") from None


def main() -> None:
    """Read a job from standard input, run it, and answer on standard output."""
    output = process.answering()
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    # Read when the engine is loaded: threads of OpenMP that spin take the cores from others, and from each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        answer = Answer(engine=_logits(job))
    except (EdgepackError, OSError) as error:
        answer = Answer(error=str(error))
    output.write(msgspec.json.encode(answer))
    output.close()


def _logits(job: Job) -> str:
    hardware = detect()
    runtime = find(job.runtime)
    texts = {job.output: job.ids} | job.more
    longest = max(map(len, texts.values()))
    chunk = longest if job.decoder.at_once else job.chunk
    options = Options(context=longest, threads=hardware.threads, kv_cache=job.kv_cache, chunk=chunk)
    session = runtime.open(Path(job.variant), job.decoder, options)
    evaluate = session.hidden if isinstance(session, Hidden) else session.forward_all
    try:
        for path, ids in texts.items():
            session.rewind(0)
            with open(path, "wb") as output:
                for start in range(0, len(ids), chunk):
                    logits = evaluate(ids[start : start + chunk])
                    output.write(np.ascontiguousarray(logits, dtype="<f4").tobytes())
    finally:
        session.close()
    support = runtime.probe(hardware)
    return support.package or f"{runtime.name} {support.version}"


if __name__ == "__main__":
    main()
