"""Conversations: what is new is evaluated, what was said is kept, and every branch gives what a whole prompt gives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import edgepack
from edgepack import fake, runtime
from edgepack.bundle.decoder import Decoder
from edgepack.decoding import desk
from edgepack.device.hardware import Hardware
from edgepack.errors import BundleError, ToolCallError, UsageError
from edgepack.prefix import common_length
from edgepack.runtime import Options, Support
from edgepack_packager.build import Built

ENGINES = ("gguf", "mlx", "onnx")
FIRST, SECOND = "What is edgepack?", "What is a token?"


class Counted:
    """A runtime whose session notes how many tokens each forward evaluates."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._runtime = runtime.find(name)
        self.evaluated: list[int] = []

    def probe(self, hardware: Hardware) -> Support:
        return self._runtime.probe(hardware)

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Any:
        session: Any = self._runtime.open(variant, decoder, options)
        forward = session.forward

        def counted(tokens: Sequence[int]) -> Any:
            self.evaluated.append(len(tokens))
            return forward(tokens)

        session.forward = counted
        return session


@pytest.mark.parametrize("engine", ENGINES)
def test_a_second_turn_evaluates_only_what_is_new(engine: str, demo_bundle: Built) -> None:
    counted = Counted(engine)
    with edgepack.load(demo_bundle.path, engine, 256, variant=f"{engine}-f32", runtimes={engine: counted}) as model:
        chat = model.chat()
        first = chat.send(FIRST)
        counted.evaluated.clear()
        second = chat.send(SECOND)
        prefill = counted.evaluated[0]
        whole = [
            {"role": "user", "content": FIRST},
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": SECOND},
        ]
        again = [model.chat(whole, reuse=reuse) for reuse in (None, "all", "exact")]
    # The last token that was generated, the stop token, was never evaluated.
    held = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    assert second.usage.cached_tokens == held > 20
    assert prefill == second.usage.prompt_tokens - held
    assert chat.messages == [*whole, {"role": "assistant", "content": second.text}]
    known = second.usage.prompt_tokens - 1
    assert [each.usage.cached_tokens for each in again] == [known, known, 0]
    assert {each.text for each in again} == {second.text}


@pytest.mark.parametrize("engine", ENGINES)
def test_messages_without_a_conversation_take_over_the_answer(engine: str, demo_bundle: Built) -> None:
    with edgepack.load(demo_bundle.path, engine, 256, variant=f"{engine}-f32") as model:
        talk = model.chat()
        talk.send(FIRST)
        held = talk.send(SECOND).usage.cached_tokens
        whole = [{"role": "user", "content": FIRST}]
        first = model.chat(whole)
        whole += [{"role": "assistant", "content": first.text}, {"role": "user", "content": SECOND}]
        second = model.chat(whole)
    assert second.usage.cached_tokens == held == first.usage.prompt_tokens + len(first.token_ids)


@pytest.mark.parametrize("reuse", ["", "none", "ALL", True, 1, ["all"]])
def test_another_word_for_reuse_is_refused(reuse: Any) -> None:
    with fake.model(says="abc") as model, pytest.raises(UsageError, match=r"reuse is .*: all, exact"):
        model.generate("x", reuse=reuse)


def test_exact_reuse_holds_for_a_conversation_too() -> None:
    with fake.model(says="abc") as model:
        chat = model.chat(reuse="exact")
        chat.send("One?")
        assert chat.send("Two?").usage.cached_tokens == 0
        assert chat.send("Three?", reuse="all").usage.cached_tokens > 0


def test_a_system_prompt_is_evaluated_once() -> None:
    with fake.model(says="Yes.") as model:
        chats = [model.chat(system="You are terse." * 30) for _ in range(2)]
        results = [chat.send(text) for chat, text in zip(chats, ("One?", "Two?"), strict=True)]
    assert results[0].usage.cached_tokens == 0
    shared = common_length(*(result.repro.prompt_ids for result in results))
    assert results[1].usage.cached_tokens == shared > 30


def test_forks_go_their_own_ways_and_undo_forgets() -> None:
    with fake.model(says="Yes.") as model:
        chat = model.chat(system="Be brief.")
        chat.send("One?")
        other = chat.fork()
        chat.send("Two?")
        other.send("Three?")
        assert [message["content"] for message in other.messages] == ["Be brief.", "One?", "Yes.", "Three?", "Yes."]
        assert chat.turns == 2
        chat.undo()
        assert [message["content"] for message in chat.messages] == ["Be brief.", "One?", "Yes."]
        again = chat.send("Two?")
        assert again.text == "Yes."
        with pytest.raises(UsageError, match="2 turns to undo, not 3"):
            chat.undo(3)


def test_what_fails_is_not_remembered_and_what_was_cut_short_is() -> None:
    with fake.model(says="abcdef", context=64) as model:
        chat = model.chat()
        with pytest.raises(edgepack.PromptTooLongError):
            chat.send("x" * 100)
        assert chat.messages == []
        with chat.stream("x") as stream:
            assert next(stream).text == "a"
        assert stream.result.finish_reason == "cancelled"
        assert chat.messages[-1] == {"role": "assistant", "content": "a"}
        with pytest.raises(UsageError, match="temperature"):
            chat.send("x", temperature=-1)
        assert chat.turns == 1


