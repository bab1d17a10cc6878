"""Ask an engine, in a process of its own, for the ids that it gives to texts by a variant's own vocabulary."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgepack import runtime
from edgepack.errors import EdgepackError, EngineError
from edgepack.isolation import process
from edgepack.runtime import Tokenizing
from edgepack_packager.proof import child


class Job(msgspec.Struct, frozen=True):
    """What the child tokenises with a variant's vocabulary: ``plain`` texts, and ``special`` ones that parse names."""

    runtime: str
    variant: str
    plain: list[str]
    special: list[str]


class Answer(msgspec.Struct, frozen=True):
    """The ids of each text, or why there are none."""

    plain: list[list[int]] = []
    special: list[list[int]] = []
    error: str | None = None


def ids(name: str, variant: Path, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
    """Return the ids that the engine of the runtime ``name`` gives to texts, each with whether names parse in it.

    Raises ``EngineError``.
    """
    plain, special = ([text for text, parses in texts if parses is which] for which in (False, True))
    place = f"{name} on {variant.name}"
    answer = child.ask(__name__, Job(name, str(variant), plain, special), place, Answer)
    if answer.error is not None:
        raise EngineError(f"The engine of {place} failed: {answer.error}")
    found = iter(answer.plain), iter(answer.special)
    return [next(found[parses]) for _, parses in texts]


def main() -> None:
    """Read a job from standard input, run it, and answer on standard output."""
    output = process.answering()
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    engine = runtime.find(job.runtime)
    assert isinstance(engine, Tokenizing)
    try:
        plain, special = (
            engine.tokenize(Path(job.variant), texts, special=parses) if texts else []
            for texts, parses in ((job.plain, False), (job.special, True))
        )
        answer = Answer(plain, special)
    except (EdgepackError, OSError) as error:
        answer = Answer(error=str(error))
    output.write(msgspec.json.encode(answer))
    output.close()


if __name__ == "__main__":
    main()
