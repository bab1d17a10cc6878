"""Where a text ends, and what it cost: stops that neither leak nor eat, the right reason, honest counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from endings import cut

from contract.case import LONG, Case, chunks_of, facts
from contract.registry import promise
from contract.text import PROMPTS
from edgepack.decoding import generation
from edgepack.decoding.generation import Generation, Request
from edgepack.decoding.results import Result, Usage
from edgepack.text.stop import StopMatcher


def changed_requests(patch: pytest.MonkeyPatch, change: Any) -> None:
    """Let a generation do something else than what was asked for."""
    real = Generation.__init__

    def init(self: Generation, tokenizer: Any, request: Request) -> None:
        real(self, tokenizer, change(request))

    patch.setattr(Generation, "__init__", init)


@promise
def a_stop_token_ends_the_text_and_is_counted(case: Case) -> None:
    model = case.model
    assert model.manifest.stops
    for index, stop in enumerate(model.manifest.stops):
        prompt = PROMPTS[index % len(PROMPTS)]
        said = model.tokenizer.encode(" A text.", bos=False)
        case.watch.says(len(model.tokenize(prompt)), [*said, stop.id])
        result = model.generate(prompt)
        assert (result.text, result.finish_reason, result.stop) == (" A text.", "stop", stop.id)
        assert result.token_ids == tuple(said)
        assert result.usage.completion_tokens == len(said) + 1


@a_stop_token_ends_the_text_and_is_counted.broken_by
def a_stop_token_that_is_not_known(patch: pytest.MonkeyPatch) -> None:
    changed_requests(patch, lambda request: replace(request, stop_ids=frozenset(sorted(request.stop_ids)[:1])))


@a_stop_token_ends_the_text_and_is_counted.broken_by
def a_stop_token_that_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    miscounted(patch, lambda counts: counts | {"completion_tokens": counts["completion_tokens"] - 1})


@promise
def a_stop_string_neither_leaks_nor_eats(case: Case) -> None:
    text = case.model.generate(PROMPTS[1], max_tokens=24).text
    assert text.count("so") == 2
    assert len(text) > 30
    for stops in (
        [text[9:13]],
        [text[10:30], text[12:15]],  # the second is complete first
        [text[12:15], text[10:15], text[14]],  # all complete at once: the longest
        [text[3:12] + "\0", text[-3:] + "\0"],  # both begin, neither comes
        ["so that", "\0"],  # begins twice, comes once
        [text],
    ):
        pieces, result = chunks_of(case.model, PROMPTS[1], max_tokens=24, stop=stops)
        shown, stop = cut(text, stops)
        assert "".join(piece.text for piece in pieces) == result.text == shown
        assert [token for piece in pieces for token in piece.token_ids] == list(result.token_ids)
        if stop is not None:
            assert (result.finish_reason, result.stop) == ("stop", stop)
            assert case.model.detokenize(result.token_ids).startswith(shown + stop)
        case.same(("stops", *stops), facts(result))


@a_stop_string_neither_leaks_nor_eats.broken_by
def a_matcher_that_shows_what_it_should_hold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StopMatcher, "_open", lambda self, text: 0)


@a_stop_string_neither_leaks_nor_eats.broken_by
def a_matcher_that_keeps_what_it_held(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StopMatcher, "finish", lambda self: "")


@a_stop_string_neither_leaks_nor_eats.broken_by
def a_matcher_that_knows_one_stop_only(patch: pytest.MonkeyPatch) -> None:
    real = StopMatcher.__init__
    patch.setattr(StopMatcher, "__init__", lambda self, stops: real(self, stops[:1]))


@promise
def every_end_has_its_reason(case: Case) -> None:
    model, watch = case.open(context=32)
    assert model.generate(PROMPTS[0]).finish_reason == "stop"
    assert model.generate(PROMPTS[1], stop="so").finish_reason == "stop"
    assert model.generate(PROMPTS[1], max_tokens=3).finish_reason == "length"
    watch.muted = [stop.id for stop in model.manifest.stops]
    full = model.generate(PROMPTS[1])
    # The last token needs no room in the cache.
    assert (full.finish_reason, full.usage.prompt_tokens + full.usage.completion_tokens) == ("length", 33)
    with model.stream(PROMPTS[1]) as stream:
        next(stream)
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.stop is full.stop is None


@every_end_has_its_reason.broken_by
def a_limit_that_is_called_a_stop(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generation, "Result", lambda **fields: Result(**fields | {"finish_reason": "stop"}))


# Counts


@promise
def usage_counts_what_was_read_and_written(case: Case) -> None:
    model = case.model
    for prompt in (*PROMPTS, LONG):
        result = model.generate(prompt, max_tokens=6)
        usage = result.usage
        assert usage.prompt_tokens == len(model.tokenize(prompt))
        assert usage.completion_tokens == len(result.token_ids) + isinstance(result.stop, int)
        assert usage.truncated_tokens == usage.drafted_tokens == usage.accepted_tokens == 0
    case.watch.reset()
    again = model.generate(LONG, max_tokens=1)
    assert sum(map(len, case.watch.calls)) == again.usage.prompt_tokens - again.usage.cached_tokens
    case.same("usage", again.usage.to_dict())


def miscounted(patch: pytest.MonkeyPatch, change: Any) -> None:
    """Let a result count something else."""
    patch.setattr(generation, "Usage", lambda **counts: Usage(**change(counts)))


@usage_counts_what_was_read_and_written.broken_by
def usage_that_does_not_know_of_the_cache(patch: pytest.MonkeyPatch) -> None:
    miscounted(patch, lambda counts: counts | {"cached_tokens": 0})


@usage_counts_what_was_read_and_written.broken_by
def usage_that_leaves_out_what_was_cached(patch: pytest.MonkeyPatch) -> None:
    miscounted(patch, lambda counts: counts | {"prompt_tokens": counts["prompt_tokens"] - counts["cached_tokens"]})


@promise
def an_output_limit_does_not_count_the_prompt(case: Case) -> None:
    case.watch.muted = [stop.id for stop in case.model.manifest.stops]
    for prompt in (PROMPTS[0], LONG):
        for limit in (1, 5):
            result = case.model.generate(prompt, max_tokens=limit)
            assert (result.usage.completion_tokens, len(result.token_ids)) == (limit, limit)
            assert result.finish_reason == "length"


@an_output_limit_does_not_count_the_prompt.broken_by
def a_limit_for_the_prompt_and_the_answer(patch: pytest.MonkeyPatch) -> None:
    changed_requests(patch, lambda request: replace(request, limit=max(1, request.limit - len(request.prompt))))
