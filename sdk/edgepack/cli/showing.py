"""A stream of the model's words, shown to its end on standard output."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from edgepack.cli import reports
from edgepack.cli.spoken import Spoken
from edgepack.errors import ToolCallError

if TYPE_CHECKING:
    from edgepack.cli.rendered import Rendered
    from edgepack.decoding.results import Result
    from edgepack.decoding.stream import Stream


def show(opening: Stream, ending: str, markdown: bool = False, *, calls: bool = False) -> Result:
    """Write a stream to standard output as it comes, and an ending; Ctrl-C ends it as soon as the engine can.

    In a terminal it may be rendered as Markdown. Where it may call tools, ``calls``, it is written when it is whole, as
    nobody knows before which of its words are a call; each call is a line of JSON after what was said beside it. Raises
    ``ToolCallError`` for a call that is none, after the answer as the model wrote it.
    """
    words = _words(markdown)
    with opening as stream, _interrupt_cancels(stream):
        try:
            for chunk in stream:
                words.think(chunk.reasoning)
                if not calls:
                    words.write(chunk.text)
        except ToolCallError as error:
            words.write(error.text)
            words.end("\n")
            raise
        except BaseException:
            words.break_off()
            raise
        if calls:
            words.write(stream.result.text)
            lines = [reports.encoded(call.to_dict(), indent=None) for call in stream.result.tool_calls]
            words.end("\n" if stream.result.text and lines else "")
            sys.stdout.write("\n".join(lines) + ending)
        else:
            words.end(ending)
    return stream.result


def unanswered(result: Result, longer: str, without: str) -> str:
    """Return what to say of a result that is only a thought, "" of any other.

    ``longer`` says what to try where it was cut, ``without`` what goes without a thought.
    """
    if not result.reasoning or result.text or result.tool_calls or result.finish_reason == "cancelled":
        return ""
    cut = result.finish_reason == "length"
    return f"There is no answer, only a thought: {f'try {longer}' if cut else f'the model ended there. Try {without}'}."


def _words(markdown: bool) -> Spoken | Rendered:
    if not (markdown and sys.stdout.isatty()):
        return Spoken()
    from edgepack.cli.rendered import Rendered

    return Rendered()


@contextmanager
def _interrupt_cancels(stream: Stream) -> Iterator[None]:
    """Turn the first Ctrl-C into a cancel, so that what was said so far is a result; a second one is not caught."""

    def cancel(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stream.cancel()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
