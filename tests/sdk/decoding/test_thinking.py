"""Thoughts apart from answers, on a fake that was told what to think."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgepack import Chunk, Model, fake
from edgepack.bundle.thinking import Switch, Thinking
from edgepack.decoding.repro import Repro
from edgepack.errors import SchemaError, UnknownOptionError, UsageError
from edgepack.measuring.rerun import read_result
from edgepack.text.chat import ChatTemplate

HI = [{"role": "user", "content": "Hi"}]
THOUGHT, SAID = "A greeting, née 🚀.\nI greet.", "Hello 👋!"
MARKS = "<think>", "\n</think>\n\n"


def thinker(**options: Any) -> Model:
    return fake.model(**{"says": SAID, "thinks": THOUGHT} | options)


def test_a_thought_is_apart_from_its_answer() -> None:
    with thinker() as model:
        result = model.chat(HI)
        assert (result.reasoning, result.text, result.finish_reason) == (THOUGHT, SAID, "stop")
        assert bytes(result.token_ids).decode() == f"<think>\n{THOUGHT}\n</think>\n\n{SAID}"
        assert result.usage.reasoning_tokens == len(f"<think>\n{THOUGHT}\n</think>".encode())
        assert result.usage.completion_tokens == len(result.token_ids) + 1
        plain = json.loads(json.dumps(result.to_dict()))
        assert (plain["reasoning"], plain["text"]) == (THOUGHT, SAID)
        assert plain["usage"]["reasoning_tokens"] == result.usage.reasoning_tokens
        with model.stream_chat(HI) as stream:
            chunks = list(stream)
        assert "".join(chunk.reasoning for chunk in chunks) == THOUGHT
        assert "".join(chunk.text for chunk in chunks) == SAID
        assert all(chunk.reasoning or chunk.text for chunk in chunks[:-1])
        assert not any(chunk.reasoning and chunk.text for chunk in chunks)
        assert chunks[0].to_dict()["reasoning"] == chunks[0].reasoning
        assert asyncio.run(model.achat(HI)).reasoning == THOUGHT


def test_a_model_that_does_not_think_has_no_thought() -> None:
    with fake.model(says="<think>\nHm\n</think>\n\nHello!") as model:
        result = model.chat(HI)
        assert result.reasoning is None
        assert result.text.startswith("<think>")
        assert result.usage.reasoning_tokens == 0
        assert Chunk("a", (1,)).reasoning == ""
        for options in ({"thinking": True}, {"thinking": False}, {"thinking_tokens": 3}):
            with pytest.raises(UsageError, match="does not think"):
                model.chat(HI, **options)  # type: ignore[arg-type]


def test_a_plain_text_is_all_text() -> None:
    with thinker() as model:
        assert model.generate("Hi").text.startswith("<think>")
        assert model.generate("Hi").reasoning is None
        with pytest.raises(UnknownOptionError):
            model.generate("Hi", thinking=True)  # type: ignore[call-arg]


def test_the_templates_switch_is_driven() -> None:
    with thinker() as model:
        silent = model.chat(HI, thinking=False)
        assert (silent.reasoning, silent.text) == (None, SAID)
        assert bytes(id for id in silent.repro.prompt_ids if id < 256).endswith(b"<think>\n\n</think>\n\n")
        assert model.chat(HI, thinking=True).reasoning == model.chat(HI, thinking=None).reasoning == THOUGHT
        assert model.chat(HI, variables={"enable_thinking": False}).reasoning is None
        with pytest.raises(UsageError, match="beside the variable 'enable_thinking'"):
            model.chat(HI, thinking=True, variables={"enable_thinking": True})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"thinking": "yes"}, "thinking is 'yes'"),
        ({"thinking_tokens": -1}, "thinking_tokens is -1"),
        ({"thinking_tokens": True}, "thinking_tokens is True"),
        ({"thinking": False, "thinking_tokens": 4}, "beside thinking=False"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options: Any, reason: str) -> None:
    with thinker() as model:
        with pytest.raises(UsageError, match=reason) as caught:
            model.chat(HI, **options)
        assert caught.value.hint


def like(model: Model, template: str, **changes: Any) -> Model:
    """Return a model on the same engine whose template and thinking are others."""
    chat = model.manifest.chat
    assert chat is not None
    known = msgspec.structs.replace(fake._THINKING, **changes)
    manifest = msgspec.structs.replace(model.manifest, chat=msgspec.structs.replace(chat, thinking=known))
    made = ChatTemplate(template, bos_token="", eos_token="<|end|>", date=None)
    setup, options, session = model.setup, model._desk.options, model._desk.session
    return Model(
        manifest=manifest,
        setup=setup,
        opening=lambda: session._runtime.open(Path(), manifest.decoder, options),  # type: ignore[attr-defined]
        options=options,
        tokenizer=model.tokenizer,
        template=made,
    )


OPENS = fake._TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def test_a_thought_that_the_prompt_has_begun() -> None:
    with thinker(thinks="") as base, like(base, OPENS, begun="<think>\n", switch=None, skipped="") as model:
        result = model.chat(HI)
        # The fake says its script, which opens a thought again inside of the one that the prompt has begun.
        assert (result.reasoning, result.text) == ("<think>", SAID)
        assert result.repro.thought == "begun"
        with pytest.raises(UsageError, match="no switch") as caught:
            model.chat(HI, thinking=False)
        assert "thinking_tokens=0" in str(caught.value.hint)
        at_once = model.chat(HI, thinking_tokens=0)
        assert (at_once.reasoning, at_once.text) == ("", SAID)
        bound = model.chat(HI, regex="[0-9]{3}", max_tokens=40)
        assert len(bound.text) == 3
        assert bound.text.isdigit()


@pytest.mark.parametrize(
    "form",
    [
        {"regex": r"I could [a-z]{3}\n<\/think>\n\nNo\."},
        {"grammar": 'start: "I could " /[a-z]{3}/ "\\n</think>\\n\\nNo."'},
    ],
    ids=["regex", "grammar"],
)
def test_a_form_that_closes_the_thought_itself_binds_it_too(form: Any) -> None:
    with thinker(thinks="") as base, like(base, OPENS, begun="<think>\n", switch=None, skipped="") as model:
        result = model.chat(HI, **form, max_tokens=60)
        assert re.fullmatch("I could [a-z]{3}", result.reasoning or "")
        assert (result.text, result.finish_reason) == ("No.", "stop")
        assert model._repeat(result.repro, result.sampling).token_ids == result.token_ids
        with pytest.raises(UsageError, match="beside a form that writes </think> itself") as caught:
            model.chat(HI, **form, thinking_tokens=8)
        assert caught.value.hint


def test_a_switch_that_is_a_word_in_the_system_message() -> None:
    with thinker() as base, like(base, fake._TEMPLATE, switch=Switch(on="/think", off="/no_think")) as model:
        for messages, wanted in (
            (HI, "system\n/no_think"),
            ([{"role": "system", "content": "Brief."}, *HI], "Brief.\n/no_think"),
        ):
            ids = model.chat(messages, thinking=False).repro.prompt_ids
            assert wanted in bytes(id for id in ids if id < 256).decode()


@pytest.mark.parametrize("most", [0, 1, 7, 15, 19, 1000])
def test_a_thought_is_closed_where_its_tokens_are_spent(most: int, tmp_path: Path) -> None:
    with thinker() as model:
        result = model.chat(HI, thinking_tokens=most)
        data = b"\n" + THOUGHT.encode()
        assert result.reasoning == data[:most].decode(errors="ignore").strip()
        assert (result.text, result.finish_reason) == (SAID, "stop")
        assert result.repro.thinking_tokens == most
        again = model._repeat(result.repro, result.sampling)
        assert (again.token_ids, again.text, again.reasoning) == (result.token_ids, SAID, result.reasoning)
        path = tmp_path / "result.json"
        path.write_text(json.dumps(result.to_dict()))
        assert read_result(path).repro == result.repro
        old = result.repro.to_dict()
        del old["thought"], old["thinking_tokens"]
        assert msgspec.convert(old, Repro).thought is None


def test_the_limit_covers_both() -> None:
    with thinker() as model:
        cut = model.chat(HI, max_tokens=12)
        assert (cut.text, cut.finish_reason, len(cut.token_ids)) == ("", "length", 12)
        assert cut.reasoning == THOUGHT[:4]
        assert cut.usage.reasoning_tokens == 12


@pytest.mark.parametrize(
    ("form", "text"), [({"regex": r" ?[a-z]{4}\."}, None), ({"json_schema": {"enum": ["no"]}}, '"no"')]
)
@pytest.mark.parametrize("limit", [30, 45, 300])
def test_a_form_binds_the_answer_and_not_the_thought(form: Any, text: str | None, limit: int) -> None:
    with thinker() as model:
        result = model.chat(HI, max_tokens=limit, **form)
        assert text in (None, result.text)
        assert text or (len(result.text.lstrip()), result.text[-1]) == (5, ".")
        assert THOUGHT.startswith(result.reasoning or "")
        assert (result.reasoning == THOUGHT) == (limit == 300)
        assert len(result.token_ids) <= limit
        again = model._repeat(result.repro, result.sampling)
        assert again.token_ids == result.token_ids
        assert model.chat(HI, thinking=False, max_tokens=limit, **form).reasoning is None


def test_an_answer_finds_its_room_or_is_refused() -> None:
    with thinker() as base, like(base, OPENS, begun="<think>\n") as model:
        least = 3 + len("\n</think>\n\n")
        with pytest.raises(SchemaError, match="shortest") as caught:
            model.chat(HI, regex="[0-9]{3}", max_tokens=least - 1)
        assert f"max_tokens={least}" in str(caught.value.hint)
        assert model.chat(HI, regex="[0-9]{3}", max_tokens=least).text.isdigit()
    with thinker() as model:  # which begins a thought only where it has room
        short = model.chat(HI, regex="[0-9]{3}", max_tokens=9)
        assert (short.reasoning, len(short.text)) == (None, 3)


def test_a_stop_token_in_a_thought_does_not_keep_a_bound_answer_from_its_form() -> None:
    with fake.model(says=[*b"Hm", 256]) as base, like(base, OPENS, begun="<think>\n") as model:
        bound = model.chat(HI, regex="[0-9]{3}", max_tokens=60)
        assert (bound.reasoning, bound.text.isdigit()) == ("Hm", True)
        free = model.chat(HI, max_tokens=60)
        assert (free.reasoning, free.text, free.finish_reason) == ("Hm", "", "stop")


def test_stop_strings_count_in_the_answer_alone() -> None:
    with thinker() as model:
        result = model.chat(HI, stop=["greet", "lo "])
        assert (result.reasoning, result.text, result.stop) == (THOUGHT, "Hel", "lo ")


def test_tool_calls_are_read_after_the_thought() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    template = fake._TEMPLATE + '{% for t in tools or [] %}{{ t }}{% endfor %}{# <tool_call> "arguments": #}'
    tool = {"name": "f"}
    with fake.model(says=call, thinks=f"I could {call}.", template=template) as model:
        result = model.chat(HI, tools=[tool])
        assert [each.name for each in result.tool_calls] == ["f"]
        assert (result.text, result.reasoning) == ("", f"I could {call}.")
    with fake.model(says="No.", thinks=f"I could {call}.", template=template) as model:
        result = model.chat(HI, tools=[tool])
        assert (result.text, result.tool_calls) == ("No.", ())


def test_a_cancel_in_the_thought() -> None:
    with thinker() as model:
        with model.stream_chat(HI) as stream:
            first = next(stream)
            stream.cancel()
            rest = list(stream)
        result = stream.result
        assert (result.text, result.finish_reason) == ("", "cancelled")
        assert result.reasoning == "".join(chunk.reasoning for chunk in (first, *rest))
        assert THOUGHT.startswith(result.reasoning)
        assert model.chat(HI).text == SAID


def test_a_conversation_keeps_thoughts_and_the_template_drops_them(tmp_path: Path) -> None:
    with thinker() as model:
        chat = model.chat()
        chat.send("Hi")
        assert chat.messages[1] == {"role": "assistant", "content": SAID, "reasoning_content": THOUGHT}
        fork = chat.fork()
        second = fork.send("And?")
        words = model.detokenize(second.repro.prompt_ids)
        assert "greet" not in words.partition("And?")[0]
        path = tmp_path / "talk"
        fork.save(path)
        assert model.resume(path).messages == fork.messages
        fork.undo()
        assert fork.messages == chat.messages
        with chat.stream("Stop") as stream:
            next(stream)
        assert chat.messages[-1]["content"] == ""
        assert THOUGHT.startswith(str(chat.messages[-1]["reasoning_content"]))


@pytest.mark.parametrize(
    ("field", "printed"),
    [(None, ""), ("content", f"<think>\n{THOUGHT}\n</think>\n\n"), ("reasoning_content", f"[{THOUGHT}]")],
)
def test_an_earlier_thought_is_told_as_the_template_takes_it(field: str | None, printed: str) -> None:
    template = fake._TEMPLATE.replace(
        "{{ message.content }}",
        "{% if message.reasoning_content %}[{{ message.reasoning_content }}]{% endif %}{{ message.content }}",
    )
    with thinker() as base, like(base, template, field=field) as model:
        chat = model.chat()
        first = chat.send("Hi")
        second = chat.send("And?")
        words = model.detokenize(second.repro.prompt_ids)
        assert f"assistant\n{printed}{SAID}" in words
        if field == "content":  # as the model said it, so that nothing is evaluated again
            assert second.usage.cached_tokens >= first.usage.prompt_tokens + len(first.token_ids) - 1
        by_hand = [*HI, {"role": "assistant", "content": SAID, "reasoning_content": THOUGHT}, *HI]
        assert f"{printed}{SAID}" in model.detokenize(model.chat(by_hand).repro.prompt_ids)
        with pytest.raises(UsageError, match=r"messages\[1\].reasoning_content"):
            model.chat([*HI, {"role": "assistant", "content": SAID, "reasoning_content": 3}, *HI])


def test_an_answer_that_goes_on_from_its_thought() -> None:
    with thinker() as model:
        begun = [*HI, {"role": "assistant", "content": "<think>\nI am"}]
        result = model.chat(begun, continue_final=True)
        assert result.repro.thought == "begun"
        assert result.text == SAID
        over = [*HI, {"role": "assistant", "content": "<think>\nI am\n</think>\n\nWell,"}]
        assert model.chat(over, continue_final=True).repro.thought is None


def test_what_a_manifest_says_of_thoughts_is_checked() -> None:
    with pytest.raises(ValueError, match="does not close a thought"):
        Thinking(opening="<think>", closing="</think>", ending="\n\n")
    known = Thinking(opening="<a>", closing="</a>", ending="\n</a>\n")
    assert (known.separator, known.whole("b", "c")) == ("\n", "<a>\nb\n</a>\nc")
    assert msgspec.json.decode(msgspec.json.encode(known), type=Thinking) == known
    with pytest.raises(msgspec.ValidationError, match="opening"):
        msgspec.json.decode(b'{"opening": "", "closing": "b", "ending": "b"}', type=Thinking)
