"""What is said: the same text on every engine, from any cache, with any guesses, and in whole characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from endings import whole

from contract.case import LONG, Case, Logits, Watched, chunks_of, facts, holds_what_it_should
from contract.registry import promise
from edgepack.decoding import cache, generation, sample
from edgepack.decoding.generation import Generation
from edgepack.decoding.lookup import Lookup
from edgepack.decoding.pace import Pace
from edgepack.decoding.sample import Sampler, Sampling
from edgepack.decoding.seat import Asking
from edgepack.decoding.steps import Steps
from edgepack.text.detokenize import Detokenizer

PROMPTS = ("Once upon a time", "The apples", "One day a child asked")
QUESTION = [{"role": "user", "content": "How many apples?"}]
COPY = "red apples, green apples, red apples, green apples, red apples, green"


@promise
def greedy_text_is_the_same_on_every_engine(case: Case) -> None:
    for prompt in PROMPTS:
        result = case.model.generate(prompt, max_tokens=24)
        assert result.text
        case.same(("greedy", prompt), facts(result))
    case.same("greedy chat", facts(case.model.chat(QUESTION, max_tokens=24)))
    logits = case.model.logits(case.model.tokenize(PROMPTS[0]))
    case.same("greedy ids", logits.argmax(axis=1).tolist())


@greedy_text_is_the_same_on_every_engine.broken_by
def an_engine_that_returns_other_logits(patch: pytest.MonkeyPatch) -> None:
    real = Watched.forward

    def forward(self: Watched, tokens: Sequence[int]) -> Logits:
        logits = real(self, tokens)
        first, second = np.argsort(logits)[-2:]
        logits[[first, second]] = logits[[second, first]]
        return logits

    patch.setattr(Watched, "forward", forward)


@promise
def what_the_cache_held_before_does_not_change_a_text(case: Case) -> None:
    model = case.model
    first = model.generate(LONG, max_tokens=8, reuse="exact")
    for before in ("The apples. " + LONG, LONG[:40] + "The apples.", LONG):
        model.generate(before, max_tokens=2)
        again = model.generate(LONG, max_tokens=8, reuse="exact")
        assert (again.text, again.token_ids) == (first.text, first.token_ids)
        case.same(("from a cache", before), again.usage.to_dict())
    assert again.usage.cached_tokens > 0
    assert holds_what_it_should(model)


@what_the_cache_held_before_does_not_change_a_text.broken_by
def a_cache_that_does_not_compare_tokens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cache, "common_length", lambda held, prompt: min(len(held), len(prompt)))


@what_the_cache_held_before_does_not_change_a_text.broken_by
def a_cache_that_is_never_reused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cache, "common_length", lambda held, prompt: 0)


@promise
def prompt_lookup_changes_the_work_and_not_the_text(case: Case) -> None:
    model = case.model
    start = len(model.tokenize(COPY))
    said = model.tokenizer.encode(" apples, green apples, blue apples, green apples.", bos=False)
    settings: tuple[dict[str, Any], ...] = ({}, {"temperature": 1, "seed": 5})
    for sampling in settings:
        case.watch.says(start, said)
        plain = model.generate(COPY, max_tokens=len(said) + 4, **sampling)
        guessed = model.generate(COPY, max_tokens=len(said) + 4, prompt_lookup=True, **sampling)
        assert (guessed.text, guessed.token_ids) == (plain.text, plain.token_ids)
        assert (guessed.finish_reason, guessed.stop) == (plain.finish_reason, plain.stop)
        assert plain.usage.drafted_tokens == 0
        assert guessed.usage.drafted_tokens > guessed.usage.accepted_tokens > 0
        case.same(("lookup", str(sampling)), facts(guessed))
        assert holds_what_it_should(model)


@prompt_lookup_changes_the_work_and_not_the_text.broken_by
def guesses_that_are_believed(patch: pytest.MonkeyPatch) -> None:
    real = generation.Generation._choose

    def choose(self: Generation, logits: Logits) -> int | None:
        return self._steps._guessed[0][0] if self._steps._guessed else real(self, logits)

    patch.setattr(Generation, "_choose", choose)


@prompt_lookup_changes_the_work_and_not_the_text.broken_by
def wrong_guesses_that_stay_in_the_cache(patch: pytest.MonkeyPatch) -> None:
    def settle(self: Steps) -> Asking[None]:
        self._guessed.clear()
        self._guess = 0
        yield from ()

    patch.setattr(Steps, "settle", settle)


@prompt_lookup_changes_the_work_and_not_the_text.broken_by
def an_option_that_does_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lookup, "guess", lambda self, most: [])


@promise
def a_long_copy_takes_few_steps(case: Case) -> None:
    model, size = case.model, 64
    prompt = model.tokenizer.decode(range(300, 300 + size))  # nothing appears in it twice
    ids = model.tokenize(prompt)
    case.watch.says(len(ids), ids[-size:])
    plain = model.generate(prompt, max_tokens=size)
    case.watch.calls.clear()
    guessed = model.generate(prompt, max_tokens=size, prompt_lookup=True)
    assert guessed.token_ids == plain.token_ids == tuple(ids[-size:])
    # The prefill gives the first token, two more make an n-gram that was there before.
    assert [len(step) for step in case.watch.calls][-7:] == [1, 1, 4, 7, 16, 32, 2]
    assert guessed.usage.drafted_tokens == guessed.usage.accepted_tokens == 3 + 6 + 15 + 31 + 1


@a_long_copy_takes_few_steps.broken_by
def guesses_that_teach_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pace, "learn", lambda self, guessed, right: None)


@promise
def a_seed_decides_a_text_and_another_seed_another(case: Case) -> None:
    model = case.model
    shapes: list[dict[str, Any]] = [{"temperature": 1.5}, {"temperature": 3, "top_p": 0.95, "min_p": 0.001}]
    for shape in [*shapes, {"temperature": 2, "top_k": 50, "repetition_penalty": 1.3}]:
        texts = []
        for seed in (1, 2, 2**64 - 1):
            result = model.generate(PROMPTS[2], seed=seed, max_tokens=10, **shape)
            texts.append(result.token_ids)
            case.same(("seed", seed, str(shape)), facts(result))
        assert len(set(texts)) == 3
        assert model.generate(PROMPTS[2], seed=2, max_tokens=10, **shape).token_ids == texts[1]
    unasked = model.generate(PROMPTS[2], temperature=3, max_tokens=10)
    again = model.generate(PROMPTS[2], temperature=3, max_tokens=10, seed=unasked.sampling.seed)
    assert again.token_ids == unasked.token_ids
    assert model.generate(PROMPTS[2], temperature=3, max_tokens=10).token_ids != unasked.token_ids


@a_seed_decides_a_text_and_another_seed_another.broken_by
def a_sampler_that_ignores_the_seed(patch: pytest.MonkeyPatch) -> None:
    real = Sampler.__init__

    def init(self: Sampler, sampling: Sampling, prompt_ids: Any) -> None:
        real(self, sampling, prompt_ids)
        self._random = np.random.default_rng() if sampling.temperature else None

    patch.setattr(Sampler, "__init__", init)


@a_seed_decides_a_text_and_another_seed_another.broken_by
def a_seed_that_is_always_the_same(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sample.Sampling, "resolved", lambda self: replace(self, seed=7))


# Characters


@promise
def a_chunk_never_splits_a_character(case: Case) -> None:
    model, text = case.model, "né 🚀👩‍🚀 東京 £1"
    ids = model.tokenizer.encode(text, bos=False)
    case.watch.says(len(model.tokenize(PROMPTS[0])), [*ids, model.manifest.stops[0].id])
    pieces, result = chunks_of(model, PROMPTS[0])
    assert len(ids) > len(pieces) > 3
    assert "".join(piece.text for piece in pieces) == result.text == text
    assert not any("\ufffd" in piece.text for piece in pieces)
    case.same("characters", [(piece.text, piece.token_ids) for piece in pieces])


@a_chunk_never_splits_a_character.broken_by
def a_detokenizer_that_looks_at_one_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Detokenizer, "push", lambda self, token: self._tokenizer.token_bytes(token).decode(errors="replace"))


@promise
def an_answer_cut_inside_a_character_ends_before_it(case: Case) -> None:
    model, text = case.model, "né 🚀"
    ids, end = model.tokenizer.encode(text, bos=False), model.manifest.stops[0].id
    data = list(map(model.tokenizer.token_bytes, ids))
    cuts = [count for count in range(1, len(ids)) if "\ufffd" in b"".join(data[:count]).decode(errors="replace")]
    assert len(cuts) >= 3
    for count in cuts:
        shown = whole(b"".join(data[:count]))
        asks: list[tuple[list[int], dict[str, Any]]] = [(ids, {"max_tokens": count}), ([*ids[:count], end], {})]
        for said, options in asks:
            case.watch.says(len(model.tokenize(PROMPTS[0])), said)
            pieces, result = chunks_of(model, PROMPTS[0], n_best=1, **options)
            assert "".join(piece.text for piece in pieces) == result.text == shown
            assert [token for piece in pieces for token in piece.token_ids] == list(result.token_ids) == ids[:count]
            assert [each.token_id for each in result.logprobs or ()] == ids[:count]
            assert result.finish_reason == ("length" if options else "stop")
            again = model._repeat(result.repro, result.sampling)
            assert (again.text, again.token_ids) == (result.text, result.token_ids)
            case.same(("cut", count, result.finish_reason), facts(result))


@an_answer_cut_inside_a_character_ends_before_it.broken_by
def a_detokenizer_that_shows_halves(patch: pytest.MonkeyPatch) -> None:
    real = Detokenizer.push
    patch.setattr(Detokenizer, "push", lambda self, token: real(self, token) + "\ufffd" * self.unfinished)


@promise
def bytes_that_are_no_text_are_replaced_once(case: Case) -> None:
    for seed in range(3):
        options: dict[str, Any] = {"temperature": 100, "seed": seed, "max_tokens": 40}
        pieces, result = chunks_of(case.model, PROMPTS[0], **options)
        said = whole(b"".join(map(case.model.tokenizer.token_bytes, result.token_ids)))
        assert "".join(piece.text for piece in pieces) == result.text == said
        assert "\ufffd" in result.text
        result.text.encode()
        case.same(("bytes", seed), facts(result))


@bytes_that_are_no_text_are_replaced_once.broken_by
def a_detokenizer_that_drops_what_it_cannot_read(patch: pytest.MonkeyPatch) -> None:
    real = Detokenizer.push
    patch.setattr(Detokenizer, "push", lambda self, token: real(self, token).replace("\ufffd", ""))
