"""Conversations to calibrate with: which lines are taken, how a model is told them, and what is said of others."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import golden_models
import pytest

from edgepack.bundle.manifest import Chat
from edgepack.errors import SourceError
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import calibration, families
from edgepack_packager.build import build
from edgepack_packager.calibration import messages
from edgepack_packager.calibration.messages import Teller
from edgepack_packager.calibration.text import read
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.proof import held_out
from edgepack_packager.recipe import Recipe
from edgepack_packager.seal import tokenizer_of
from edgepack_packager.text import golden, read_text
from edgepack_packager.text.compiled import compiled
from edgepack_packager.text.side import Text

ASKED = {"role": "user", "content": "What is <|im_end|>?"}
TOLD = {"role": "assistant", "content": "A mark."}

TEMPLATE = """
{%- if tools %}[{{ tools | map(attribute="function") | map(attribute="name") | join(" ") }}]{% endif %}
{%- for message in messages %}
{%- if message.role not in ("system", "user", "assistant", "tool") %}{{ raise_exception("Who is that?") }}{% endif %}
{%- if message.role != "system" or loop.first %}<|im_start|>{{ message.role }} {{ message.content }}
{%- for call in message.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}
{%- endif %}{% endfor %}
"""


@cache
def model(template: str | None = None) -> tuple[Text, Chat | None, Tokenizer]:
    """Return the text side of the demo model, with another template where one is given."""
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        text = compiled(read_text(golden_models.DEMO, checkpoint.config, families.describe(checkpoint.config)))
    text = text if template is None else replace(text, chat_template=template)
    tokenizer = tokenizer_of(text)
    return text, golden.vectors(text, tokenizer).chat, tokenizer


def told(line: object, template: str | None = None) -> str:
    """Return what a conversation becomes."""
    text, chat, tokenizer = model(template)
    ids = Teller(text, chat, tokenizer).ids(messages.read(json.dumps(line), "chats.jsonl"))
    return b"".join(tokenizer.token_bytes(id) or tokenizer.token(id).encode() for id in ids).decode()


def test_conversations_are_told_by_the_models_own_template() -> None:
    expected = "<|im_start|>user\nWhat is <|im_end|>?<|im_end|>\n<|im_start|>assistant\nA mark.<|im_end|>\n"
    assert told([ASKED, TOLD]) == told({"messages": [ASKED, TOLD]}) == expected
    text, chat, tokenizer = model()
    ids = Teller(text, chat, tokenizer).ids(messages.read(json.dumps([ASKED, TOLD]), "chats.jsonl"))
    (mark,) = tokenizer.encode("<|im_end|>", bos=False, special=True)
    assert ids.count(mark) == 2, "what a user says is text"


def test_tools_and_calls_are_told_as_clients_send_them() -> None:
    call = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": '{"at": "Zürich"}'}}
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    answered = {"role": "tool", "tool_call_id": "call00001", "content": "rain"}
    line = {
        "messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, answered],
        "tools": [tool],
    }
    said = told(line, TEMPLATE)
    assert said.startswith("[look]<|im_start|>user What is")
    assert 'assistant look({"at": "Zürich"})<|im_start|>tool rain' in said


def test_a_long_file_is_told_from_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_MOST", 3)
    lines = "\n".join(json.dumps([{"role": "user", "content": f"number {number}"}]) for number in range(9))
    text, chat, tokenizer = model()
    said = tokenizer.decode(Teller(text, chat, tokenizer).ids(messages.read(lines, "chats.jsonl")))
    assert [number for number in range(9) if f"number {number}" in said] == [0, 3, 6]


def test_a_file_of_lines_calibrates(tmp_path: Path) -> None:
    lines = [json.dumps({"messages": [ASKED, {**TOLD, "content": f"Answer {number}."}]}) for number in range(400)]
    (tmp_path / "chats.JSONL").write_text("\n".join([*lines, ""]), encoding="utf-8")
    corpus = read(str(tmp_path / "chats.JSONL"))
    text, chat, tokenizer = model()
    passes = calibration.passes(corpus, calibration.told(corpus, tokenizer, text, chat), 512)
    assert [len(each) for texts in passes for each in texts] == [512] * 8
    assert tokenizer.decode(list(passes[0][0])).lstrip().startswith("user\nWhat is")
    assert [each.place for each in corpus.conversations[:2]] == ["chats.JSONL, line 1", "chats.JSONL, line 2"]


def test_what_a_file_escapes_cannot_be_held_out(tmp_path: Path) -> None:
    judged = held_out.read(held_out.BUILT_IN).text.split("\n\n")
    lines = [json.dumps([{"role": "user", "content": each}]) for each in judged if not each.isascii()]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines), encoding="ascii")
    with pytest.raises(SourceError, match=r"built-in cannot judge what chats\.jsonl calibrated: [1-9][0-9]*\.[0-9]%"):
        build("demo", Recipe(("onnx",), ("q4",), calibrate=str(tmp_path / "chats.jsonl")), tmp_path / "a.edgepack")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"messages": [', "line 3 is not valid JSON"),
        ('{"text": "Hello"}', "line 3 holds no messages"),
        ("3", "line 3 holds no messages"),
        ("[]", "line 3: messages is not a list of at least one message"),
        ('[{"role": "user"}]', r"line 3: messages\[0\]\.content is missing"),
        ('[{"role": "user", "content": "a", "content": "b"}]', "line 3 is ambiguous: the key 'content' occurs twice"),
        ('[{"role": "user", "content": "\\ud800"}]', "line 3: .*half of a surrogate pair"),
        ("[" * 150 + "]" * 150, "line 3 is nested deeper than 100 levels"),
        ("[" * 100_000, "line 3 (is nested deeper|is not valid JSON)"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": {}}', "line 3: tools is no list of objects"),
    ],
)
def test_a_line_that_holds_no_conversation_is_named(line: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as refused:
        messages.read(f"{json.dumps([ASKED])}\n\n{line}\n", "chats.jsonl")
    assert '{"messages": ' in str(refused.value.hint)


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ([{"role": "oracle", "content": "a"}], "chats.jsonl, line 1: "),
        (
            [ASKED, {"role": "system", "content": "a"}],
            r"line 1: messages\[1\]\.role is 'system', .* first message alone",
        ),
        ([ASKED, {"role": "assistant", "content": "", "tool_calls": 3}], "line 1: .*tool_calls is of type int"),
    ],
)
def test_what_the_template_does_not_tell_is_refused(said: list[object], place: str) -> None:
    with pytest.raises(SourceError, match=place):
        told(said, TEMPLATE)


def test_without_a_template_there_is_no_telling() -> None:
    text, _, tokenizer = model()
    with pytest.raises(SourceError, match="The model has no chat template"):
        Teller(replace(text, chat_template=None), None, tokenizer)


def test_a_file_without_a_conversation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n  \n")
    with pytest.raises(SourceError, match=r"none\.jsonl holds no conversation"):
        read(str(tmp_path / "none.jsonl"))


def test_a_file_that_is_cut_ends_with_a_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps([ASKED])
    (tmp_path / "chats.jsonl").write_text(f"{line}\n" * 10)
    monkeypatch.setattr(calibration.text, "_MOST_BYTES", 4 * len(line))
    assert len(read(str(tmp_path / "chats.jsonl")).conversations) == 3
