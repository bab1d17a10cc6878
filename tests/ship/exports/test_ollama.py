"""Ollama: a template in Go's language that writes what the bundle's own writes, or none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from exported_bundles import names, small

from edgepack.bundle.manifest import Golden
from edgepack.errors import EdgepackError
from edgepack.text.chat import ChatTemplate
from edgepack_ship.exports.export import export
from edgepack_ship.exports.go_template import literal, messages_of, rendered
from edgepack_ship.exports.ollama import quoted, regular
from edgepack_ship.exports.regular import form_of

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WITH_DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
IN_FRONT = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "[INST] {{ first if loop.first else '' }}{{ m.content | trim }} [/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<t>{{ m.role }}\n{{ m.content }}</t>\n{% endfor %}"
    "{% if add_generation_prompt %}<t>assistant\n{% endif %}"
)
ENDED = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}" + (
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
COUNTED = "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}"

ODD = ["{{ x }}", "a{", '"""', '"a"', "tab\tand\r\n", "}}", "\x00"]
GO = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type asked struct {
	Template, System string
	Messages         []*message
}

func main() {
	var all []asked
	if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil {
		panic(err)
	}
	var said []string
	for _, each := range all {
		var text strings.Builder
		found := template.Must(template.New("").Option("missingkey=zero").Parse(each.Template))
		if err := found.Execute(&text, map[string]any{"System": each.System, "Messages": each.Messages}); err != nil {
			panic(err)
		}
		said = append(said, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(said)
}
"""

USER = {"role": "user", "content": "  Hi\nthere "}
SYSTEM = {"role": "system", "content": 'Say "{{ .System }}".'}
CONVERSATIONS: list[list[dict[str, object]]] = [
    [USER],
    [SYSTEM, USER],
    [USER, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go on"}],
    [SYSTEM, USER, {"role": "assistant", "content": "No."}, {"role": "user", "content": "{{ end }}"}],
]


def _template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", date="2026-01-02")


def _goldens(source: str) -> list[Golden]:
    """What a template makes of the conversations, those that it refuses among them."""
    found = []
    for messages in CONVERSATIONS:
        try:
            found.append(Golden(name="", messages=messages, text=_template(source).render(messages).plain))
        except EdgepackError as error:
            found.append(Golden(name="", messages=messages, refusal=error.message))
    return found


@pytest.mark.parametrize("source", [CHATML, WITH_DEFAULT, ENDED], ids=["chatml", "with a default", "with an end"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_regular_template_is_written_as_it_is(source: str, conversation: list[dict[str, Any]]) -> None:
    found = regular(_template(source), _goldens(source))
    assert found is not None
    assert found[1:] == (4, [])
    assert rendered(found[0].template(), conversation) == _template(source).render(conversation).plain


def test_a_system_prompt_may_stand_in_the_first_message() -> None:
    found = regular(_template(IN_FRONT), _goldens(IN_FRONT), bos="<s>")
    assert found is not None
    form, compared, (white,) = found
    assert compared == 4
    assert white.startswith("White space around a message stays")
    written = form.without_bos("<s>").template()
    asked = [SYSTEM, {"role": "user", "content": "Hi"}]
    assert rendered(written, asked) == '[INST] Say "{{ .System }}".\n\nHi [/INST]'
    assert "<s>" in form.template()


def test_a_template_that_refuses_a_system_prompt_is_written_without() -> None:
    found = regular(_template(NO_SYSTEM), _goldens(NO_SYSTEM))
    assert found is not None
    assert found[2] == ["A system prompt is left out: the template has no form for one."]
    assert ".System" not in found[0].template()


def test_an_answer_that_is_last_is_left_open() -> None:
    form = form_of(_template(CHATML))
    assert form is not None
    begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    assert rendered(form.template(), begun) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHel"


def test_a_template_that_counts_its_messages_is_left_out() -> None:
    assert regular(_template(COUNTED), _goldens(COUNTED)) is None


WHITE = "White space around a message stays, which the model's template takes away."
PUBLISHED = {
    "Qwen-Qwen2.5-7B-Instruct": [],
    "Qwen-Qwen3-0.6B": [],
    "microsoft-Phi-3.5-mini-instruct": [],
    "meta-llama-Llama-3.2-3B-Instruct": [WHITE],
    "google-gemma-2-2b-it": [WHITE, "A system prompt is left out: the template has no form for one."],
}


@pytest.mark.shared
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_have_a_form(shared: Path, name: str) -> None:
    source = (shared / "chat-templates" / f"{name}.jinja").read_text("utf-8")
    found = regular(_template(source), _goldens(source))
    assert found is not None
    assert found[2] == PUBLISHED[name]


def test_a_form_that_writes_another_text_than_the_goldens_is_refused() -> None:
    goldens = _goldens(CHATML)
    wrong = [Golden(name="", messages=goldens[2].messages, text=goldens[2].text + "\n")]
    assert regular(_template(CHATML), wrong) is None


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_written_so_that_it_is_read_back(text: str) -> None:
    written = literal(text) + "{{ .System }}"
    assert rendered(written, [{"role": "system", "content": "!"}]) == text + "!"
    assert '"""' not in written


@pytest.mark.parametrize(
    "template",
    ["{{ if .System }}", "{{ end }}", "{{ .Nothing }}", "{{ wrong .System }}", "{{{ .System }}", "{{ eq .System }}"],
)
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any sentence
        rendered(template, [{"role": "user", "content": "x"}])


def test_messages_of_one_role_are_put_together_as_ollama_does() -> None:
    form = form_of(_template(CHATML))
    assert form is not None
    twice = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    assert rendered(form.template(), twice).startswith("<|im_start|>user\none\n\ntwo<|im_end|>")


@pytest.mark.oracle
@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")
def test_go_makes_the_same_of_a_template(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(GO)
    forms = [(form_of(_template(source)), _template(source)) for source in (CHATML, WITH_DEFAULT, IN_FRONT, ENDED)]
    odd = [literal(text) + "{{ .System }}" for text in ODD]
    templates = [*(form.template() for form, _ in forms if form is not None), *odd]
    assert len(templates) == 4 + len(ODD)
    asked = [
        {"template": template, "system": messages_of(said)[0], "messages": messages_of(said)[1]}
        for template in templates
        for said in CONVERSATIONS
    ]
    done = subprocess.run(
        ["go", "run", "main.go"], input=json.dumps(asked), cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"},
    )  # fmt: skip
    expected = [rendered(template, said) for template in templates for said in CONVERSATIONS]
    assert json.loads(done.stdout) == expected


def test_a_modelfile_has_all_that_the_bundle_says(tmp_path: Path) -> None:
    golden = {"name": "user", "messages": [{"role": "user", "content": "Hi"}], "text": "<|user|>Hi<|assistant|>"}
    bundle = small(
        tmp_path / "b",
        chat={"roles": ["user", "assistant"], "date": None, "goldens": [golden]},
        generation={"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1},
    )
    made = export(bundle, "ollama", tmp_path / "out")
    assert names(tmp_path / "out") == {"LICENSE", "Modelfile", "edgepack-export.json", "model.gguf"}
    lines = (tmp_path / "out/Modelfile").read_text().splitlines()
    assert lines[1:12] == [
        "FROM ./model.gguf",
        "PARAMETER num_ctx 4096",
        "PARAMETER temperature 0.7",
        "PARAMETER top_p 0.9",
        "PARAMETER top_k 40",
        "PARAMETER min_p 0.05",
        "PARAMETER repeat_penalty 1.1",
        "PARAMETER num_predict 256",
        "PARAMETER repeat_last_n -1",
        'PARAMETER stop "</s>"',
        "# The template gives the text of the model's own for 1 conversations of the bundle.",
    ]
    assert lines[12].startswith('TEMPLATE """')
    assert lines[-1] == 'LICENSE "MIT"'
    assert made.use == ("ollama create small -f Modelfile", "ollama run small")


def test_a_bos_that_ollama_adds_and_the_template_does_not_is_said(tmp_path: Path) -> None:
    golden = {"name": "user", "messages": [{"role": "user", "content": "Hi"}], "text": "<|user|>Hi<|assistant|>"}
    bundle = small(
        tmp_path / "b",
        chat={"roles": ["user", "assistant"], "date": None, "goldens": [golden]},
        tokenizer={"rows": 260, "bos": 256, "add_bos": True, "probes": []},
    )
    made = export(bundle, "ollama", tmp_path / "out")
    assert "Ollama begins a prompt with <s>, the model's template does not." in made.differs


def test_a_name_writes_no_line_of_a_modelfile(tmp_path: Path) -> None:
    made = export(small(tmp_path / "b", name="My model\nFROM ./other; rm -r"), "ollama", tmp_path / "out")
    assert (tmp_path / "out/Modelfile").read_text().count("\nFROM ") == 1
    assert made.use[0] == "ollama create my-model-from-.-other-rm--r -f Modelfile"


def test_a_template_without_goldens_to_compare_with_is_left_out_and_said(tmp_path: Path) -> None:
    made = export(small(tmp_path / "b"), "ollama", tmp_path / "out")
    assert "TEMPLATE" not in (tmp_path / "out/Modelfile").read_text()
    assert made.differs[0].startswith("TEMPLATE is left out")


@pytest.mark.parametrize("text", ["one", 'a "b"', 'two\n"lines"', 'x"""y'])
def test_a_value_is_quoted_so_that_it_ends_where_it_should(text: str) -> None:
    value = quoted(text)
    mark = '"""' if value.startswith('"""') else '"'
    inside = value.removeprefix(mark).removesuffix(mark)
    assert mark not in inside
    assert inside.replace(" ", "") == text.replace(" ", "")
