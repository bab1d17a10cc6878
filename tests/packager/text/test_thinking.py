"""How a model thinks, found by rendering its template: each kind that there is, real ones among them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import make_llama
from pieces import tokenizer_of
from real_templates import all_templates, real_template

import edgepack
from edgepack.bundle.manifest import CHAT_THINKING, Chat, Date
from edgepack.bundle.thinking import Switch, Thinking
from edgepack.errors import ProofError, UsageError
from edgepack.text.divider import Divider
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.build import build
from edgepack_packager.prepare import prepare
from edgepack_packager.progress import Silent
from edgepack_packager.recipe import Recipe
from edgepack_packager.text import golden, thinking
from edgepack_packager.text.battery import DAY
from edgepack_packager.text.render import Rendered, battery

BYTES = tokenizer_of({}, {256: "<turn>", 257: "</turn>"})
ASKS = "{% if add_generation_prompt %}<turn>assistant\n"
AS_IT_IS = "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}</turn>\n{% endfor %}"
DROPS = AS_IT_IS.replace("m.content", "m.content.split('</think>')[-1].lstrip()")
FIELD = AS_IT_IS.replace(
    "{{ m.content", "{% if m.thinking and loop.last %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content"
)
ENABLE = Switch(variable="enable_thinking", on=True, off=False)
THINK = {"opening": "<think>", "closing": "</think>"}
WORDS = (
    "{% set ns = namespace(thinks=true) %}{% for m in messages %}{% if '/no_think' in m.content %}"
    "{% set ns.thinks = false %}{% endif %}{% endfor %}"
)

KINDS: dict[str, tuple[str, Thinking | None]] = {
    "none": (AS_IT_IS + ASKS + "{% endif %}", None),
    "a variable that changes no thought": (AS_IT_IS + "{{ enable_thinking }}" + ASKS + "{% endif %}", None),
    "the model opens it, an empty one is written": (
        AS_IT_IS + ASKS + "{% if enable_thinking is false %}<think>\n\n</think>\n{% endif %}{% endif %}",
        Thinking(**THINK, ending="\n</think>\n", skipped="<think>\n\n</think>\n", switch=ENABLE, field="content"),
    ),
    "the prompt opens it": (
        DROPS + ASKS + "<think>\n{% endif %}",
        Thinking(**THINK, ending="\n</think>\n\n", begun="<think>\n", field="content"),
    ),
    "the prompt opens it or writes an empty one, off by default": (
        DROPS + ASKS + "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}",
        Thinking(
            **THINK,
            ending="</think>",
            begun="<think>",
            skipped="</think>",
            default=False,
            switch=Switch(variable="thinking", on=True, off=False),
            field="content",
        ),
    ),
    "a word in the system message": (
        WORDS + DROPS + ASKS + "{{ '<think>\n' if ns.thinks else '<think></think>' }}{% endif %}",
        Thinking(
            **THINK,
            ending="\n</think>\n\n",
            begun="<think>\n",
            skipped="<think></think>",
            switch=Switch(on="/think", off="/no_think"),
            field="content",
        ),
    ),
    "left out of earlier answers": (
        DROPS + ASKS + "{% endif %}",
        Thinking(**THINK, ending="\n</think>\n\n", field="content"),
    ),
    "printed from a field": (
        FIELD + ASKS + "{% endif %}",
        Thinking(**THINK, ending="</think>", field="thinking"),
    ),
    "marks of its own": (
        AS_IT_IS + "{% if not thinking %}{% endif %}" + ASKS
        + "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}{% endif %}",
        Thinking(
            opening="<|channel>thought",
            closing="<channel|>",
            ending="<channel|>",
            skipped="<|channel>thought\n<channel|>",
            default=False,
            switch=ENABLE,
            field="content",
        ),
    ),
    "left out of earlier answers, from a channel that is named nowhere": (  # as Gemma 4's smaller models have it
        "{% if enable_thinking %}<turn>system\n<|think|></turn>\n{% endif %}"
        + AS_IT_IS.replace("m.content", "m.content.split('<|channel>')[0] + m.content.split('<channel|>')[-1]"
                           " if '<channel|>' in m.content else m.content")
        + ASKS + "{% endif %}",
        Thinking(
            opening="<|channel>thought",
            closing="<channel|>",
            ending="\n<channel|>\n\n",
            default=False,
            switch=ENABLE,
            field="content",
        ),
    ),
    "printed beside calls, an empty one for a model that is not to think": (  # as Gemma 4's larger models have it
        "{% if enable_thinking %}<turn>system\n<|think|></turn>\n{% endif %}"
        "{% for m in messages %}<turn>{{ m.role }}\n"
        "{% if m.tool_calls and m.reasoning_content %}"
        "<|channel>thought\n{{ m.reasoning_content }}\n<channel|>{% endif %}"
        "{% for c in m.tool_calls or [] %}<|tool_call>call:{{ c.function.name }}{}<tool_call|>{% endfor %}"
        "{{ m.content.split('<channel|>')[-1] }}</turn>\n{% endfor %}"
        + ASKS + "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}{% endif %}",
        Thinking(
            opening="<|channel>thought",
            closing="<channel|>",
            ending="<channel|>",
            skipped="<|channel>thought\n<channel|>",
            default=False,
            switch=ENABLE,
            field="reasoning_content",
        ),
    ),
    "left out of all but the last answer": (  # as LFM2.5 has it
        AS_IT_IS.replace(
            "m.content",
            "m.content.split('</think>')[-1].lstrip() if loop.index0 + 3 < messages | length else m.content",
        )
        + ASKS + "{% endif %}",
        Thinking(**THINK, ending="\n</think>\n\n", field="content"),
    ),
    "the model is told of it": (  # as Phi-4-reasoning and OpenThinker have it, each with its marks
        "<turn>system\nWrite <|begin_of_thought|> {thought} <|end_of_thought|> first.</turn>\n" + AS_IT_IS + ASKS
        + "{% endif %}",
        Thinking(
            opening="<|begin_of_thought|>",
            closing="<|end_of_thought|>",
            ending="\n<|end_of_thought|>\n\n",
            field="content",
        ),
    ),
    "the model is told of it where the template is told so": (  # as Hermes 4 and Granite 3.3 have it
        "{% if thinking %}<turn>system\nThink inside <think> </think> tags.</turn>\n{% endif %}" + AS_IT_IS + ASKS
        + "{% endif %}",
        Thinking(
            **THINK,
            ending="\n</think>\n\n",
            default=False,
            switch=Switch(variable="thinking", on=True, off=False),
            field="content",
        ),
    ),
    "a switch, and no marks anywhere": (  # as Cogito has it
        "{% if enable_thinking %}<turn>system\nEnable deep thinking subroutine.</turn>\n{% endif %}" + AS_IT_IS + ASKS
        + "{% endif %}",
        Thinking(**THINK, ending="\n</think>\n\n", default=False, switch=ENABLE, field="content"),
    ),
    "a switch, and a mark that nobody knows": (
        AS_IT_IS + ASKS + "{{ '{thoughts}' if enable_thinking else '{answer}' }}{% endif %}",
        None,
    ),
    "an empty one before each earlier answer, what was thought beside calls": (  # as Kimi K2 has it
        "{% for m in messages %}<turn>{{ m.role }}\n{% if m.role == 'assistant' %}<think>{% if m.tool_calls %}"
        "{{ m.reasoning_content }}{% endif %}</think>{% endif %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}</turn>\n{% endfor %}"
        + ASKS + "{% endif %}",
        Thinking(**THINK, ending="\n</think>\n\n", field="reasoning_content"),
    ),
    "words that begin it and words that end it": (  # as Apriel has it
        "<turn>system\nAnswer after [BEGIN FINAL RESPONSE].</turn>\n" + AS_IT_IS + ASKS
        + "Here are my reasoning steps:\n{% endif %}",
        Thinking(
            opening="Here are my reasoning steps:",
            closing="[BEGIN FINAL RESPONSE]",
            ending="\n[BEGIN FINAL RESPONSE]\n\n",
            begun="Here are my reasoning steps:\n",
            field="content",
        ),
    ),
    "parts of a content": (  # as Ministral has it: its system prompt speaks of the marks
        "{% set told = '[THINK]Your thoughts[/THINK]Your answer.' %}<turn>system\n{{ told }}</turn>\n"
        "{% for m in messages %}<turn>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{% if p.type == 'thinking' %}[THINK]{{ p.thinking }}[/THINK]{% else %}{{ p.text }}"
        "{% endif %}{% endfor %}{% endif %}</turn>\n{% endfor %}" + ASKS + "{% endif %}",
        Thinking(opening="[THINK]", closing="[/THINK]", ending="\n[/THINK]\n\n", field="content"),
    ),
}  # fmt: skip


def rendered(source: str) -> Rendered:
    return battery(source, "", "</turn>", DAY)


def chat_of(source: str, tokenizer: Tokenizer = BYTES, thinks: bool = False) -> Chat:
    return golden.chat(rendered(source), None, tokenizer, None, Date(policy="pinned", day=DAY), thinks)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_and_recorded(kind: str) -> None:
    source, wanted = KINDS[kind]
    chat = chat_of(source)
    assert chat.thinking == wanted
    assert (CHAT_THINKING in chat.features) == (wanted is not None)
    if wanted is None:
        return
    goldens = {each.name: each for each in chat.goldens}
    named = ("thinking", "no thinking") if wanted.switch == ENABLE else ("thinking on", "thinking off")
    if wanted.switch is not None:
        on, off = (goldens[name].text for name in named)
        assert on.endswith(wanted.begun)
        assert off.endswith(wanted.skipped)
    prompt = goldens["several turns"].text
    assert prompt.endswith(wanted.begun if wanted.default else wanted.skipped)
    assert "an earlier thought" in goldens


def test_a_thought_may_be_declared_of_a_model_whose_template_does_not_speak_of_it() -> None:
    source, _ = KINDS["none"]
    declared = chat_of(source, thinks=True)
    assert declared.thinking == thinking.UNSAID
    assert {each.name for each in declared.goldens} == {each.name for each in chat_of(source).goldens}
    written, found = KINDS["the prompt opens it"]
    assert chat_of(written, thinks=True).thinking == found
    with pytest.raises(UsageError, match="--thinks was given beside --no-chat"):
        Recipe(("gguf",), ("f32",), no_chat=True, thinks=True)


@pytest.mark.parametrize(
    ("name", "thinks"),
    [
        ("microsoft/Phi-4-mini-reasoning", True),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", True),
        ("my_thinker", True),
        ("Qwen/Qwen3-4B-Instruct-2507", False),
        ("org/model-non-thinking", False),
        ("org/Unreasonable-R100", False),
    ],
)
def test_a_name_that_speaks_of_thoughts_is_pointed_out_where_the_template_does_not(
    name: str, thinks: bool, tmp_path: Path
) -> None:
    assert bool(thinking.doubt(name)) is thinks
    source = make_llama(tmp_path / name.rpartition("/")[2])
    said: list[str] = []

    class Heard(Silent):
        def warn(self, sentence: str) -> None:
            said.append(sentence)

    recipe = Recipe(("gguf",), ("f32",), unproven=True)
    for template, wanted in ((KINDS["none"][0], thinks), (QWEN_LIKE, False)):
        (source / "chat_template.jinja").write_text(template)
        said.clear()
        prepare(str(source), recipe, tmp_path / "out", Heard())
        assert any("--thinks" in each for each in said) is wanted
    prepare(str(source), replace(recipe, no_chat=True), tmp_path / "out", Heard())
    assert not any("--thinks" in each for each in said)


def test_a_thought_that_cannot_be_told_from_its_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source, known = KINDS["the prompt opens it"]
    real = Tokenizer.encode

    def without_marks(self: Tokenizer, text: str, **options: Any) -> list[int]:
        return real(self, text.replace("</think>", "</thin>"), **options)

    assert known is not None
    thinking.prove(known, BYTES, "chat_template.jinja")
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode", without_marks)
        with pytest.raises(ProofError, match=r"chat_template\.jinja: the thought"):
            thinking.prove(known, BYTES, "chat_template.jinja")
    with monkeypatch.context() as patch:
        patch.setattr(Divider, "finish", lambda self: ("", "!"))
        with pytest.raises(ProofError, match="is read as"):
            chat_of(source)


QWEN3 = Thinking(
    **THINK,
    ending="\n</think>\n\n",
    skipped="<think>\n\n</think>\n\n",
    switch=ENABLE,
    field="reasoning_content",
)
REAL: dict[str, Thinking | None] = {
    "Qwen3": QWEN3,
    "data/qwen3": QWEN3,  # of a later release
    "Llama-3.2": None,
    "Phi-3.5-mini": None,
    "Phi-4-mini": None,
    "gemma-2-it": None,
    "gemma-3-it": None,
    "Qwen2.5": None,
    "data/phi-4-mini-reasoning": None,  # which thinks, and whose template does not say so: --thinks
    "ByteDance-Seed/Seed-OSS-36B-Instruct": None,  # of an older template, with no marks in it
}


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_a_real_template_says_how_its_model_thinks(name: str, shared: Path) -> None:
    found = all_templates(shared / "chat-templates")
    source = found[name] if name in found else real_template(name, shared / "chat-templates")
    assert rendered(source).thinking == REAL[name]


@pytest.mark.shared
def test_templates_of_before_there_were_thoughts_speak_of_none(shared: Path) -> None:
    thinkers = {
        name
        for name, source in all_templates(shared / "chat-templates").items()
        if "additional_special_tokens" not in source and rendered(source).thinking is not None
    }
    assert thinkers == {"Qwen3", "data/qwen3"}


@pytest.mark.shared
def test_a_real_tokenizer_keeps_thoughts_apart(shared: Path) -> None:
    tokenizer = Tokenizer.from_json((shared / "tokenizers/qwen3/tokenizer.json").read_bytes(), None, False)
    found = rendered(real_template("Qwen3", shared / "chat-templates")).thinking
    assert found is not None
    thinking.prove(found, tokenizer, "chat_template.jinja")
    assert tokenizer.encode(found.ending, bos=False, special=True) == tokenizer.encode("\n</think>\n\n", bos=False)
    for name in ("llama-3.2", "phi-3.5-mini", "smollm2"):  # of models that are distilled with these marks
        other = Tokenizer.from_json((shared / f"tokenizers/{name}/tokenizer.json").read_bytes(), None, False)
        thinking.prove(thinking.UNSAID, other, "chat_template.jinja")


QWEN_LIKE = """\
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1].lstrip() + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}
{{- '<think>\n\n</think>\n\n' }}
{%- endif %}
{%- endif %}
"""


def test_a_bundle_says_how_its_model_thinks_and_the_sdk_follows(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "model")
    (source / "chat_template.jinja").write_text(QWEN_LIKE)
    built = build(str(source), Recipe(("gguf",), ("f32",), unproven=True), tmp_path / "out")
    assert CHAT_THINKING in built.manifest.schema.features
    asked: dict[str, Any] = {
        "temperature": 5,
        "seed": 3,
        "max_tokens": 40,
    }  # of a random model, which thinks of anything
    with edgepack.load(built.path) as model:
        chat = model.manifest.chat
        assert chat is not None
        assert chat.thinking is not None
        assert (chat.thinking.switch, chat.thinking.field) == (ENABLE, "content")
        assert model.manifest.generation.max_tokens == 2048
        hi = [{"role": "user", "content": "Hi"}]
        begun = [*hi, {"role": "assistant", "content": "<think>\nWell"}]
        result = model.chat(begun, continue_final=True, thinking_tokens=6, regex="[a-z]{4}", **asked)
        assert result.reasoning is not None
        assert re.fullmatch("[a-z]{4}", result.text)
        again = model._repeat(result.repro, result.sampling)
        assert (again.token_ids, again.reasoning) == (result.token_ids, result.reasoning)
        words = model.detokenize(model.chat(hi, thinking=False, **asked).repro.prompt_ids)
        assert words.endswith("assistant\n<think>\n\n</think>\n\n")
    declared = build(
        str(make_llama(tmp_path / "plain")), Recipe(("gguf",), ("f32",), unproven=True, thinks=True), tmp_path / "said"
    )
    assert declared.manifest.chat is not None
    assert declared.manifest.chat.thinking == thinking.UNSAID
    assert declared.manifest.producer.recipe["thinks"] == 1
