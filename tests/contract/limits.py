"""A prompt that is too long: refused by default, shortened on request, never in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from contract.case import Case, Logits
from contract.ends import changed_requests, miscounted
from contract.registry import promise
from edgepack.decoding.seat import Asking
from edgepack.decoding.steps import Steps
from edgepack.errors import PromptTooLongError, UsageError
from edgepack.text import prompts
from edgepack.text.prompts import Prompt, Prompts

CONTEXT = 48
STORY = "First there was a red apple. " + "Then there was a green one. " * 8 + "At last the child ate it."
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Then there was a green apple."},
    {"role": "assistant", "content": "I see the green apple, thank you."},
    {"role": "user", "content": "Then there was a red one."},
    {"role": "assistant", "content": "I see the red apple, thank you."},
    {"role": "user", "content": "How many apples?"},
]


@promise
def a_prompt_that_is_too_long_is_refused_before_anything_is_evaluated(case: Case) -> None:
    model, watch = case.open(CONTEXT)
    count = len(model.tokenize(STORY))
    for asked in (
        lambda: model.generate(STORY),
        lambda: model.stream(STORY),
        lambda: model.generate(STORY, on_overflow="error"),
        lambda: case.runs(model.agenerate(STORY)),
    ):
        with pytest.raises(PromptTooLongError) as caught:
            asked()
        assert f"{count} tokens" in caught.value.message
        assert f"{CONTEXT}" in caught.value.message
        assert f"context={count}" in str(caught.value.hint)
        assert "truncate_middle" in str(caught.value.hint)
        case.same("too long", str(caught.value))
    with pytest.raises(PromptTooLongError):
        model.chat(TALK)
    with pytest.raises(PromptTooLongError):
        model.chat(system="Be brief.").send(STORY)
    with pytest.raises(PromptTooLongError):
        model.logits(model.tokenize(STORY))
    assert watch.calls == []


@a_prompt_that_is_too_long_is_refused_before_anything_is_evaluated.broken_by
def a_truncation_in_silence(patch: pytest.MonkeyPatch) -> None:
    def checked(self: Prompts, prompt: Prompt) -> Prompt:
        return replace(prompt, ids=prompt.ids[-self._context // 2 :])

    patch.setattr(Prompts, "_checked", checked)


@a_prompt_that_is_too_long_is_refused_before_anything_is_evaluated.broken_by
def a_refusal_without_figures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Prompts, "_too_long", lambda *given: PromptTooLongError("The prompt is too long."))


@a_prompt_that_is_too_long_is_refused_before_anything_is_evaluated.broken_by
def a_refusal_by_the_engine_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Prompts, "_checked", lambda self, prompt: prompt)


@promise
def truncate_middle_keeps_both_ends_and_counts_the_rest(case: Case) -> None:
    model, watch = case.open(CONTEXT)
    ids = model.tokenize(STORY)
    result = model.generate(STORY, on_overflow="truncate_middle", max_tokens=4)
    left = list(result.repro.prompt_ids)
    assert len(left) == result.usage.prompt_tokens == CONTEXT - 4
    assert result.usage.truncated_tokens == len(ids) - len(left)
    assert left[:8] == ids[:8]
    assert left[-8:] == ids[-8:]
    assert watch.held[: len(left)] == left
    case.same("truncated", (result.repro.prompt_ids, result.text, result.usage.to_dict()))
    short = model.generate("The apples", on_overflow="truncate_middle", max_tokens=4)
    assert short.usage.truncated_tokens == 0
    assert short.text == model.generate("The apples", max_tokens=4).text


@truncate_middle_keeps_both_ends_and_counts_the_rest.broken_by
def a_truncation_that_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    miscounted(patch, lambda counts: counts | {"truncated_tokens": 0})


@truncate_middle_keeps_both_ends_and_counts_the_rest.broken_by
def a_truncation_of_the_end(patch: pytest.MonkeyPatch) -> None:
    real = Prompts._checked

    def checked(self: Prompts, prompt: Prompt) -> Prompt:
        whole = self._tokenizer.encode(prompt.text)
        return real(self, replace(prompt, ids=whole[: len(prompt.ids)]))

    patch.setattr(Prompts, "_checked", checked)


@promise
def a_conversation_that_is_too_long_loses_its_oldest_turns(case: Case) -> None:
    model, _ = case.open(CONTEXT)
    whole = case.model.chat(TALK, max_tokens=1).usage.prompt_tokens
    assert whole > CONTEXT
    result = model.chat(TALK, on_overflow="truncate_middle", max_tokens=8)
    read = model.detokenize(result.repro.prompt_ids)
    assert [str(message["content"]) in read for message in TALK] == [True, False, False, False, False, True]
    assert result.usage.truncated_tokens == whole - result.usage.prompt_tokens > 0
    case.same("fewer turns", (result.text, result.usage.to_dict()))


@a_conversation_that_is_too_long_loses_its_oldest_turns.broken_by
def a_conversation_that_loses_its_system_prompt(patch: pytest.MonkeyPatch) -> None:
    real = Prompts.of_messages
    patch.setattr(Prompts, "of_messages", lambda self, messages, *more: real(self, messages[-1:], *more))


@promise
def a_rolling_context_goes_on_and_counts_what_it_forgets(case: Case) -> None:
    model, watch = case.open(CONTEXT)
    watch.muted = [stop.id for stop in model.manifest.stops]
    ids = model.tokenize("The apples")
    result = model.generate("The apples", on_overflow="rolling", max_tokens=2 * CONTEXT)
    assert (len(result.token_ids), result.finish_reason) == (2 * CONTEXT, "length")
    assert result.usage.prompt_tokens == len(ids)
    everything = [*ids, *result.token_ids[:-1]]
    assert result.usage.truncated_tokens == len(everything) - len(watch.held) > 0
    assert watch.held == everything[-len(watch.held) :]
    case.same("rolling", result.usage.to_dict())
    watch.reset()
    watch.muted = [stop.id for stop in model.manifest.stops]
    talk = [*TALK[:1], *TALK[-1:]]
    answer = model.chat(talk, on_overflow="rolling", max_tokens=CONTEXT)
    system = model.tokenizer.encode(str(TALK[0]["content"]), bos=False)
    assert len(answer.token_ids) == CONTEXT
    assert model.detokenize(watch.held).startswith("system\n" + model.detokenize(system))
    story = model.generate(STORY, on_overflow="rolling", max_tokens=4)
    whole = len(model.tokenize(STORY))
    assert story.usage.truncated_tokens == whole - story.usage.prompt_tokens > 0


@a_rolling_context_goes_on_and_counts_what_it_forgets.broken_by
def a_rolling_that_ends_at_the_context(patch: pytest.MonkeyPatch) -> None:
    changed_requests(
        patch, lambda request: replace(request, limit=min(request.limit, CONTEXT + 1 - len(request.prompt)))
    )


@a_rolling_context_goes_on_and_counts_what_it_forgets.broken_by
def a_rolling_that_forgets_the_newest(patch: pytest.MonkeyPatch) -> None:
    def roll(self: Steps, held: Sequence[int], tokens: Sequence[int]) -> Asking[Logits]:
        self._seat.rewind(CONTEXT // 2)
        self.rolled_off += CONTEXT // 2
        return (yield from self._evaluate(tokens))

    patch.setattr(Steps, "_roll", roll)


@a_rolling_context_goes_on_and_counts_what_it_forgets.broken_by
def a_rolling_that_forgets_the_system_prompt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prompts, "_kept", lambda ids, system, render: 0)


@promise
def a_policy_that_does_not_exist_is_refused(case: Case) -> None:
    for wrong in ("truncate", "", True, 3):
        with pytest.raises(UsageError, match="error, truncate_middle, rolling"):
            case.model.generate("The apples", on_overflow=wrong)  # type: ignore[arg-type]


@a_policy_that_does_not_exist_is_refused.broken_by
def a_policy_that_is_taken_for_the_default(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("edgepack.decoding.options.check_policy", lambda value: "error")