def test_a_stop_string_leaves_no_trace_in_the_next_prompt() -> None:
    """The tokens that spelled the stop string were evaluated, but are not part of what was said."""
    with fake.model(says="abc STOP def") as model:
        chat = model.chat(stop="STOP")
        first = chat.send("x")
        second = chat.send("y")
    assert first.text == "abc "
    text = "<|start|>user\nx<|end|>\n<|start|>assistant\nabc <|end|>\n<|start|>user\ny<|end|>\n<|start|>assistant\n"
    assert model.tokenizer.encode(text, bos=False, special=True) == list(second.repro.prompt_ids)


def test_half_a_character_leaves_no_trace_in_the_next_prompt() -> None:
    with fake.model(says="aé b") as model:
        chat = model.chat()
        first, second = chat.send("x", max_tokens=2), chat.send("y")
    assert first.text == "a"
    assert len(first.token_ids) == 2
    text = "<|start|>user\nx<|end|>\n<|start|>assistant\na<|end|>\n<|start|>user\ny<|end|>\n<|start|>assistant\n"
    assert model.tokenizer.encode(text, bos=False, special=True) == list(second.repro.prompt_ids)


def test_two_turns_at_the_same_time_are_refused() -> None:
    async def main() -> None:
        chat = model.chat()
        outcomes = await asyncio.gather(chat.asend("x"), chat.asend("y"), return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Result", "UsageError"]
        assert chat.turns == 1

    with fake.model(says="abc") as model:
        asyncio.run(main())


def test_while_a_turn_is_answered_another_is_refused_before_its_first_piece(tmp_path: Path) -> None:
    with fake.model(says="abc") as model:
        chat = model.chat()
        early = chat.stream("early")
        with chat.stream("x") as stream:
            next(stream)
            for ask in (lambda: chat.stream("y"), lambda: chat.send("y"), chat.undo, lambda: early.__enter__()):
                with pytest.raises(UsageError, match="still"):
                    ask()
            fork = chat.fork()
            saving = Thread(target=chat.save, args=(tmp_path / "chat",))
            saving.start()
            while not model._desk._waiting:
                pass
            assert "".join(chunk.text for chunk in stream) == "bc"
        saving.join(20)
        assert (chat.turns, fork.turns, model.resume(tmp_path / "chat").turns) == (1, 0, 0)
        with pytest.raises(UsageError, match="has changed since"), early:
            pass
        assert chat.messages[-1] == {"role": "assistant", "content": "abc"}
        assert fork.send("z").text == "abc"
        chat.stream("dropped").__enter__()
        assert chat.send("y").text == "abc"
        chat.undo(2)
        with early:  # what it goes on from is the past again
            assert next(early).text == "a"


def test_a_turn_whose_reader_is_slow_is_remembered_as_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "_PATIENCE_S", 0.01)
    with fake.model(says="abc") as model:
        chat, other = model.chat(), model.chat()
        with chat.stream("x") as stream:
            assert next(stream).text == "a"
            asking = Thread(target=other.send, args=("y",))
            asking.start()
            asking.join(20)
            assert other.turns == 1
            with pytest.raises(UsageError, match="still being answered"):
                chat.send("z")
            assert next(stream).text == "b"
        assert chat.messages[-1] == {"role": "assistant", "content": "ab"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_saved_conversation_goes_on_where_both_it_and_the_cache_were(
    engine: str, demo_bundle: Built, tmp_path: Path
) -> None:
    path = tmp_path / "chat"
    with edgepack.load(demo_bundle.path, engine, 256, variant=f"{engine}-f32") as model:
        chat = model.chat(max_tokens=8)
        chat.send(FIRST)
        straight = chat.send(SECOND)
        chat.undo()
        held = list(model._desk.cache.tokens)
        chat.save(path)
        assert model._desk.cache.tokens == held  # another conversation may go on from there
        assert model._desk.owner.call(lambda: model._desk.session.length) == len(held)
        assert chat.send(SECOND).text == straight.text
    with edgepack.load(demo_bundle.path, engine, 256, variant=f"{engine}-f32") as model:
        result = model.resume(path).send(SECOND, max_tokens=8)
    assert result.text == straight.text
    assert result.usage.cached_tokens >= straight.usage.cached_tokens > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_saved_conversation_goes_on_where_it_was(engine: str, demo_bundle: Built, tmp_path: Path) -> None:
    path = tmp_path / "chat"
    with edgepack.load(demo_bundle.path, engine, 256, variant=f"{engine}-f32") as model:
        chat = model.chat()
        chat.send(FIRST)
        chat.save(path)
        expected = chat.send(SECOND)
    with edgepack.load(demo_bundle.path, engine, 256, variant=f"{engine}-f32") as model:
        resumed = model.resume(path)
        assert resumed.messages == chat.messages[:2]
        result = resumed.send(SECOND)
    assert (result.text, result.usage) == (expected.text, expected.usage)
    assert result.usage.cached_tokens > 0


def test_a_conversation_goes_on_with_another_engine(demo_bundle: Built, tmp_path: Path) -> None:
    path = tmp_path / "chat"
    with edgepack.load(demo_bundle.path, "gguf", 256, variant="gguf-f32") as model:
        chat = model.chat()
        chat.send(FIRST)
        chat.save(path)
        expected = chat.send(SECOND)
    with edgepack.load(demo_bundle.path, "onnx", 256, variant="onnx-f32") as model:
        result = model.resume(path).send(SECOND)
    assert (result.text, result.usage.cached_tokens) == (expected.text, 0)


def test_files_that_are_no_conversation(demo_bundle: Built, tmp_path: Path) -> None:
    path = tmp_path / "chat"
    with fake.model(says="abc") as model:
        chat = model.chat()
        chat.send("x")
        chat.save(path)
        whole = path.read_bytes()
        with pytest.raises(FileNotFoundError):
            model.resume(tmp_path / "none")
        for damaged in (b"", whole[:-1], b"{}"):
            path.write_bytes(damaged)
            with pytest.raises(BundleError, match="not a conversation"):
                model.resume(path)
        path.write_bytes(whole)
        assert model.resume(path).turns == 1
        assert sorted(tmp_path.iterdir()) == [path]
    with (
        edgepack.load(demo_bundle.path, "gguf", 64, variant="gguf-f32") as other,
        pytest.raises(BundleError, match="another bundle"),
    ):
        other.resume(path)


TOOL = {
    "name": "weather",
    "description": "",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
HERMES = """{%- if tools %}{{ tools | tojson }} in <tool_call> "arguments": </tool_call>{% endif %}
{%- for m in messages %}<|start|>{{ m.role }}
{{ m.content }}
{%- for c in m.tool_calls or [] %}CALL {{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|end|>
{% endfor %}<|start|>assistant
"""


def hermes(says: str, template: str = HERMES) -> edgepack.Model:
    """A fake model whose template teaches tools."""
    return fake.model(says=says, template=template)


def test_a_call_and_its_answer_are_part_of_the_conversation() -> None:
    with hermes(CALL) as model:
        chat = model.chat(tools=[TOOL])
        result = chat.send("Rain in Rome?")
        (call,) = result.tool_calls
        assert (call.name, call.arguments, result.text) == ("weather", {"city": "Rome"}, "")
        seen = chat.send({"role": "tool", "content": "rain"}).repro.prompt_ids
    prompt = model.tokenizer.decode(seen)
    assert 'assistant\nCALL weather{"city": "Rome"}\ntool\nrain\nassistant' in prompt


def test_a_template_that_cannot_write_calls_is_told_their_words() -> None:
    with hermes(CALL, HERMES.replace("m.tool_calls or []", "[]")) as model:
        chat = model.chat(tools=[TOOL])
        chat.send("Rain in Rome?")
        second = chat.send({"role": "tool", "content": "rain"})
    assert chat.messages[1] == {"role": "assistant", "content": CALL}
    assert second.usage.cached_tokens > 0


def test_what_is_thought_is_no_call_where_the_prompt_opens_the_thought() -> None:
    for says, calls in ((f"I could {CALL} but must not.</think>No.", 0), (f"ok</think>{CALL}", 1)):
        with hermes(says, HERMES + "<think>\n") as model:
            assert len(model.chat([{"role": "user", "content": "x"}], tools=[TOOL]).tool_calls) == calls


def test_what_several_tools_gave_and_a_call_that_failed_go_back_into_the_conversation() -> None:
    with hermes(f"{CALL}\n{CALL}") as model:
        chat = model.chat(tools=[TOOL])
        calls = chat.send("Rain in Rome?").tool_calls
        seen = chat.send([calls[0].answered("rain"), calls[1].answered(OSError("no net"))]).repro.prompt_ids
        assert [message["role"] for message in chat.messages[:4]] == ["user", "assistant", "tool", "tool"]
    assert "tool\nrain\ntool\nError: OSError: no net\nassistant" in model.tokenizer.decode(seen)
    wrong = CALL.replace("weather", "wether")
    with hermes(wrong) as model:
        chat = model.chat(tools=[TOOL])
        with pytest.raises(ToolCallError) as raised:
            chat.send("Rain in Rome?")
        assert chat.turns == 0
        asked = [{"role": "user", "content": "Rain in Rome?"}, *raised.value.messages]
        with pytest.raises(ToolCallError) as again:
            chat.send(asked)
        assert again.value.text == wrong
        seen = model.chat(asked).repro.prompt_ids
    told = f"{wrong}\nuser\nError: The model called 'wether', which is no tool. It was given: weather.\nassistant"
    assert model.tokenizer.decode(seen).endswith(told)


@pytest.mark.parametrize("said", [3, [], [3], {"content": "x"}])
def test_what_cannot_be_said_is_named(said: Any) -> None:
    with fake.model(says="x") as model, pytest.raises(UsageError, match="messages"):
        model.chat().send(said)
