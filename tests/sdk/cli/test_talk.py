"""The chat in a terminal: its commands, its lines, and what a user sees who types, stops, resizes and leaves."""

from __future__ import annotations

import io
import os
import pty
import re
import stat
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_type_hints

import pytest
import small_bundle
from terminal import Terminal

from edgepack import UsageError, fake
from edgepack.cli.console import PlainConsole
from edgepack.cli.talk import settings
from edgepack.cli.talk.chat import Chat
from edgepack.cli.talk.commands import COMMANDS, completed, obey
from edgepack.cli.talk.presses import as_found
from edgepack.cli.talk.typed import is_open, parsed
from edgepack.decoding.options import ChatOptions, GenerationOptions
from edgepack.decoding.results import Result
from edgepack.decoding.stream import Stream
from edgepack.errors import EdgepackError
from edgepack.model import Model

COLUMNS = 80
PAGE = Path(__file__).parents[3] / "docs" / "chat.md"


# What was typed


@pytest.mark.parametrize(
    ("typed", "name", "rest"),
    [
        ("hello", "", "hello"),
        ("  hello \n", "", "hello"),
        ("/undo", "/undo", ""),
        (" /set  temperature 0.2 ", "/set", "temperature 0.2"),
        ('"""one\ntwo"""', "", "one\ntwo"),
        ('"""\n one\n\n"""', "", " one\n"),
        ('"""/usr/bin"""', "", "/usr/bin"),
        ('/system """\nBe brief.\nBe kind.\n"""', "/system", "Be brief.\nBe kind."),
        ('/system ""', "/system", '""'),
        ('"""', "", '"""'),
        ('"""one""" two', "", '"""one""" two'),
        ("", "", ""),
    ],
)
def test_what_is_typed_is_a_text_or_a_command(typed: str, name: str, rest: str) -> None:
    assert parsed(typed) == (name, rest)


@pytest.mark.parametrize(
    ("typed", "open"),
    [
        ('"""', True),
        ('"""one\n', True),
        ('/system """one', True),
        ('"""one\n"""', False),
        ('"""one""" two', False),
        ('say """one', False),
        ("one", False),
    ],
)
def test_a_text_in_quotes_goes_on_until_they_come_again(typed: str, open: bool) -> None:
    assert is_open(typed) is open


# The commands


def read(stream: Stream) -> Result:
    with stream:
        for _ in stream:
            pass
    return stream.result


@pytest.fixture
def model() -> Iterator[Model]:
    with fake.model(says="Hello!") as model:
        yield model


@pytest.fixture
def chat(model: Model) -> Chat:
    return Chat(model, read, {}, None, False)


@pytest.fixture
def raw(model: Model) -> Chat:
    return Chat(model, read, {}, None, True)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def told(chat: Chat, typed: str) -> str:
    """Return what a command shows in a terminal of 80 columns."""
    console, shown = PlainConsole(), io.StringIO()
    console.file, console.width = shown, COLUMNS
    console.print(obey(chat, *parsed(typed)))
    return shown.getvalue()


def test_help_and_the_page_name_every_command(chat: Chat) -> None:
    shown, page = told(chat, "/help"), PAGE.read_text("utf-8")
    usages = [f"{name} {command.takes}".strip() for name, command in COMMANDS.items()]
    assert all(usage in shown for usage in usages)
    assert re.findall(r"^\| `(/.*?)` \|", page, re.MULTILINE) == [usage.replace("|", "\\|") for usage in usages]


@pytest.mark.parametrize(("typed", "near"), [("/sytem", "/system"), ("/quit", None), ("/help?", "/help"), ("/", None)])
def test_an_unknown_command_names_the_nearest_and_help(chat: Chat, typed: str, near: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        told(chat, typed)
    assert caught.value.message == f"There is no command {typed}."
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"Did you mean {near}? /help" if near else "/help")


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not command.takes])
def test_a_command_that_takes_nothing_refuses_a_word(chat: Chat, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} takes nothing after it"):
        told(chat, f"{name} all")


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        ("/set temperature 0.2", {"temperature": 0.2}),
        ("/set seed 7", {"seed": 7}),
        ("/set prompt_lookup false", {"prompt_lookup": False}),
        ("/set stop END", {"stop": "END"}),
        ('/set stop ["a b", "\\n"]', {"stop": ["a b", "\n"]}),
        ("/set regex [1]", {"regex": "[1]"}),
        ("/set control_tokens parse", {"control_tokens": "parse"}),
        ("/set reuse exact", {"reuse": "exact"}),
        ("/set on_overflow rolling", {"on_overflow": "rolling"}),
        ('/set json_schema {"type": "integer"}', {"json_schema": '{"type": "integer"}'}),
    ],
)
def test_set_takes_an_option_by_its_name(chat: Chat, typed: str, options: dict[str, object]) -> None:
    shown = told(chat, typed)
    assert chat.options == options
    assert shown.startswith(next(iter(options)))
    assert "\n" not in shown.rstrip("\n")
    told(chat, " ".join(typed.split()[:2]) + " default")
    assert chat.options == {}


