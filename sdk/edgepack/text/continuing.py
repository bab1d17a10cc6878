"""An answer that goes on where the last message ends: the assistant's own, whose beginning the application knows.

A prompt for it ends right after that message, in the words in which the template prints it, without what ends a turn;
where the template leaves out or refuses an assistant's last message, after what asks for an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgepack.errors import UsageError
from edgepack.text.thoughts import Marks, opened, unfinished

Messages = Sequence[Mapping[str, Any]]

# Unicode says that these are no characters, so that no text has them and no template looks for them.
_END = "\ufdd0\ufdd1"


def check_last(messages: Messages, goes_on: bool) -> None:
    """Raise ``UsageError`` where the last message is the assistant's and nobody asked to go on with it, or is not."""
    last, place = messages[-1], f"messages[{len(messages) - 1}]"
    if goes_on and last["role"] != "assistant":
        raise UsageError(
            f"{place}, the last message, has the role {last['role']!r}, and continue_final=True goes on with the "
            "assistant's.",
            hint="Leave it out, or end with the beginning of the answer.",
        )
    if last["role"] == "assistant" and last.get("tool_calls"):
        raise UsageError(
            f"{place}, the last message, calls tools and nothing answers them.",
            hint='Add what they gave: {"role": "tool", "tool_call_id": "...", "content": "..."}.',
        )
    if last["role"] == "assistant" and not goes_on:
        raise UsageError(
            f"{place}, the last message, is the assistant's own.",
            hint="Pass continue_final=True to go on with it, or end with what is to be answered.",
        )


def begun_prompt(render: Callable[[Messages, bool], str], messages: Messages, marks: tuple[Marks, ...]) -> str:
    """Return the prompt whose answer goes on with the last message.

    ``render`` is given messages, and whether to ask for an answer; ``marks`` are those of the model's thoughts.
    Raises as it does, and ``UsageError`` for a template that does not print that message as it is.
    """
    *before, last = messages
    begun: str = last["content"]
    if before and (mark := unfinished(begun, marks)):
        # Templates print thoughts that have an end, but each lets the model begin one; some open it themselves.
        asked = render(before, True)
        thought = begun.lstrip().removeprefix(mark)
        return asked + thought.lstrip() if opened(asked, marks) else asked + mark + thought
    try:
        text = render([*before, {**last, "content": begun + _END}], False)
        printed = text.count(_END)
    except UsageError:  # a template that wants another's message last
        printed = 0
    if printed == 1:
        return text[: text.index(_END)]
    if before and not printed and not opened(asked := render(before, True), marks):
        return asked + begun
    raise UsageError(
        "The bundle's chat template does not print the assistant's last message as it is.",
        hint="Leave out continue_final, and end with what is to be answered.",
    )
