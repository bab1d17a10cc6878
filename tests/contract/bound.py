"""Answers that are bound to a form, tool calls, and how likely the model found what it said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from contract.case import Case, Watched, chunks_of, facts
from contract.registry import promise
from contract.text import PROMPTS, QUESTION
from edgepack.decoding import logprobs
from edgepack.decoding.logprobs import Alternative
from edgepack.decoding.sample import Sampler
from edgepack.errors import SchemaError, ToolCallError
from edgepack.model import Model
from edgepack.structured import constrain
from edgepack.structured.constrain import Constraint
from edgepack.text.tools import Tools

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "count": {"type": "integer"},
        "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 4},
    },
    "required": ["name", "count", "colours"],
    "additionalProperties": False,
}
REGEX = r"(red|green) apples: [0-9]{2,9}(é|🚀|東京){1,3}\."
LARK = 'start: "I see " NUMBER " " thing ("." | "!")\nthing: "apple" | "apples"\nNUMBER: /[1-9][0-9]{0,9}/'
FORMS: dict[str, tuple[dict[str, Any], Callable[[str], object]]] = {
    "json_schema": (
        {"json_schema": SCHEMA},
        lambda text: Draft202012Validator(SCHEMA).is_valid(json.loads(text)),
    ),
    "regex": ({"regex": REGEX}, lambda text: re.fullmatch(REGEX, text)),
    "grammar": ({"grammar": LARK}, lambda text: re.fullmatch(r"I see [1-9][0-9]{0,9} apples?[.!]", text)),
}


def fits(text: str, form: str) -> bool:
    """Return whether a text has the form that was asked for."""
    try:
        return bool(FORMS[form][1](text))
    except ValueError:
        return False


def least(model: Model, options: dict[str, Any]) -> int:
    """Return the fewest tokens that an answer of this form has, by what the refusal of one token says."""
    with pytest.raises(SchemaError, match="max_tokens=") as caught:
        model.generate(PROMPTS[0], max_tokens=1, **options)
    found = re.search(r"max_tokens=(\d+)", str(caught.value.hint))
    assert found
    return int(found[1])


@promise
def a_bound_answer_has_its_form_however_it_ends(case: Case) -> None:
    reasons = set()
    for form, (options, _) in FORMS.items():
        fewest = least(case.model, options)
        assert case.watch.calls == []
        for limit, more in (
            (fewest, {}),
            (fewest + 1, {"prompt_lookup": True}),
            (fewest + 5, {"temperature": 3, "seed": 2}),
            (fewest + 20, {}),
        ):
            asked: dict[str, Any] = {"max_tokens": limit, **options, **more}
            pieces, result = chunks_of(case.model, PROMPTS[0], **asked)
            assert fits(result.text, form), (form, limit, result.text)
            assert "".join(piece.text for piece in pieces) == result.text
            assert result.usage.completion_tokens <= limit
            reasons.add(result.finish_reason)
            case.same((form, limit, str(more)), facts(result))
        case.watch.reset()
    assert reasons == {"stop", "length"}


@a_bound_answer_has_its_form_however_it_ends.broken_by
def a_mask_that_is_ignored(patch: pytest.MonkeyPatch) -> None:
    real = Sampler.__call__
    patch.setattr(Sampler, "__call__", lambda self, logits, allowed=None: real(self, logits))
    patch.setattr(Constraint, "accept", lambda self, token: None)


@a_bound_answer_has_its_form_however_it_ends.broken_by
def an_answer_that_is_cut_where_its_length_ends(patch: pytest.MonkeyPatch) -> None:
    real = Constraint.closing

    def closing(self: Constraint, token: int, left: int) -> None:
        real(self, token, 10**6)

    patch.setattr(Constraint, "closing", closing)


@a_bound_answer_has_its_form_however_it_ends.broken_by
def a_closing_that_is_not_what_was_asked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constrain, "to_lark", lambda kind, value, *how: 'start: "{" /[a-z]{0,40}/ "}"')


@promise
def an_invalid_form_is_refused_before_anything_is_evaluated(case: Case) -> None:
    wrong: list[dict[str, Any]] = [
        {"json_schema": {"type": "no type"}},
        {"json_schema": {"$ref": "https://example.com/schema.json"}},
        {"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}},
        {"json_schema": "not json"},
        {"regex": "(unclosed"},
        {"grammar": "start: missing_rule"},
        {"regex": "a", "grammar": 'start: "a"'},
        {"regex": "a", "stop": "a"},
        {"regex": "[0-9]{90}", "max_tokens": 3},
    ]
    for index, options in enumerate(wrong):
        with pytest.raises(ValueError, match=r"\.") as caught:
            case.model.generate(PROMPTS[0], **options)
        case.same(("form", index), str(caught.value))
        with pytest.raises(type(caught.value)):
            case.runs(case.model.agenerate(PROMPTS[0], **options))
    assert case.watch.calls == []
    assert case.model.generate(PROMPTS[0], max_tokens=2).token_ids


@an_invalid_form_is_refused_before_anything_is_evaluated.broken_by
def an_invalid_schema_that_binds_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constrain, "compile_grammar", lambda *arguments, **options: None)


@an_invalid_form_is_refused_before_anything_is_evaluated.broken_by
def a_refusal_in_the_middle(patch: pytest.MonkeyPatch) -> None:
    real = Model._grammar

    def grammar(self: Model, options: Any) -> Any:
        self._desk.owner.call(lambda: self._desk.seat.forward([1]))
        return real(self, options)

    patch.setattr(Model, "_grammar", grammar)


# Tools

TEMPLATE = """
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- for tool in tools or [] %}{{ tool | tojson }}
<tool_call>
{"name": "...", "arguments": {}}
</tool_call>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def weather(city: str, days: int = 1) -> str:
    """Say what the weather will be.

    Args:
        city: Where.
        days: How many days.
    """
    return f"{city}: sun for {days} days"