def test_set_reads_files_as_the_command_line_does(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    (tmp_path / "grammar.lark").write_text('start: "yes" | "no"')
    told(chat, f"/set json_schema {tmp_path / 'schema.json'}")
    assert chat.options == {"json_schema": '{"type": "integer"}'}
    told(chat, "/set json_schema default")
    told(chat, f"/set grammar {tmp_path / 'grammar.lark'}")
    assert chat.options == {"grammar": 'start: "yes" | "no"'}
    with pytest.raises(UsageError, match="cannot be read"):
        told(chat, "/set grammar none.lark")


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("temperature", "hot", "hot"),
        ("temperature", "101", 101),
        ("top_p", "0", 0),
        ("top_k", "1.5", 1.5),
        ("min_p", "2", 2),
        ("repetition_penalty", "0", 0),
        ("max_tokens", "0", 0),
        ("seed", "-1", -1),
        ("stop", "3", 3),
        ("regex", "(", "("),
        ("json_schema", '{"type": "nothing"}', '{"type": "nothing"}'),
        ("prompt_lookup", "yes", "yes"),
        ("draft", "true", True),
        ("on_overflow", "explode", "explode"),
        ("reuse", "none", "none"),
        ("control_tokens", "maybe", "maybe"),
        ("date", "today", "today"),
    ],
)
def test_a_wrong_value_is_refused_in_the_words_of_the_sdk(chat: Chat, name: str, typed: str, value: object) -> None:
    told(chat, "/set seed 1")
    before = dict(chat.options)
    with pytest.raises(UsageError) as ours:
        told(chat, f"/set {name} {typed}")
    with pytest.raises(UsageError) as its:
        chat.model.chat([{"role": "user", "content": "a"}], **{name: value})  # type: ignore[call-overload]
    assert (type(ours.value), ours.value.message, ours.value.hint) == (
        type(its.value),
        its.value.message,
        its.value.hint,
    )
    assert chat.options == before


def test_an_option_that_nobody_knows_names_the_right_one(chat: Chat, raw: Chat) -> None:
    with pytest.raises(UsageError, match=r"no option 'temp'\. Did you mean temperature"):
        told(chat, "/set temp 1")
    with pytest.raises(UsageError, match="no option 'date'"):  # a text without a template has none
        told(raw, "/set date 2026-01-01")


def test_every_option_is_set_or_refused_with_its_reason(chat: Chat) -> None:
    unseen = {"logprobs", "n_best"}
    assert set(settings.names(raw=True)) == set(get_type_hints(GenerationOptions)) - unseen
    assert set(settings.names(raw=False)) == set(get_type_hints(ChatOptions)) - unseen - {"continue_final"}
    for name in unseen:
        with pytest.raises(UsageError, match=f"A chat does not show {name}"):
            told(chat, f"/set {name} 1")


def test_set_alone_shows_what_holds(chat: Chat) -> None:
    told(chat, "/set temperature 0.25")
    lines = dict(line.split(None, 1) for line in told(chat, "/set").splitlines())
    assert list(lines) == settings.names(raw=False)
    assert lines["temperature"].strip() == "0.25"
    assert lines["top_p"].strip() == "1.0 (the bundle's)"
    assert lines["seed"].strip() == "-"


def test_options_hold_for_the_answers(chat: Chat) -> None:
    told(chat, "/set max_tokens 3")
    chat.say("hi")
    assert chat.result is not None
    assert (chat.result.text, chat.result.finish_reason) == ("Hel", "length")


