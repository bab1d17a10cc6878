"""The desktop app: keys go in, and what stands in the window is looked at."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import programs
import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from edgepack import EngineError, Model, aload, fake

DESKTOP = programs.load("desktop.py").Desktop
Scene = Callable[[Any, "Pilot[None]"], Awaitable[None]]


async def loaded(model: Model) -> Model:
    return model


def play(loading: Awaitable[Model], scene: Scene) -> None:
    """Play a scene in a window of 80 columns."""

    async def playing() -> None:
        app = DESKTOP(loading)
        async with asyncio.timeout(60), app.run_test(size=(80, 24)) as pilot:
            await scene(app, pilot)

    asyncio.run(playing())


def said(app: Any) -> list[tuple[str, str]]:
    """Return what stands in the window: each line's kind and text."""
    return [(" ".join(line.classes), str(line.render())) for line in app.query("#said > Static").results(Static)]


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    while not holds():
        await pilot.pause(0.01)


async def ask(app: Any, pilot: Pilot[None], question: str) -> None:
    await until(pilot, lambda: not app.query_one(Input).disabled)
    app.query_one(Input).value = question
    await pilot.press("enter")


def test_it_answers_as_a_conversation(one_variant: Path) -> None:
    async def scene(app: Any, pilot: Pilot[None]) -> None:
        assert app.query_one(Input).disabled
        await ask(app, pilot, "My name is Anna.")
        await ask(app, pilot, "What is my name?")
        await until(pilot, lambda: not app.query_one(Input).disabled)
        (_, title), asked, _, again, (kind, answer) = said(app)
        assert title.startswith("demo on ")
        assert (asked, again) == (("asked", "My name is Anna."), ("asked", "What is my name?"))
        assert kind == "answer"
        assert "Anna" in answer

    play(aload(one_variant), scene)


def test_what_people_and_models_write_is_no_markup() -> None:
    async def scene(app: Any, pilot: Pilot[None]) -> None:
        await ask(app, pilot, "[bold]Hi[/bold] [/")
        await until(pilot, lambda: not app.query_one(Input).disabled)
        assert said(app)[1:] == [("asked", "[bold]Hi[/bold] [/"), ("answer", "[red]No[/blue]")]

    play(loaded(fake.model(says="[red]No[/blue]")), scene)


def test_escape_stops_an_answer_that_is_remembered() -> None:
    endless = programs.Endless()

    async def scene(app: Any, pilot: Pilot[None]) -> None:
        await ask(app, pilot, "Go on.")
        await until(pilot, endless.stands.is_set)
        await pilot.press("escape")
        endless.go.set()
        await until(pilot, lambda: not app.query_one(Input).disabled)
        assert said(app)[-1] == ("note", "(cancelled)")
        assert endless.steps < 100
        assert app.chat.messages[1]["content"] == said(app)[-2][1] != ""
        await pilot.press("escape")  # with nothing to stop
        await ask(app, pilot, "And on.")
        await until(pilot, lambda: endless.steps > 200)

    play(loaded(endless.model), scene)


def test_it_leaves_in_the_middle_of_an_answer() -> None:
    endless = programs.Endless()

    async def scene(app: Any, pilot: Pilot[None]) -> None:
        await ask(app, pilot, "Go on.")
        await until(pilot, endless.stands.is_set)
        await pilot.press("ctrl+q")
        endless.go.set()

    play(loaded(endless.model), scene)
    assert endless.steps < 1000
    with pytest.raises(EngineError, match="closed"):
        endless.model.generate("Hi")


def test_errors_stand_in_the_window() -> None:
    async def no_bundle(app: Any, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: bool(said(app)))
        assert said(app) == [("error", "There is no bundle at nowhere. Check the path.")]
        assert app.query_one(Input).disabled

    async def too_long(app: Any, pilot: Pilot[None]) -> None:
        await ask(app, pilot, "a" * 300)
        await ask(app, pilot, "b")
        await until(pilot, lambda: not app.query_one(Input).disabled)
        kinds = [kind for kind, _ in said(app)]
        assert kinds == ["note", "asked", "answer", "error", "asked", "answer"]
        assert "tokens" in said(app)[3][1]
        assert said(app)[5][1] == "Yes."

    play(aload("nowhere"), no_bundle)
    play(loaded(fake.model(says="Yes.", context=200)), too_long)


def test_the_program_runs_in_a_terminal(one_variant: Path) -> None:
    leader, follower = pty.openpty()
    program = subprocess.Popen(
        programs.command("desktop.py", one_variant),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(follower)
    shown = b""

    def look_for(words: bytes) -> None:
        nonlocal shown
        while words not in shown:
            shown += os.read(leader, 65536)

    signal.alarm(60)  # a program that shows nothing ends the test
    try:
        look_for(b"Ask something")
        os.write(leader, b"What is a token?\r")
        look_for(b"small piece of text")
        os.write(leader, b"\x11")
        look_for(b"\x1b[?1049l")  # the terminal is as it was
        assert program.wait(30) == 0
    finally:
        signal.alarm(0)
        program.kill()
        program.wait()
        os.close(leader)
