"""Render the battery through a source's chat template, in a process with little time and little memory.

A chat template is a program of a stranger. The SDK's sandbox keeps it from the machine and counts what it spends; here,
where it is met first, it also runs in a child process under the limits of the operating system. The child answers line
by line, so that the first conversation without an answer is the one to blame.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import msgspec

from edgepack.bundle.thinking import Thinking
from edgepack.errors import BundleError, SourceError, UsageError
from edgepack.text.chat import ChatTemplate
from edgepack.text.marks import Marked
from edgepack.text.messages import in_parts
from edgepack_packager.text.arrival import Arrival, Probe, settle
from edgepack_packager.text.battery import WEATHER, Conversation, asked
from edgepack_packager.text.files import TEMPLATE, TOOL_USE
from edgepack_packager.text.thinking import conversations, find

CPU_SECONDS = 10
MEMORY_MIB = 512
# A child that waits for a processor is not to blame; only one that never ends meets this limit.
WALL_SECONDS = 120

_OUT_OF_MEMORY = 3
_EXHAUSTED = 4
_HINT = "A template is a program: read it, or build without it: --no-chat"


class Job(msgspec.Struct, frozen=True):
    """What the child renders, and its limits."""

    source: str
    bos_token: str
    eos_token: str
    day: str
    file: str
    cpu_seconds: int
    memory_mib: int
    names: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True):
    """A line of the child: a conversation's text, or why there is none. The first says what the template reads, the
    last whose words arrive and how the model thinks. ``runs`` are the text's, see ``Marked``."""

    name: str = ""
    text: str | None = None
    runs: list[int] = []
    refusal: str | None = None
    reads: list[str] | None = None
    arrival: Arrival | None = None
    thinking: Thinking | None = None

    @property
    def marked(self) -> Marked:
        """The text, with what the template wrote of it."""
        return Marked.of_runs(self.text or "", self.runs)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a template made of the battery: by conversation, without those that it has no use for.

    ``reads`` are the names that it reads from outside; ``conversations`` what it was given, contents in their form;
    ``thinking`` is how its model thinks, None where the template does not speak of that.
    """

    reads: frozenset[str]
    conversations: Sequence[Conversation]
    answers: Mapping[str, Answer]
    arrival: Arrival
    thinking: Thinking | None = None


@lru_cache(maxsize=4)
def battery(
    source: str, bos_token: str, eos_token: str, day: str, file: str = TEMPLATE, names: tuple[str, ...] = ()
) -> Rendered:
    """Render the battery, with ``day`` (YYYY-MM-DD) where the template prints one, and find whose words arrive.

    ``file`` is the template's: that for tools gets a tool in each conversation. ``names`` are those of special tokens,
    which some conversations say. Raises ``SourceError`` for a template
    that does not compile, or that takes more time or memory than it gets.
    """
    job = Job(source, bos_token, eos_token, day, file, CPU_SECONDS, MEMORY_MIB, names)
    command = [sys.executable, "-m", "edgepack_packager.text.render"]
    try:
        child = subprocess.run(
            command, input=msgspec.json.encode(job), capture_output=True, timeout=WALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _stopped(job, error.output or b"", f"runs for more than {WALL_SECONDS} s") from None
    if hasattr(signal, "SIGXCPU") and child.returncode == -signal.SIGXCPU:
        raise _stopped(job, child.stdout, f"runs for more than {CPU_SECONDS} s")
    if child.returncode == _OUT_OF_MEMORY:
        raise _stopped(job, child.stdout, f"needs more than {MEMORY_MIB} MiB")
    if child.returncode == _EXHAUSTED:
        raise _stopped(job, child.stdout, "takes more time or memory than a template may")
    if child.returncode != 0:
        last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise _stopped(job, child.stdout, f"ends its process with code {child.returncode} {last}".rstrip())
    first, *others = _answers(child.stdout)
    if first.reads is None:
        raise SourceError(first.refusal or f"{file} does not compile.", hint=_HINT)
    end = others.pop()
    assert end.arrival is not None
    return Rendered(
        reads=frozenset(first.reads),
        conversations=_asked(job, set(first.reads), end.arrival.parts, end.thinking),
        answers={answer.name: answer for answer in others},
        arrival=end.arrival,
        thinking=end.thinking,
    )


def check_user(found: Rendered, file: str) -> None:
    """Raise ``SourceError`` for a template that cannot even print one message of a user."""
    if reason := found.answers[found.conversations[0].name].refusal:
        raise SourceError(
            f"{file} cannot print one message of a user: {reason}", hint="Mend it, or build without it: --no-chat"
        )


def _answers(output: bytes) -> list[Answer]:
    return [msgspec.json.decode(line, type=Answer) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]


def _stopped(job: Job, output: bytes, what: str) -> SourceError:
    answers = _answers(output)
    place = "while it compiles"
    if answers:
        done = {answer.name for answer in answers}
        names = [each.name for each in _asked(job, set(answers[0].reads or ())) if each.name not in done]
        place = f"on the conversation {names[0]!r}" if names else "on a longer conversation"
    return SourceError(f"{job.file} {what} {place}.", hint=_HINT)


def _asked(
    job: Job, reads: set[str], parts: Collection[str] = (), thinking: Thinking | None = None
) -> list[Conversation]:
    """Return the conversations of a template that reads these names, with the contents of these roles as parts."""
    besides = [] if thinking is None else conversations(thinking)
    return [
        msgspec.structs.replace(each, messages=in_parts(each.messages, parts))
        for each in asked(reads, with_tools=job.file == TOOL_USE, names=job.names, besides=besides)
    ]


def main() -> None:
    """Read a job from standard input and answer on standard output."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    _limit(job)
    try:
        reads = set(_template(job).reads)
    except BundleError as error:
        _say(Answer(refusal=_reason(error)))
        return
    _say(Answer(reads=sorted(reads)))
    for conversation in _asked(job, reads):
        _say(_rendered(job, conversation))
    arrival = arrive(job)
    thinking = find(lambda asked: _rendered(job, asked, arrival.parts).text, job.source, reads)
    if arrival.parts or thinking is not None:
        for conversation in _asked(job, reads, arrival.parts, thinking):
            _say(_rendered(job, conversation, arrival.parts))
    _say(Answer(arrival=arrival, thinking=thinking))