def test_undo_and_clear_forget(model: Model) -> None:
    chat = Chat(model, read, {}, "Be brief.", False)
    for text in ("one", "two", "three", "four"):
        chat.say(text)
    assert told(chat, "/undo") == "1 turn forgotten, 3 left.\n"
    assert told(chat, "/undo 2") == "2 turns forgotten, 1 left.\n"
    with pytest.raises(UsageError, match="There is 1 turn to undo, not 5"):
        told(chat, "/undo 5")
    with pytest.raises(UsageError, match="no number of turns"):
        told(chat, "/undo all")
    assert told(chat, "/clear") == "1 turn forgotten.\n"
    assert (chat.turns, chat.system) == (0, "Be brief.")


def test_redo_asks_the_last_turn_again_with_another_seed(model: Model) -> None:
    results: list[Result] = []

    def keep(stream: Stream) -> Result:
        results.append(read(stream))
        return results[-1]

    chat = Chat(model, keep, {"seed": 7, "temperature": 1.0}, None, False)
    with pytest.raises(UsageError, match="Nothing was asked yet"):
        told(chat, "/redo")
    chat.say("one")
    chat.say("two")
    assert told(chat, "/redo") == "\n"
    first, second, again = results
    assert chat.turns == 2
    assert again.repro.prompt_ids == second.repro.prompt_ids
    assert (first.sampling.seed, second.sampling.seed) == (7, 7)
    assert again.sampling.seed != 7
    assert chat.options == {"seed": 7, "temperature": 1.0}
    told(chat, "/set temperature 0")
    assert "same answer" in told(chat, "/redo")


def test_a_redo_that_was_stopped_at_once_leaves_the_turn(model: Model) -> None:
    stops = [False]

    def stop(stream: Stream) -> Result:
        with stream:
            if stops[0]:
                stream.cancel()
            for _ in stream:
                pass
        return stream.result

    chat = Chat(model, stop, {}, None, False)
    chat.say("one")
    stops[0] = True
    told(chat, "/redo")
    assert chat.turns == 1


def test_a_system_prompt_begins_anew(chat: Chat) -> None:
    chat.say("one")
    assert told(chat, "/system") == "There is no system prompt.\n"
    assert "begins anew" in told(chat, "/system Be brief.")
    assert (chat.turns, told(chat, "/system")) == (0, "Be brief.\n")
    assert "without" in told(chat, '/system ""')
    assert chat.system is None


def test_a_system_prompt_that_the_template_refuses_changes_nothing() -> None:
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}<|start|>assistant\n"
    )
    with fake.model(says="Hello!", template=refusing) as model:
        chat = Chat(model, read, {}, None, False)
        chat.say("one")
        with pytest.raises(EdgepackError, match="no system"):
            told(chat, "/system Be brief.")
        assert (chat.turns, chat.system) == (1, None)


def test_a_chat_is_saved_and_loaded_by_a_name(chat: Chat, own_state: Path) -> None:
    with pytest.raises(UsageError, match="no name yet"):
        told(chat, "/save")
    assert told(chat, "/load") == "None is saved yet under a name.\n"
    told(chat, "/system Be brief.")
    chat.say("one")
    place = own_state / "chats" / "mine.chat"
    assert "1 turn saved in" in told(chat, "/save mine")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    chat.say("two")
    told(chat, "/save")  # to the same place
    assert told(chat, "/load") == "Saved: mine.\n"
    told(chat, "/clear")
    with pytest.raises(UsageError, match="no name yet"):  # what was cleared is not saved over what was kept
        told(chat, "/save")
    assert told(chat, "/load mine") == "2 turns loaded.\n"
    assert chat.system == "Be brief."
    chat.say("three")
    assert chat.result is not None
    assert chat.result.usage.cached_tokens > 0
    other = Chat(chat.model, read, {}, None, False)
    with pytest.raises(UsageError, match="is there already"):
        told(other, "/save mine")


def test_a_chat_is_saved_at_a_path(chat: Chat, tmp_path: Path) -> None:
    chat.say("one")
    told(chat, f"/save {tmp_path}/my chat.bin")
    assert (tmp_path / "my chat.bin").is_file()
    told(chat, f"/load {tmp_path}/my chat.bin")
    assert chat.turns == 1
    with pytest.raises(EdgepackError, match="cannot be written: No such file"):
        told(chat, f"/save {tmp_path}/none/chat.bin")
    for name in ("two words", ".hidden", "-"):
        with pytest.raises(UsageError, match="is no name"):
            told(chat, f"/save {name}")
    with pytest.raises(UsageError, match="There is no conversation in"):
        told(chat, "/load another")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(EdgepackError, match="is not a conversation"):
        told(chat, f"/load {tmp_path}/text")
    assert chat.turns == 1


