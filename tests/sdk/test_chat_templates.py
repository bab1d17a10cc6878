"""What a bundle says of its chat templates, kept by every way to ask: roles, forms of contents, one for tools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import small_bundle

import edgepack
from edgepack import fake
from edgepack.bundle.files import open_bundle
from edgepack.bundle.manifest import Chat, Golden, ToolUse
from edgepack.errors import BundleDamagedError, UsageError
from edgepack.fake import FakeRuntime
from edgepack.model import Model
from edgepack.runtime import Options
from edgepack.text.chat import TOOL_USE, ChatTemplate
from edgepack.text.opening import text_side
from edgepack.text.replay import replay_text

DEFAULT = "{% for m in messages %}<|start|>{{ m.role }} {{ m.content }}<|end|>{% endfor %}"
PARTS = "{% for m in messages %}<|start|>{% for p in m.content %}{{ p.text }}{% endfor %}<|end|>{% endfor %}"
FOR_TOOLS = '<|start|>{{ tools | length }} tool<|end|><tool_call> {"arguments": }' + DEFAULT
USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return "rain"


def model(chat: Chat, template: str = DEFAULT, tool_use: str | None = None, says: str = "Yes.") -> Model:
    base = fake.model()
    manifest = msgspec.structs.replace(base.manifest, chat=chat)
    options = Options(context=512, threads=1, kv_cache="f32")
    names: dict[str, Any] = {"bos_token": "", "eos_token": "", "date": None}
    other = chat.tool_use and ChatTemplate(tool_use or DEFAULT, parts=chat.tool_use.parts, file=TOOL_USE, **names)
    return Model(
        manifest=manifest,
        setup=fake.setup(manifest, options),
        opening=lambda: FakeRuntime([*says.encode(), 256]).open(Path(), manifest.decoder, options),
        options=options,
        tokenizer=base.tokenizer,
        template=ChatTemplate(template, parts=chat.parts, tool_use=other, **names),
    )


def prompt(result: edgepack.Result) -> str:
    """The prompt byte by byte, with the fake's special tokens as < and >."""
    return "".join({256: ">", 257: "<"}.get(token) or chr(token) for token in result.repro.prompt_ids)


async def astreamed(model: Model, messages: list[dict[str, str]]) -> None:
    async with model.astream_chat(messages) as stream:
        async for _ in stream:
            pass


def streamed(model: Model, messages: list[dict[str, str]]) -> None:
    with model.stream_chat(messages) as stream:
        list(stream)


