"""A chat: what was said, the options of the next answer, and the result of the last. It knows no terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepack.cli.talk import saved
from edgepack.conversation import Conversation
from edgepack.decoding.results import Result
from edgepack.decoding.stream import Stream
from edgepack.errors import EdgepackError, UsageError
from edgepack.model import Model

Showing = Callable[[Stream], Result]
"""Shows a stream to its end and returns its result."""


class Chat:
    """A conversation with a model, or texts that it continues, each by itself. Raises as ``Model.chat`` does.

    Options are tried when they are set, so that a wrong one is refused then, and not with each answer.
    """

    def __init__(self, model: Model, showing: Showing, options: dict[str, Any], system: str | None, raw: bool) -> None:
        self.model = model
        self.raw = raw or model.manifest.chat is None
        self.result: Result | None = None
        self.stats = False
        """Whether the figures of each answer are shown."""
        self._showing = showing
        self._said = ""
        self._place: Path | None = None
        self._try(options, system)
        self.options = dict(options)
        self._conversation = None if self.raw else model.chat(system=system)

    def say(self, text: str) -> None:
        """Say something, and show the answer."""
        self._said = text
        if self._conversation is None:
            self.result = self._showing(self.model.stream(text, **self.options))
        else:
            self.result = self._showing(self._conversation.stream(text, **self.options))

    def redo(self) -> None:
        """Ask the last turn again with another seed; its answer takes the place of the last one when it is there."""
        anew = {name: value for name, value in self.options.items() if name != "seed"}
        if not (self._said if self._conversation is None else self.turns):
            raise UsageError("Nothing was asked yet.")
        if self._conversation is None:
            self.result = self._showing(self.model.stream(self._said, **anew))
            return
        again = self._conversation.fork()
        again.undo()
        said = self._conversation.messages[len(again.messages) : -1]
        self.result = self._showing(again.stream(said, **anew))
        if again.turns == self._conversation.turns:  # one that was stopped before its first token is none
            self._conversation = again

    @property
    def turns(self) -> int:
        """How many turns there are."""
        return self._held().turns

    def undo(self, turns: int) -> None:
        """Forget the last turns."""
        self._held().undo(turns)

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self._held().undo(self.turns)
        self._place = None

    @property
    def system(self) -> str | None:
        """The system prompt."""
        first = [message for message in self._held().messages[:1] if message["role"] == "system"]
        return str(first[0]["content"]) if first else None

    def begin(self, system: str | None) -> None:
        """Begin a new conversation with a system prompt, or without one."""
        self._held()
        self._try(self.options, system)
        self._conversation, self._place = self.model.chat(system=system), None

    def set(self, name: str, value: object) -> None:
        """Set an option of the answers to come, None for the bundle's default."""
        options = {**self.options, name: value}
        if value is None:
            del options[name]
        self._try(options, None if self.raw else self.system)
        self.options = options

    def save(self, word: str) -> Path:
        """Save the conversation under a name or a path, by default where it was saved last, and return the file.

        Raises ``UsageError`` where another file is in its place.
        """
        conversation = self._held()
        place = saved.place(word) if word else self._place
        if place is None:
            raise UsageError("The conversation has no name yet.", hint="Give it one: /save NAME")
        try:
            if place != self._place and place.exists():
                raise UsageError(f"{place} is there already.", hint="Choose another name; /load would read this one.")
            if "/" not in word:
                place.parent.mkdir(parents=True, exist_ok=True)
            conversation.save(place)
        except OSError as error:
            raise EdgepackError(f"{place} cannot be written: {error.strerror or error}.") from None
        self._place = place
        return place

    def load(self, word: str) -> None:
        """Go on with a conversation that was saved. Raises as ``Model.resume`` does."""
        self._held()
        place = saved.place(word)
        try:
            self._conversation = self.model.resume(place)
        except FileNotFoundError:
            raise UsageError(f"There is no conversation in {place}.", hint="/load alone lists the names.") from None
        except OSError as error:
            raise EdgepackError(f"{place} cannot be read: {error.strerror or error}.") from None
        self._place = place

    def _held(self) -> Conversation:
        """Return the conversation. Raises ``UsageError`` where texts are continued each by itself."""
        if self._conversation is None:
            why = "has no chat template" if self.model.manifest.chat is None else "was asked without it (--raw)"
            raise UsageError(f"There is no conversation: the bundle {why}, and each text is continued by itself.")
        return self._conversation

    def _try(self, options: dict[str, Any], system: str | None) -> None:
        """Raise what an answer with these options would; none is begun."""
        if self.raw:
            self.model.stream("a", **options)
        else:
            begun = [] if system is None else [{"role": "system", "content": system}]
            self.model.stream_chat([*begun, {"role": "user", "content": "a"}], **options)