def test_the_figures_of_an_answer(chat: Chat) -> None:
    assert told(chat, "/stats") == "There is no answer yet.\n"
    chat.say("hi")
    assert chat.result is not None
    lines = dict(re.findall(r"^(\w+) +(.*)", told(chat, "/stats"), re.MULTILINE))
    assert list(lines) == ["answer", "prompt", "context", "sampling"]
    assert lines["answer"].startswith("7 tokens, ")
    assert lines["context"].strip() == f"{chat.result.usage.prompt_tokens + 7} of 4096 tokens"
    assert "followed by its figures" in told(chat, "/stats on")
    assert chat.stats
    told(chat, "/stats off")
    assert not chat.stats
    with pytest.raises(UsageError, match="Choose one of: on, off"):
        told(chat, "/stats perhaps")


def test_think_goes_the_way_of_the_options(chat: Chat) -> None:
    assert told(chat, "/think") == "Thinking is auto.\n"
    with pytest.raises(UsageError, match="thinking"):  # what does not think has no such option
        told(chat, "/think on")
    with pytest.raises(UsageError, match="Choose one of: on, off, auto"):
        told(chat, "/think hard")


def test_texts_that_are_continued_have_no_conversation(raw: Chat) -> None:
    for typed in ("/undo", "/clear", "/save x", "/load x", "/system", "/system x"):
        with pytest.raises(UsageError, match="There is no conversation: the bundle was asked without it"):
            told(raw, typed)
    with pytest.raises(UsageError, match="Nothing was asked yet"):
        told(raw, "/redo")
    raw.say("hi")
    told(raw, "/redo")
    assert raw.result is not None
    assert raw.result.text == "Hello!"


def test_bye_ends(chat: Chat) -> None:
    with pytest.raises(EOFError):
        told(chat, "/bye")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/s", ["/system", "/set", "/save", "/stats"]),
        ("/set te", ["temperature"]),
        ("/set temperature 1", []),
        ("/think o", ["on", "off"]),
        ("hello /s", []),
        ("hel", []),
        ("/none x", []),
    ],
)
def test_words_are_completed(chat: Chat, line: str, words: list[str]) -> None:
    assert completed(chat, line) == words


# The editor


editor = pytest.importorskip("edgepack.cli.talk.editor")


def typed(keys: str, chat: Chat, count: int = 1) -> list[str]:
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as pipe:
        lines = editor.Editor(lambda line: completed(chat, line), editor.kept_history(), pipe, DummyOutput())
        pipe.send_text(keys)
        return [lines.read() for _ in range(count)]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello\r", "hello"),
        ('"""one\rtwo"""\r', '"""one\ntwo"""'),
        ("\x1b[200~one\ntwo\x1b[201~ three\r", "one\ntwo three"),
        ("wrong\x03", ""),
        ("/the\x7f\x7f\x7fund\t\r", "/undo"),
        ("/set max_\t 9\r", "/set max_tokens 9"),
    ],
)
def test_lines_are_edited(keys: str, text: str, chat: Chat) -> None:
    assert typed(keys, chat) == [text]


def test_keys_leave(chat: Chat) -> None:
    from edgepack.cli.talk.presses import Pressed

    with pytest.raises(EOFError):
        typed("\x04", chat)
    with pytest.raises(Pressed):
        typed("\x03", chat)


def test_the_history_is_kept_for_its_user_alone(chat: Chat, own_state: Path) -> None:
    assert typed('one\r"""two\rlines"""\r', chat, 2) == ["one", '"""two\nlines"""']
    assert stat.S_IMODE((own_state / "history").stat().st_mode) == 0o600
    assert list(editor.kept_history().load_history_strings()) == ['"""two\nlines"""', "one"]


def test_a_long_history_keeps_its_newest_half(chat: Chat, own_state: Path) -> None:
    own_state.mkdir()
    (own_state / "history").write_text("".join(f"\n# then\n+{number:0100}\n" for number in range(12_000)))
    typed("new\r", chat)
    kept = list(editor.kept_history().load_history_strings())
    assert kept[:2] == ["new", f"{11_999:0100}"]
    assert all(len(each) == 100 for each in kept[1:])
    assert (1 << 18) < (own_state / "history").stat().st_size < (1 << 20)


