"""Answers that go on with the last message: where their prompts end, in every template, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from real_templates import all_templates

from edgepack import fake
from edgepack.errors import UnknownOptionError, UsageError
from edgepack.text.chat import ChatTemplate
from edgepack.text.continuing import begun_prompt
from edgepack.text.thoughts import marks_of

HI = [{"role": "user", "content": "Hi"}]
BEGUN = {"role": "assistant", "content": "I am a"}
TURN = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}"
ASKS = "{% if add_generation_prompt %}[assistant]{% endif %}"
OPENS = "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"


def prompt_of(source: str, begun: str) -> str:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", date="2024-07-26")

    def render(messages: Sequence[Any], ask: bool) -> str:
        return template.render(messages, add_generation_prompt=ask)

    return begun_prompt(render, [*HI, {"role": "assistant", "content": begun}], marks_of(source))


@pytest.mark.parametrize(
    ("source", "begun", "prompt"),
    [
        (TURN + ASKS, "I am a", "[user]Hi</s>[assistant]I am a"),
        (TURN + ASKS, " I am a ", "[user]Hi</s>[assistant]I am a "),
        (TURN + ASKS, "Hi", "[user]Hi</s>[assistant]Hi"),
        (TURN + ASKS, "", "[user]Hi</s>[assistant]"),
        (TURN + OPENS, "I am a", "[user]Hi</s>[assistant]I am a"),
        (TURN + ASKS, "<think>\nHm", "[user]Hi</s>[assistant]<think>\nHm"),
        (TURN + OPENS, "<think>\nHm", "[user]Hi</s>[assistant]<think>\nHm"),
        (TURN + OPENS, "<think>\nHm\n</think>\n\nI", "[user]Hi</s>[assistant]<think>\nHm\n</think>\n\nI"),
        # Templates that leave it out, or want a user's message last.
        (TURN.replace("messages %}", "messages if not loop.last or m.role == 'user' %}").replace(
            "{% for m in messages if not loop.last or m.role == 'user' %}",
            "{% for m in messages %}{% if loop.last and m.role == 'assistant' %}{% continue %}{% endif %}") + ASKS,
         "I am a", "[user]Hi</s>[assistant]I am a"),
        ("{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}" + TURN + ASKS,
         "I am a", "[user]Hi</s>[assistant]I am a"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_prompt_ends_where_the_message_ends(source: str, begun: str, prompt: str) -> None:
    assert prompt_of(source, begun) == prompt


@pytest.mark.parametrize(
    "source",
    [
        TURN.replace("m.content", "m.content + m.content") + ASKS,
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}" + OPENS,
    ],
)
def test_a_template_that_prints_it_otherwise_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="does not print the assistant's last message as it is"):
        prompt_of(source, "I am a")


@pytest.mark.shared
@pytest.mark.parametrize(
    "begun", ["Edgepack is a", " Edgepack is a ", "", "<think>\nI should", "<think>\nx\n</think>\n\nI"]
)
def test_every_real_template_goes_on(shared: Path, begun: str) -> None:
    for name, source in all_templates(shared / "chat-templates").items():
        if "additional_special_tokens" in source:  # a name that no bundle has
            continue
        prompt = prompt_of(source, begun)
        template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", date="2024-07-26")
        asked = template.render(HI)
        whole = template.render([*HI, {"role": "assistant", "content": begun}], add_generation_prompt=False)
        assert prompt.endswith(begun.lstrip()), name
        # It goes on as the template prints the message, or in the words in which a model would have begun it.
        assert whole.startswith(prompt.rstrip()) or prompt == asked + begun, name
        assert len(prompt) <= len(asked) + len(begun) + len("<think>\n\n</think>\n\n"), name


def test_a_last_message_of_the_assistant_is_refused_unless_it_is_asked_for() -> None:
    with fake.model(says="robot.") as model:
        for ask in (None, False):
            with pytest.raises(UsageError, match=r"messages\[1\].*continue_final=True"):
                model.chat([*HI, BEGUN], continue_final=ask)
        result = model.chat([*HI, BEGUN], continue_final=True)
        assert result.text == "robot."
        text = "<|start|>user\nHi<|end|>\n<|start|>assistant\nI am a"
        assert list(result.repro.prompt_ids) == model.tokenizer.encode(text, bos=False, special=True)
        assert not result.repro.at_start
        with model.stream_chat([*HI, BEGUN], continue_final=True) as stream:
            assert "".join(chunk.text for chunk in stream) == "robot."


@pytest.mark.parametrize(
    ("messages", "options", "reason"),
    [
        (HI, {"continue_final": True}, r"messages\[0\], the last message, has the role 'user'"),
        ([*HI, BEGUN], {"continue_final": "yes"}, "continue_final is 'yes'"),
        ([*HI, {**BEGUN, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}], {"continue_final": True},
         r"messages\[1\], the last message, calls tools and nothing answers them"),
        ([*HI, {**BEGUN, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}], {},
         r"messages\[1\], the last message, calls tools and nothing answers them"),
    ],
)  # fmt: skip
def test_what_cannot_be_continued_is_named(messages: Any, options: Any, reason: str) -> None:
    with fake.model(says="x") as model:
        with pytest.raises(UsageError, match=reason):
            model.chat(messages, **options)
        with pytest.raises(UnknownOptionError):
            model.generate("Hi", continue_final=True)  # type: ignore[call-arg]


def test_a_long_conversation_is_shortened_and_goes_on() -> None:
    history = [{"role": "user", "content": "old " * 9}, {"role": "assistant", "content": "old"}]
    with fake.model(says="robot.", context=80) as model:
        result = model.chat([*history, *HI, BEGUN], continue_final=True, on_overflow="rolling", max_tokens=10)
        text = "<|start|>user\nHi<|end|>\n<|start|>assistant\nI am a"
        assert list(result.repro.prompt_ids) == model.tokenizer.encode(text, bos=False, special=True)
        long = {"role": "assistant", "content": "a" * 99 + "b" * 99}
        cut = model.chat([*HI, long], continue_final=True, on_overflow="truncate_middle", max_tokens=10)
        assert model.tokenizer.decode(cut.repro.prompt_ids).endswith("assistant\n" + "a" * 24 + "b" * 25)
    assert len(cut.repro.prompt_ids) == 70


def test_a_conversation_remembers_one_message_of_both_halves() -> None:
    with fake.model(says="robot.") as model:
        chat = model.chat()
        chat.send([*HI, BEGUN], continue_final=True)
        assert chat.messages == [*HI, {"role": "assistant", "content": "I am arobot."}]
        assert chat.send("And?").usage.cached_tokens > 0
