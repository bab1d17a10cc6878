"""A measurement in a process of its own, whose crash or hang is only a reason: a job goes in as JSON, its result comes
out, or why there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec

from edgepack.errors import EdgepackError, EngineError
from edgepack.isolation import process

J = TypeVar("J", bound=msgspec.Struct)
T = TypeVar("T")

_NOTHING = msgspec.Raw(b"null")


class _Answer(msgspec.Struct, frozen=True):
    result: msgspec.Raw = _NOTHING
    error: str | None = None


def ask(module: str, job: msgspec.Struct, kind: type[T], timeout_s: float) -> T:
    """Run a module, whose program is ``answer``, on a job. Raises ``EngineError`` with the reason why there is nothing
    to report."""
    if not process.can_start():
        raise EngineError("This program cannot start the interpreter that would measure.")
    try:
        output = process.run("Its process", module, given=msgspec.json.encode(job), timeout_s=timeout_s)
        answer = msgspec.json.decode(output, type=_Answer)
        if answer.result != _NOTHING:
            return msgspec.json.decode(answer.result, type=kind)
    except EngineError:  # a timeout is an OSError too
        raise
    except (OSError, msgspec.DecodeError) as error:
        raise EngineError(f"Its process could not be used: {error}.") from error
    raise EngineError(answer.error or "It gave no reason.")


def answer(kind: type[J], measure: Callable[[J], object]) -> None:
    """Measure the job on standard input and print the answer."""
    output = process.answering()
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=kind)
    try:
        found = _Answer(msgspec.Raw(msgspec.json.encode(measure(job))))
    except EdgepackError as error:
        found = _Answer(error=error.message)
    output.write(msgspec.json.encode(found))
    output.close()
