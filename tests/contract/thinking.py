"""Thoughts: apart from their answers, bound by nothing but their length, and told again as the template wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import edgepack
from contract.bound import FORMS, fits, least
from contract.case import Case, Watched
from contract.ends import miscounted
from contract.registry import promise
from contract.text import QUESTION
from contract.turns import spelt
from edgepack.bundle.thinking import CONTENT, Switch, Thinking
from edgepack.conversation import Conversation
from edgepack.decoding import generation
from edgepack.decoding.choosing import Chooser
from edgepack.decoding.generation import Generation
from edgepack.decoding.repro import Repro
from edgepack.decoding.results import Chunk
from edgepack.model import Model
from edgepack.text import divider, history
from edgepack.text.divider import Divider
from edgepack.text.prompts import Prompts

SKIPPED = "<think>\n\n</think>\n\n"
THINKING = Thinking(
    opening="<think>",
    closing="</think>",
    ending="\n</think>\n\n",
    skipped=SKIPPED,
    switch=Switch(variable="enable_thinking", on=True, off=False),
    field=CONTENT,
)
TEMPLATE = """
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is false %}<think>{{ '\\n\\n' }}</think>{{ '\\n\\n' }}{% endif %}
{% endif %}"""
THOUGHT, ANSWER = "The apples are red.\nSo are the é🚀 baskets, one < two.", "Seven red apples."


def thinker(case: Case) -> tuple[Model, Watched]:
    """Return a model of this engine that thinks before it answers; the demo does not."""
    return case.talker(TEMPLATE, THINKING)


def says(model: Model, watch: Watched, ids: Sequence[int], **options: Any) -> list[int]:
    """Let the model answer ``QUESTION`` with these tokens; return them."""
    prompt = model.stream_chat(QUESTION, **options)._generation._request.prompt
    watch.says(len(prompt), [*ids, model.manifest.stops[0].id])
    return list(ids)


def read(model: Model, **options: Any) -> tuple[list[Chunk], edgepack.Result]:
    """Return the pieces of an answer to ``QUESTION`` and its result."""
    with model.stream_chat(QUESTION, **options) as stream:
        pieces = list(stream)
    return pieces, stream.result


def facts(result: edgepack.Result) -> object:
    """Return what must be the same on every engine."""
    return result.reasoning, result.text, result.token_ids, result.finish_reason, result.stop, result.usage.to_dict()


def until_closed(model: Model, ids: Sequence[int]) -> int:
    """Return how many tokens it takes to close a thought, 0 where it is not closed."""
    whole = (count for count in range(len(ids) + 1) if THINKING.closing in model.detokenize(ids[:count]))
    return next(whole, 0)


@promise
def a_thought_is_apart_from_its_answer(case: Case) -> None:
    model, watch = thinker(case)
    with model:
        for thought, answer in ((THOUGHT, ANSWER), ("", "Seven."), ("It </thin", "A <think> of its own")):
            words = THINKING.whole(thought, answer)
            # As a tokenizer spells it, and letter by letter, so that the marks are cut.
            for ids in (model.tokenizer.encode(words, bos=False), spelt(case, words)):
                says(model, watch, ids)
                pieces, result = read(model)
                assert (result.reasoning, result.text, result.finish_reason) == (thought, answer, "stop")
                assert "".join(piece.reasoning for piece in pieces) == thought
                assert "".join(piece.text for piece in pieces) == answer
                assert [token for piece in pieces for token in piece.token_ids] == list(result.token_ids) == ids
                assert result.usage.reasoning_tokens == until_closed(model, ids)
                assert result.to_dict()["reasoning"] == thought
                later = case.runs(model.achat(QUESTION))
                assert (later.reasoning, later.text) == (thought, answer)
                case.same(("thought", thought, len(ids)), facts(result))
        for said, apart in (
            ("Seven.", (None, "Seven.")),
            ("<thin", (None, "<thin")),
            ("<think>\nHm </", ("Hm </", "")),
        ):
            says(model, watch, model.tokenizer.encode(said, bos=False))
            result = model.chat(QUESTION)
            assert (result.reasoning, result.text) == apart
            assert (result.usage.reasoning_tokens > 0) == (result.reasoning is not None)
        says(model, watch, model.tokenizer.encode(THINKING.whole(THOUGHT, ANSWER), bos=False))
        assert model.generate(model.detokenize(model.chat(QUESTION).repro.prompt_ids), max_tokens=3).reasoning is None


@a_thought_is_apart_from_its_answer.broken_by
def a_thought_that_leaks_into_the_text(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Divider, "push", lambda self, token: ("", self._detokenizer.push(token)))


@a_thought_is_apart_from_its_answer.broken_by
def a_mark_that_is_looked_for_in_each_token_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(divider, "overlap", lambda text, mark: 0)


@a_thought_is_apart_from_its_answer.broken_by
def a_stream_that_does_not_show_the_thought(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generation, "Chunk", lambda text, ids, logprobs, reasoning: Chunk(text, ids, logprobs))


@a_thought_is_apart_from_its_answer.broken_by
def thoughts_that_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    miscounted(patch, lambda counts: counts | {"reasoning_tokens": 0})


@promise
def a_form_binds_the_answer_and_not_the_thought(case: Case) -> None:
    model, watch = thinker(case)
    with model:
        ids = says(model, watch, model.tokenizer.encode(THINKING.whole(THOUGHT, ANSWER), bos=False))
        closes = max(len(model.tokenizer.encode(THINKING.ending[at:], bos=False)) for at in range(11))
        for form, (options, _) in FORMS.items():
            fewest = least(model, options)
            for limit in (fewest, fewest + closes + 9, fewest + len(ids) + 40):
                result = model.chat(QUESTION, max_tokens=limit, **options)
                assert fits(result.text, form), (form, limit, result.text)
                assert result.usage.completion_tokens <= limit
                # A thought begins only where it finds room, and is cut only for the answer's.
                assert (result.reasoning is None) == (limit == fewest)
                assert THOUGHT.startswith(result.reasoning or "")
                assert (result.reasoning == THOUGHT) == (limit > fewest + len(ids))
                again = model._repeat(result.repro, result.sampling)
                assert (again.token_ids, again.reasoning) == (result.token_ids, result.reasoning)
                case.same(("thought bound", form, limit), facts(result))
            silent = model.chat(QUESTION, max_tokens=fewest, thinking=False, **options)
            assert (silent.reasoning, fits(silent.text, form)) == (None, True)


@a_form_binds_the_answer_and_not_the_thought.broken_by
def a_bound_that_binds_the_thought(patch: pytest.MonkeyPatch) -> None:
    real = Chooser.__init__

    def init(self: Chooser, tokenizer: Any, grammar: Any, thinks: Any, **rest: Any) -> None:
        real(self, tokenizer, grammar, None if grammar is not None else thinks, **rest)

    patch.setattr(Chooser, "__init__", init)


@a_form_binds_the_answer_and_not_the_thought.broken_by
def an_answer_that_is_free_after_its_thought(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chooser, "_answer", lambda self, logits, sampler, left, bound: sampler(logits))


@a_form_binds_the_answer_and_not_the_thought.broken_by
def a_thought_that_leaves_its_answer_no_room(patch: pytest.MonkeyPatch) -> None:
    real = Chooser.__init__

    def init(self: Chooser, *arguments: Any, **rest: Any) -> None:
        real(self, *arguments, **rest)
        self._ends_in = -(10**6)

    patch.setattr(Chooser, "__init__", init)


@promise
def a_thought_ends_where_its_tokens_are_spent(case: Case) -> None:
    model, watch = thinker(case)
    with model:
        encode = model.tokenizer.encode
        opening, inside = encode("<think>", bos=False), encode("\n" + THOUGHT, bos=False)
        closing, answer = encode("\n</think>\n\n", bos=False), encode(ANSWER, bos=False)
        for most in (0, 1, 4):
            # Where the closing words come, the model would go on with its thought.
            says(model, watch, [*opening, *inside[: most + len(closing)], *answer], thinking_tokens=most)
            pieces, result = read(model, thinking_tokens=most)
            assert list(result.token_ids) == [*opening, *inside[:most], *closing, *answer]
            assert result.reasoning == "".join(piece.reasoning for piece in pieces)
            assert result.reasoning == model.detokenize(inside[:most]).strip()
            assert (result.text, result.finish_reason) == (ANSWER, "stop")
            again = model._repeat(result.repro, result.sampling)
            assert (again.token_ids, again.text) == (result.token_ids, result.text)
            case.same(("spent", most), facts(result))
        says(model, watch, [*opening, *inside, *closing, *answer])
        free = model.chat(QUESTION, thinking_tokens=len(inside) + len(closing))
        assert (free.reasoning, free.text) == (THOUGHT, ANSWER)
        cut = model.chat(QUESTION, max_tokens=len(opening) + 4)
        assert (cut.text, cut.finish_reason, cut.usage.reasoning_tokens) == ("", "length", len(opening) + 4)


@a_thought_ends_where_its_tokens_are_spent.broken_by
def a_thought_without_an_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("edgepack.model.read_thinking", lambda options, known: (options.get("thinking"), None))


@a_thought_ends_where_its_tokens_are_spent.broken_by
def a_thought_that_is_closed_for_the_reader_alone(patch: pytest.MonkeyPatch) -> None:
    def cut(self: Divider) -> str:
        self.answers()
        return " "

    patch.setattr(Divider, "cut", cut)


@a_thought_ends_where_its_tokens_are_spent.broken_by
def a_replay_that_thinks_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generation, "Repro", lambda **fields: Repro(**fields | {"thinking_tokens": None}))


@promise
def a_stop_string_counts_in_the_answer_alone(case: Case) -> None:
    model, watch = thinker(case)
    with model:
        for stop in ("apples", "</think>", "\n"):
            says(model, watch, model.tokenizer.encode(THINKING.whole(THOUGHT, ANSWER), bos=False))
            pieces, result = read(model, stop=[stop, "red app"])
            assert (result.reasoning, result.text, result.stop) == (THOUGHT, "Seven ", "red app")
            assert "".join(piece.text for piece in pieces) == result.text
            case.same(("stop", stop), facts(result))


@a_stop_string_counts_in_the_answer_alone.broken_by
def a_stop_that_is_looked_for_in_the_thought(patch: pytest.MonkeyPatch) -> None:
    real = Generation._divided

    def divided(self: Generation, token: int) -> tuple[str, str]:
        reasoning, text = real(self, token)
        return reasoning, self._matcher.push(reasoning) + text

    patch.setattr(Generation, "_divided", divided)


@promise
def the_templates_switch_is_driven(case: Case) -> None:
    model, watch = thinker(case)
    with model:
        asked = {each: model.stream_chat(QUESTION, thinking=each)._generation._request for each in (None, True, False)}
        texts = {each: model.detokenize(request.prompt) for each, request in asked.items()}
        assert texts[None] == texts[True]
        assert texts[False] == texts[True] + SKIPPED
        assert model.chat(QUESTION, max_tokens=2, variables={"enable_thinking": False}).repro.thought == "skipped"
        watch.reset()
        for wrong in (
            {"thinking": 1},
            {"thinking": True, "variables": {"enable_thinking": True}},
            {"thinking_tokens": -1},
        ):
            with pytest.raises(ValueError, match="thinking"):
                model.chat(QUESTION, **wrong)
        assert watch.calls == []


@the_templates_switch_is_driven.broken_by
def a_switch_that_is_not_driven(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Prompts, "_switched", lambda self, thinking, messages, variables: (messages, variables))


@promise
def a_conversation_remembers_thoughts_and_tells_them_as_its_template_wants(case: Case) -> None:
    model, watch = thinker(case)
    with model:
        says(model, watch, model.tokenizer.encode(THINKING.whole(THOUGHT, ANSWER), bos=False))
        chat = model.chat(max_tokens=200)
        first = chat.send(str(QUESTION[0]["content"]))
        assert chat.messages[-1] == {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
        path = case.folder / f"{case.engine}.thought"
        chat.save(path)
        fork, resumed = chat.fork(), model.resume(path)
        assert resumed.messages == chat.messages
        watch.reset()
        second = chat.send("Why?", max_tokens=3)
        assert THINKING.whole(THOUGHT, ANSWER) in model.detokenize(second.repro.prompt_ids)
        assert second.usage.cached_tokens >= first.usage.prompt_tokens + len(first.token_ids) - 1
        assert sum(map(len, watch.calls)) < second.usage.prompt_tokens // 2
        for other in (fork, resumed):
            assert other.send("Why?", max_tokens=3).token_ids == second.token_ids
        chat.undo(2)
        assert chat.messages == []


@a_conversation_remembers_thoughts_and_tells_them_as_its_template_wants.broken_by
def a_conversation_that_forgets_thoughts(patch: pytest.MonkeyPatch) -> None:
    real = Conversation._turn

    def turn(self: Conversation, said: Any, prompt: Any, result: Any) -> Any:
        made = real(self, said, prompt, result)
        for message in made.messages:
            message.pop("reasoning_content", None)
        return made

    patch.setattr(Conversation, "_turn", turn)


@a_conversation_remembers_thoughts_and_tells_them_as_its_template_wants.broken_by
def a_template_that_is_not_told_of_thoughts(patch: pytest.MonkeyPatch) -> None:
    def thought(message: dict[str, Any], place: str, thinking: Thinking) -> dict[str, Any]:
        return {key: value for key, value in message.items() if key != "reasoning_content"}

    patch.setattr(history, "_thought", thought)


@promise
def a_cancel_in_a_thought_frees_the_model(case: Case) -> None:
    model, watch = thinker(case)
    with model:
        says(model, watch, model.tokenizer.encode(THINKING.whole(THOUGHT, ANSWER), bos=False))
        with model.stream_chat(QUESTION) as stream:
            first = next(stream)
            stream.cancel()
            rest = case.ends(lambda: list(stream))
        result = stream.result
        assert (result.text, result.finish_reason) == ("", "cancelled")
        assert first.reasoning
        assert result.reasoning == "".join(piece.reasoning for piece in (first, *rest))
        assert THOUGHT.startswith(result.reasoning)
        assert len(result.token_ids) < len(model.tokenizer.encode(THOUGHT, bos=False))
        assert model.chat(QUESTION).text == ANSWER


@a_cancel_in_a_thought_frees_the_model.broken_by
def a_cancel_that_waits_for_the_answer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Generation, "cancel", lambda self: None)
    patch.setattr(edgepack.model.Desk, "cancel", lambda self, turn: None)