def says(model: Model, watch: Watched, text: str) -> None:
    """Let the model answer ``QUESTION`` with a text."""
    prompt = model.stream_chat(QUESTION, tools=[weather])._generation._request.prompt
    watch.says(len(prompt), [*model.tokenizer.encode(text, bos=False), model.manifest.stops[0].id])


@promise
def a_tool_call_is_parsed_and_its_arguments_are_valid(case: Case) -> None:
    with pytest.raises(SchemaError, match="template") as refused:
        case.model.chat(QUESTION, tools=[weather])
    case.same("no tools", str(refused.value))
    assert case.watch.calls == []
    model, watch = case.talker(TEMPLATE)
    with model:
        says(
            model,
            watch,
            'Look: <tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>',
        )
        result = model.chat(QUESTION, tools=[weather])
        assert len(result.tool_calls) == 1
        call = result.tool_calls[0]
        assert (call.name, call.arguments) == ("weather", {"city": "Rome", "days": 2})
        assert weather(**call.arguments) == "Rome: sun for 2 days"
        assert (result.text, result.finish_reason) == ("Look:", "stop")
        assert json.loads(json.dumps(result.to_dict()))["tool_calls"][0]["arguments"] == call.arguments
        says(model, watch, "No tool is needed.")
        plain = model.chat(QUESTION, tools=[weather])
        assert (plain.text, plain.tool_calls) == ("No tool is needed.", ())
        for wrong in ('{"name": "wether", "arguments": {}}', '{"name": "weather", "arguments": {"days": "x"}}', "{"):
            says(model, watch, f"<tool_call>{wrong}</tool_call>")
            with pytest.raises(ToolCallError):
                model.chat(QUESTION, tools=[weather])
        assert model.generate(PROMPTS[0], max_tokens=2).text
        case.same("tools", facts(result))


@a_tool_call_is_parsed_and_its_arguments_are_valid.broken_by
def a_call_that_stays_in_the_text(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tools, "parse", lambda self, text, *rest: (text, ()))


@a_tool_call_is_parsed_and_its_arguments_are_valid.broken_by
def arguments_that_are_not_validated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("edgepack.text.tools._fault", lambda validator, arguments: None)


@a_tool_call_is_parsed_and_its_arguments_are_valid.broken_by
def tools_that_a_template_leaves_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("edgepack.model.read_tools", lambda options, source: None)


# Logprobs


def own_logprobs(model: Model, ids: Sequence[int]) -> NDArray[np.float64]:
    """Return the logprobs of all tokens after each of these, from the logits: float64 [n, n_vocab]."""
    logits = model.logits(ids).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


@promise
def logprobs_are_the_models_own(case: Case) -> None:
    model = case.model
    start = len(model.tokenize(PROMPTS[1]))
    settings: tuple[dict[str, Any], ...] = ({}, {"temperature": 4, "seed": 3, "repetition_penalty": 1.2})
    for sampling in settings:
        pieces, result = chunks_of(model, PROMPTS[1], max_tokens=10, logprobs=True, n_best=3, **sampling)
        ids = [*model.tokenize(PROMPTS[1]), *result.token_ids]
        own = own_logprobs(model, ids)[start - 1 : -1]
        told = result.logprobs or ()
        assert [each.token_id for each in told] == list(result.token_ids)
        np.testing.assert_allclose([each.logprob for each in told], own[range(len(told)), ids[start:]], atol=2e-4)
        for each, row in zip(told, own, strict=True):
            values = [alternative.logprob for alternative in each.best]
            assert values == sorted(values, reverse=True)
            np.testing.assert_allclose(values, np.sort(row)[::-1][:3], atol=2e-4)
            assert each.best[0].token_id == int(row.argmax())
            assert sampling or each.best[0] == Alternative(each.token_id, each.text, each.logprob)
        for piece in pieces:
            assert [each.token_id for each in piece.logprobs or ()] == list(piece.token_ids)
        case.same(("logprobs", str(sampling)), [[each.token_id for each in one.best] for one in told])
        assert model.generate(PROMPTS[1], max_tokens=10, **sampling).text == result.text
    text = PROMPTS[1] + model.generate(PROMPTS[1], max_tokens=4).text
    score = model.score(text)
    ids = model.tokenize(text)
    assert score.log_likelihood == pytest.approx(own_logprobs(model, ids)[range(len(ids) - 1), ids[1:]].sum(), abs=1e-3)


@logprobs_are_the_models_own.broken_by
def logprobs_of_other_logits(patch: pytest.MonkeyPatch) -> None:
    real = logprobs.token_logprob
    patch.setattr(logprobs, "token_logprob", lambda logits, *more: real(logits / 2, *more))


@logprobs_are_the_models_own.broken_by
def alternatives_in_another_order(patch: pytest.MonkeyPatch) -> None:
    real = logprobs._likeliest

    def likeliest(logits: Any, count: int) -> Sequence[int]:
        return real(logits, count)[::-1]

    patch.setattr(logprobs, "_likeliest", likeliest)