def test_without_a_state_folder_no_history_is_kept(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_STATE", os.devnull)
    assert typed("one\r", chat) == ["one"]
    assert list(editor.kept_history().load_history_strings()) == []


# In a terminal

PROGRAM = """
import sys
import termios
import tty
sys.path[:0] = [{tests!r}]
import small_bundle
from edgepack import FakeRuntime, cli, runtime
from edgepack.isolation import probing
from edgepack.text.tokenizer import Tokenizer
script = Tokenizer.from_json(small_bundle.tokenizer_json(), None, False).encode({says!r})
steps, gate = [0], {gate!r}
def before_step(session):
    steps[0] += 1
    if steps[0] == {pause}:
        print(end="\\a", file=sys.stderr, flush=True)
        if gate:
            open(gate).close()  # until another opens it too
        else:
            assert session._cancelled.wait(60)
fake = FakeRuntime([*script, 257], fail_at={fail} or None, before_step=before_step)
runtime.names = lambda: ["fake"]
runtime.find = lambda name: fake
probing.probe = lambda name, hardware, **asked: fake.probe(hardware)
sys.exit(cli.main(["run", {bundle!r}, "--max-tokens", "1000", *{options!r}]))
"""
PROMPT = "\x1b[?2004h"  # what asks for a paste in brackets shows when the editor is there
Chatting = Callable[..., Terminal]


@pytest.fixture
def chatting(tmp_path: Path, own_state: Path) -> Iterator[Chatting]:
    bundle, opened = small_bundle.write(tmp_path / "small"), list[Terminal]()

    def start(
        *options: str,
        says: str = "Hello!",
        pause: int = 0,  # the step of the engine that a bell announces, and that waits
        gate: str = "",  # until the answer is stopped, or this fifo opened
        fail: int = 0,
        columns: int = COLUMNS,
        pipe: bool = False,
        hidden: str = "",
        **env: str | None,
    ) -> Terminal:
        tests = str(Path(__file__).parents[2])
        program = PROGRAM.format(
            tests=tests, says=says, pause=pause, gate=gate, fail=fail, bundle=str(bundle), options=options
        )
        if hidden:
            program = f"import sys; sys.modules[{hidden!r}] = None\n" + program
        opened.append(
            Terminal([sys.executable, "-c", program], {"TERM": "xterm", "NO_COLOR": None, **env}, columns, pipe)
        )
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_a_chat_in_a_terminal(chatting: Chatting) -> None:
    terminal = chatting("--stats")
    assert "small, fake-q4, context 4096." in terminal.until(PROMPT)
    terminal.type("hi\r")
    assert "7 tokens, " in terminal.until(PROMPT)
    terminal.type("/undp\r")
    assert "Did you mean /undo?" in terminal.until(PROMPT)
    terminal.type("/undo\r")
    assert "1 turn forgotten, 0 left." in terminal.until(PROMPT)
    terminal.type("\x1b[A\x1b[A")
    terminal.until("/undp")
    terminal.type("\x03")
    terminal.type("/bye\r")
    code, shown = terminal.end()
    assert (code, shown.count("Hello!")) == (0, 1)
    assert terminal.cooked


def test_ctrl_c_stops_an_answer_and_leaves_at_the_second_press(chatting: Chatting) -> None:
    terminal = chatting(says="Hello you!", pause=9)
    terminal.until(PROMPT)
    terminal.type("hi\r")
    terminal.until("\a")
    terminal.type("\x03")
    terminal.until(PROMPT)
    terminal.type("\x03")
    assert "Ctrl-C once more leaves." in terminal.until(PROMPT)
    terminal.type("never mind\x03")
    terminal.until(PROMPT)
    terminal.type("\x03")  # the first again: a line was cleared meanwhile
    assert "Ctrl-C once more leaves." in terminal.until(PROMPT)
    terminal.type("again\r")
    assert "Hello you!" in terminal.until(PROMPT)
    terminal.type("\x03")
    terminal.until(PROMPT)
    terminal.type("\x03")
    assert terminal.end()[0] == 0
    assert terminal.cooked


def test_a_signal_ends_the_command_and_leaves_the_terminal_as_it_was(chatting: Chatting) -> None:
    terminal = chatting()
    terminal.until(PROMPT)
    assert not terminal.cooked
    terminal.process.terminate()
    assert terminal.end()[0] == 130
    assert terminal.cooked


def test_a_signal_between_an_editor_and_its_end_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, its = pty.openpty()
    with os.fdopen(its) as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        before = termios.tcgetattr(standard_input)
        with pytest.raises(KeyboardInterrupt), as_found():
            tty.setraw(standard_input, termios.TCSANOW)
            raise KeyboardInterrupt
        assert termios.tcgetattr(standard_input) == before
    os.close(ours)


def test_an_answer_that_fails_is_said_on_a_line_of_its_own_and_the_chat_goes_on(chatting: Chatting) -> None:
    terminal = chatting(says="Hello you!", fail=8)
    terminal.until(PROMPT)
    terminal.type("hi\r")
    assert "Hello y\nerror: The fake engine failed at forward 8, as planned.\n" in terminal.until(PROMPT)
    terminal.type("/undo\r")
    assert "There are 0 turns to undo" in terminal.until(PROMPT)
    terminal.type("\x04")
    assert terminal.end()[0] == 0


@pytest.mark.parametrize(
    ("env", "hidden"), [({"TERM": "dumb"}, ""), ({"TERM": "xterm"}, "prompt_toolkit")], ids=["dumb", "absent"]
)
def test_a_plain_terminal_has_the_same_commands(chatting: Chatting, env: dict[str, str], hidden: str) -> None:
    terminal = chatting(hidden=hidden, says="Hello you!", pause=9, **env)
    said = "Lines are read plainly: pip install 'edgepack[chat]' adds"
    assert (said in terminal.until("> ")) is bool(hidden)
    terminal.type("hi\n")
    terminal.until("\a")
    terminal.type("\x03")
    terminal.until("> ")
    terminal.type('"""one\n')
    terminal.until(". ")
    terminal.type('two"""\n')
    assert "Hello you!" in terminal.until("\n> ")
    terminal.type("/undo 2\n")
    assert "2 turns forgotten, 0 left." in terminal.until("\n> ")
    terminal.type("\x03")
    assert "Ctrl-C once more leaves." in terminal.until("leaves.\n> ")
    terminal.type("\x04")
    code, shown = terminal.end()
    assert code == 0
    assert shown.count("Lines are read plainly") == bool(hidden)
    if env["TERM"] == "dumb":
        assert b"\x1b" not in terminal.shown


def test_a_pipe_gets_the_answers_alone(chatting: Chatting) -> None:
    terminal = chatting("--stats", "--markdown", says="# Hi\n\n**you**", pipe=True)
    terminal.until(PROMPT)
    for typed in ("hi\r", "/stats\r", "/nothing\r", "/redo\r"):
        terminal.type(typed)
        terminal.until(PROMPT)
    terminal.type("\x04")
    assert terminal.end()[0] == 0
    assert terminal.process.stdout is not None
    assert terminal.process.stdout.read() == b"# Hi\n\n**you**\n\n" * 2


def test_markdown_is_rendered_block_by_block(chatting: Chatting) -> None:
    says = "# Title\n\nA **bold** [link](http://x.y)\nof two lines.\n\n- one\n- two\n\n```python\nprint(1)\n```\n"
    terminal = chatting("--markdown", says=says, NO_COLOR="1")
    terminal.until(PROMPT)
    terminal.type("hi\r")
    shown = terminal.until(PROMPT)
    terminal.type("\x04")
    assert terminal.end()[0] == 0
    assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", terminal.shown)
    lines = [line.strip() for line in shown.splitlines()]
    assert "\n\n\n" not in shown
    where = [lines.index(line) for line in ("Title", "A bold link (http://x.y) of two lines.", "• one", "print(1)")]
    assert where == sorted(where)
    assert "**" not in shown
    assert "```" not in shown


def test_a_window_that_is_resized_holds_the_rest_of_an_answer(chatting: Chatting, tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    terminal = chatting(says=f"{words}\n{words}\n", pause=30, gate=str(gate))
    terminal.until(PROMPT)
    terminal.type("hi\r")
    terminal.until("\a")
    terminal.resize(40)
    gate.open("w").close()
    rest = terminal.until(PROMPT)
    terminal.type("\x04")
    assert terminal.end()[0] == 0
    first, *lines = rest.split("\n")
    assert 40 < len(first) <= COLUMNS  # the line that was there
    assert 30 < max(map(len, lines)) <= 40
    assert f"sixteen {words}" in " ".join(rest.split())


def test_json_keeps_no_company(chatting: Chatting) -> None:
    for option in ("--stats", "--markdown"):
        terminal = chatting("hi", "--json", option)
        code, shown = terminal.end()
        assert code == 2
        assert f"error: {option} was given beside --json." in shown