def arrive(job: Job) -> Arrival:
    """Return whose words the template of a job prints, with tools and without, as it is used. It sets no limit."""
    with_tools = _tools(_template(job).reads)
    ways = [with_tools] if job.file == TOOL_USE else [{}, *filter(None, [with_tools])]

    def probed(probe: Probe, parts: Collection[str]) -> Iterator[str]:
        for given in ways:
            asked = Conversation(name=probe.name, messages=probe.messages, **given)
            text = _rendered(job, asked, parts).text
            if text is not None:
                yield text

    return settle(probed, job.source)


@cache
def _template(job: Job, parts: tuple[str, ...] = ()) -> ChatTemplate:
    return ChatTemplate(
        job.source, bos_token=job.bos_token, eos_token=job.eos_token, date=None, parts=parts, file=job.file
    )


def _tools(reads: Collection[str]) -> dict[str, Any]:
    """Return a conversation's fields that give a tool to a template, by the name that it reads them from."""
    if "tools" in reads:
        return {"tools": [WEATHER]}
    return {"variables": {"xml_tools": [WEATHER]}} if "xml_tools" in reads else {}


def _rendered(job: Job, asked: Conversation, parts: Collection[str] = ()) -> Answer:
    template = _template(job, tuple(parts))
    try:
        text = template.render(
            asked.messages,
            tools=asked.tools,
            variables=asked.variables,
            add_generation_prompt=asked.add_generation_prompt,
            date=job.day if "strftime_now" in template.reads else None,
        )
    except (UsageError, BundleError) as error:
        return Answer(name=asked.name, refusal=_reason(error))
    return Answer(name=asked.name, text=text.plain, runs=text.runs)


def _reason(error: UsageError | BundleError) -> str:
    from edgepack.text.account import ExhaustedError

    if isinstance(error.__cause__, MemoryError):
        sys.exit(_OUT_OF_MEMORY)
    if isinstance(error.__cause__, ExhaustedError):
        sys.exit(_EXHAUSTED)
    return error.message


def _say(answer: Answer) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def _limit(job: Job) -> None:
    with suppress(ImportError):  # Windows has no such limits; there the clock alone ends a child
        import resource

        memory = job.memory_mib * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_CPU, (job.cpu_seconds, job.cpu_seconds + 1))
        with suppress(ValueError, OSError):  # macOS refuses it
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


if __name__ == "__main__":
    main()