DOORS: dict[str, Callable[[Model, list[dict[str, str]]], object]] = {
    "chat": lambda model, messages: model.chat(messages),
    "stream": streamed,
    "achat": lambda model, messages: asyncio.run(model.achat(messages)),
    "astream": lambda model, messages: asyncio.run(astreamed(model, messages)),
    "conversation": lambda model, messages: model.chat(system=messages[0]["content"]).send(messages[1]["content"]),
    "message": lambda model, messages: model.chat().send(messages[0]),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_role_that_is_not_printed_is_refused_at_every_door(door: str) -> None:
    with model(Chat(roles=["assistant", "user"], date=None, goldens=[])) as refusing:
        with pytest.raises(UsageError, match=r"messages\[0\]\.role is 'system'.*does not print.*assistant, user"):
            DOORS[door](refusing, [SYSTEM, USER])
        assert refusing._desk.cache.tokens == []


@pytest.mark.parametrize("door", ["chat", "stream", "achat", "astream"])
def test_a_role_that_is_printed_first_alone_is_refused_elsewhere(door: str) -> None:
    facts = Chat(roles=["assistant", "system", "user"], date=None, goldens=[], leading=["system"])
    with model(facts) as leading:
        assert prompt(leading.chat([SYSTEM, USER])) == "<system Be brief.><user Hi>"
        with pytest.raises(UsageError, match=r"messages\[1\]\.role is 'system'.*first message alone"):
            DOORS[door](leading, [USER, SYSTEM])


def test_strings_and_parts_reach_a_template_that_reads_parts() -> None:
    facts = Chat(roles=["assistant", "user"], date=None, goldens=[], parts=["assistant", "user"])
    content = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
    with model(facts, PARTS) as reading:
        assert prompt(reading.chat([USER])) == "<Hi>"
        assert prompt(reading.chat([{"role": "user", "content": content}])) == "<Hi\nthere>"
        talk = reading.chat()
        talk.send({"role": "user", "content": content})
        assert prompt(talk.send("And?")) == "<Hi\nthere><Yes.><And?>"
        with pytest.raises(UsageError, match=r"messages\[2\]\.content\[0\] is a part of the type 'image_url'"):
            reading.chat(
                [USER, {"role": "assistant", "content": "?"}, {"role": "user", "content": [{"type": "image_url"}]}]
            )


def test_parts_are_shortened_as_strings_are() -> None:
    facts = Chat(roles=["user"], date=None, goldens=[], parts=["user"])
    content = [{"type": "text", "text": "A" * 600}, {"type": "text", "text": "B" * 600}]
    with model(facts, PARTS) as reading:
        result = reading.chat([{"role": "user", "content": content}], on_overflow="truncate_middle", max_tokens=12)
    assert prompt(result) == "<" + "A" * 249 + "B" * 249 + ">"


def test_tools_are_asked_for_by_their_own_template() -> None:
    tools = ToolUse(roles=["tool", "user", "assistant"], goldens=[])
    facts = Chat(roles=["assistant", "user"], date=None, goldens=[], tool_use=tools)
    with model(facts, DEFAULT, FOR_TOOLS) as both:
        assert prompt(both.chat([USER])) == "<user Hi>"
        assert prompt(both.chat([USER], tools=[weather])).startswith("<1 tool><tool_call>")
        answer = {"role": "tool", "name": "weather", "content": "rain"}
        assert prompt(both.chat([USER, answer], tools=[weather])).endswith("<user Hi><tool rain>")
        with pytest.raises(UsageError, match=r"messages\[1\]\.role is 'tool'"):
            both.chat([USER, answer])
        with pytest.raises(UsageError, match=r"messages\[0\]\.role is 'system'.*tool, user, assistant"):
            both.chat([SYSTEM, USER], tools=[weather])


def test_calls_are_read_in_the_form_of_the_template_for_tools() -> None:
    facts = Chat(roles=["assistant", "user"], date=None, goldens=[], tool_use=ToolUse(roles=["user"], goldens=[]))
    says = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    with model(facts, DEFAULT, FOR_TOOLS, says) as both:
        (call,) = both.chat([USER], tools=[weather]).tool_calls
    assert (call.name, call.arguments) == ("weather", {"city": "Rome"})


# In a bundle


def golden(text: str) -> dict[str, Any]:
    plain = Golden(name="user", messages=[USER], tools=[{"type": "function"}], text=text)
    found: dict[str, Any] = msgspec.to_builtins(plain)
    return found


def bundle(folder: Path, source: bytes, text: str = "1 Hi") -> Path:
    tool_use = {"roles": ["user"], "goldens": [golden(text)], "parts": ["user"]}
    chat = {"roles": ["user"], "date": None, "goldens": [], "leading": ["user"], "tool_use": tool_use}
    small_bundle.write(folder, chat=chat)
    (folder / TOOL_USE).parent.mkdir()
    (folder / TOOL_USE).write_bytes(source)
    manifest = open_manifest(folder)
    manifest["files"].append(small_bundle.entry(TOOL_USE, source))
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return folder


def open_manifest(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode((folder / "manifest.json").read_bytes())
    return document


def test_a_bundle_carries_both(tmp_path: Path) -> None:
    source = b"{{ tools | length }} {{ messages[0].content[0].text }}"
    opened = open_bundle(bundle(tmp_path, source))
    assert opened.manifest.chat is not None
    assert opened.manifest.chat.features == ["chat_parts", "chat_leading", "chat_tool_use"]
    tokenizer, template = text_side(opened)
    assert template is not None
    assert template.for_tools.render([USER], tools=[{}]) == "1 Hi"
    assert template.render([USER]) == "<|user|>Hi<|assistant|>"
    replays = replay_text(opened.manifest, tokenizer, template)
    assert [(each.name, each.verdict) for each in replays] == [
        ("tokenizer", "same"),
        ("chat template", "same"),
        ("chat template for tools", "differs"),
    ]
    assert "gives" in replays[-1].reason  # the text is right, and its ids were left out


def test_a_template_for_tools_that_is_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleDamagedError, match=f"{TOOL_USE} of the bundle is not UTF-8"):
        text_side(open_bundle(bundle(tmp_path, b"\xff")))
    opened = open_bundle(bundle(tmp_path / "other", b"{{ tools }}"))
    (tmp_path / "other" / TOOL_USE).write_bytes(b"{{ other }}")
    with pytest.raises(BundleDamagedError, match="sha256"):
        text_side(opened)


def test_a_template_without_anything_special_needs_no_feature() -> None:
    chat = Chat(roles=["user"], date=None, goldens=[])
    assert chat.features == []
    assert msgspec.to_builtins(chat) == {"roles": ["user"], "date": None, "goldens": []}
