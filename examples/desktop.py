"""A desktop app: a chat in a window of the terminal, with the model in the app's own process.

pip install 'edgepack[gguf,examples]'
python examples/desktop.py demo.edgepack

The window is there at once and loads behind it. Escape stops an answer, which the conversation remembers as far as it
came; Ctrl-Q leaves, in the middle of an answer too.
"""

import argparse
from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.widgets import Footer, Input, Static

import edgepack


class Desktop(App[None]):
    """One conversation. The engine has a thread of its own, so that the window never waits for it."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "stop", "Stop the answer")]
    CSS = ".asked { color: $text-accent; margin-top: 1; } .error { color: $text-error; } .note { color: $text-muted; }"

    def __init__(self, loading: Awaitable[edgepack.Model]) -> None:
        super().__init__()
        self.loading = loading
        self.model: edgepack.Model | None = None
        self.stop: Callable[[], None] = lambda: None

    def compose(self) -> ComposeResult:
        yield VerticalScroll(id="said")
        yield Input(placeholder="Loading the model ...", disabled=True)
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#said", VerticalScroll).anchor()  # shows the end of what is said, until somebody scrolls
        self.load()

    async def on_unmount(self) -> None:
        if self.model is not None:
            await self.model.aclose()

    @work
    async def load(self) -> None:
        try:
            self.model = await self.loading
        except edgepack.EdgepackError as error:
            self.say(str(error), "error")
        else:
            self.say(f"{self.model.manifest.name} on {self.model.backend}", "note")
            self.chat = self.model.chat()
            self.wait_for_a_question()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip():
            event.input.clear()
            event.input.disabled = True
            self.say(event.value, "asked")
            self.answer(event.value)

    @work
    async def answer(self, question: str) -> None:
        """Show the answer as it comes. What goes wrong stands in its place, and the next question may be asked."""
        shown, text = self.say("", "answer"), ""
        try:
            async with self.chat.astream(question) as stream:
                self.stop = stream.cancel
                async for chunk in stream:
                    text += chunk.text
                    shown.update(text)
            if stream.result.finish_reason != "stop":
                self.say(f"({stream.result.finish_reason})", "note")
        except edgepack.EdgepackError as error:
            self.say(str(error), "error")
        self.wait_for_a_question()

    def action_stop(self) -> None:
        self.stop()

    def say(self, text: str, kind: str) -> Static:
        line = Static(text, classes=kind, markup=False)  # what people and models write is no markup
        self.query_one("#said").mount(line)
        return line

    def wait_for_a_question(self) -> None:
        asking = self.query_one(Input)
        asking.placeholder, asking.disabled = "Ask something", False
        asking.focus()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Chat with a bundle in a window of the terminal.")
    parser.add_argument("bundle")
    Desktop(edgepack.aload(parser.parse_args().bundle)).run()
