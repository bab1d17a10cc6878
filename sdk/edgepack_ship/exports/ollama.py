"""Ollama: a Modelfile beside the GGUF file, with the template, the stops and the defaults of the bundle.

Instructions and parameters are those of ``docs/modelfile.mdx`` of Ollama. Its runner puts a BOS before every prompt
where the file's header asks for one (``tokenizer.ggml.add_bos_token``), also where the prompt has one, so that the
template leaves it out then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgepack.bundle.files import listed
from edgepack.bundle.manifest import Golden
from edgepack.errors import EdgepackError
from edgepack.text.chat import ChatTemplate
from edgepack.text.opening import special_tokens, template_of
from edgepack_ship.exports.differences import left_behind
from edgepack_ship.exports.export import CARD, GGUF, Export, Made, licence, write_text
from edgepack_ship.exports.go_template import Message, rendered
from edgepack_ship.exports.regular import Form, form_of

_ROLES = ("system", "user", "assistant")
_LONG: Sequence[Message] = [
    {"role": ("user", "assistant")[turn % 2], "content": f"What is said in turn {turn}."} for turn in range(7)
]
"""A conversation of more turns than goldens have."""


def write(asked: Export, folder: Path) -> Made:
    """Write model.gguf, a Modelfile, the licence and the model card."""
    variant = asked.variant("gguf")
    manifest = asked.manifest
    asked.copy(asked.variant_files(variant) | asked.shared(*manifest.license.files, CARD), folder)
    lines = [
        f"# {asked.name}: variant {variant.id} of the bundle sha256:{asked.bundle.id}",
        f"FROM ./{GGUF}",
        f"PARAMETER num_ctx {asked.context}",
    ]
    differs: list[str] = []
    if manifest.embedding is None:
        lines += _parameters(asked)
        template, differs = _template(asked)
        lines += template
    elif manifest.embedding.dense:
        differs = ["Ollama gives the pooled states: the matrices behind the pooling are not applied."]
    lines.append(f"LICENSE {quoted(licence(asked))}")
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")
    use = [f"ollama create {asked.name.lower()} -f Modelfile"]
    use += [f"ollama run {asked.name.lower()}"] if manifest.embedding is None else []
    return Made(variant.id, (*differs, *left_behind(asked)), tuple(use))


def _parameters(asked: Export) -> list[str]:
    defaults = asked.manifest.generation
    values = {
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        "top_k": defaults.top_k,
        "min_p": defaults.min_p,
        "repeat_penalty": defaults.repetition_penalty,
        "num_predict": defaults.max_tokens,
    }
    if defaults.repetition_penalty != 1:
        values["repeat_last_n"] = -1  # all tokens of the context, as edgepack counts them, not the last 64
    stops = [f"PARAMETER stop {quoted(stop.text)}" for stop in asked.manifest.stops]
    return [f"PARAMETER {name} {value:g}" for name, value in values.items()] + stops


def quoted(text: str) -> str:
    """Return a text as a Modelfile reads it back: between three quotes, or one where it has none and is one line.

    A text with three quotes in a row has a space between them: the language has no escape.
    """
    if '"' not in text and "\n" not in text:
        return f'"{text}"'
    apart = text.replace('"""', '"" "')
    return f'"""{apart} """' if apart.endswith('"') else f'"""{apart}"""'


def _template(asked: Export) -> tuple[list[str], list[str]]:
    """Return the lines of the template, and what it does otherwise than the bundle's."""
    manifest, jinja = asked.manifest, template_of(asked.bundle)
    if manifest.chat is None or jinja is None:
        return ['TEMPLATE """{{ .Prompt }}"""'], ["The model has no chat template: give it texts to continue."]
    bos = _bos(asked) if manifest.tokenizer.add_bos else ""
    dated = manifest.chat.date is not None and manifest.chat.date.policy == "passed"
    found = None if dated else regular(jinja, manifest.chat.goldens, bos)
    if found is None:
        why = "prints a day that the application names" if dated else "treats messages of one role in several ways"
        return [], [
            f"TEMPLATE is left out, because the model's own {why}, and Ollama guesses one: hand it prompts that "
            "edgepack rendered, with raw.",
            *_unsaid(asked, jinja),
        ]
    form, compared, differs = found
    template = form.without_bos(bos).template()
    if bos and not form.begin.startswith(bos):
        differs = [*differs, f"Ollama begins a prompt with {bos}, the model's template does not."]
    lines = [f"# The template gives the text of the model's own for {compared} conversations of the bundle."]
    return [*lines, f'TEMPLATE """{template}"""'], [*differs, *_unsaid(asked, jinja)]


def _bos(asked: Export) -> str:
    names = ("tokenizer_config.json", "special_tokens_map.json")
    held = listed(asked.manifest)
    return special_tokens([asked.bundle.read(name) for name in names if name in held])[0]


def regular(template: ChatTemplate, goldens: Sequence[Golden], bos: str = "") -> tuple[Form, int, list[str]] | None:
    """Return the form of a template that writes what the golden conversations say, how many were compared, and what it
    leaves out; None where there is none. ``bos`` is what the engine puts before a prompt itself.

    A system prompt is left out where no form writes it.
    """
    form = form_of(template)
    if form is None:
        return None
    more = [_golden(template, said) for said in (_LONG, [{"role": "system", "content": "Be brief."}, *_LONG])]
    usable = [golden for golden in goldens if _usable(golden)]
    without = [golden for golden in usable if golden.messages[0]["role"] != "system"]
    if form.system is not None and usable and None not in more:
        same = _compared(form, [*usable, *filter(None, more)], bos)
        if same is not None:
            return form, len(usable), same
    alone = Form(form.begin, form.user, form.assistant, form.asks, None)
    same = None if more[0] is None or not without else _compared(alone, [*without, more[0]], bos)
    if same is not None:
        return alone, len(without), [*same, "A system prompt is left out: the template has no form for one."]
    return None


def _golden(template: ChatTemplate, messages: Sequence[Message]) -> Golden | None:
    """Return what a template makes of a conversation, None where it refuses it."""
    try:
        text = template.render(messages).plain
    except EdgepackError:
        return None
    return Golden(name="", messages=[dict(each) for each in messages], text=text)


def _usable(golden: Golden) -> bool:
    """Say whether Ollama can be asked for a conversation: it asks for an answer, to the three roles, with the system
    prompt in front, and an empty one is none to it."""
    if golden.tools or golden.variables or golden.refusal or not golden.add_generation_prompt or not golden.messages:
        return False
    if not all(set(each) == {"role", "content"} and isinstance(each["content"], str) for each in golden.messages):
        return False
    roles = [each["role"] for each in golden.messages]
    if any(role not in _ROLES for role in roles) or "system" in roles[1:]:
        return False
    return roles[0] != "system" or bool(golden.messages[0]["content"])


def _compared(form: Form, goldens: Sequence[Golden], bos: str) -> list[str] | None:
    """Return what a form does otherwise where it writes what the goldens say, None where it does not."""
    template = form.without_bos(bos).template()
    trims = False
    for golden in goldens:
        wanted = golden.text.removeprefix(bos)
        said: list[Message] = [{"role": str(m["role"]), "content": str(m["content"])} for m in golden.messages]
        if rendered(template, said) == wanted:
            continue
        trimmed: list[Message] = [{**each, "content": each["content"].strip()} for each in said]
        if rendered(template, trimmed) != wanted:
            return None
        trims = True
    return ["White space around a message stays, which the model's template takes away."] if trims else []


def _unsaid(asked: Export, template: ChatTemplate) -> list[str]:
    """Return what a TEMPLATE cannot say, of what this model's template does."""
    chat, told = asked.manifest.chat, []
    if "tools" in template.for_tools.reads:
        told.append("Tools are left out: the template has no place for them.")
    if chat is not None and chat.thinking is not None:
        told.append("The model thinks, or does not, as its template has it by default: Ollama's switch does nothing.")
    if chat is not None and chat.date is not None and chat.date.policy == "pinned":
        told.append(f"Prompts say that it is {chat.date.day}, whatever the day is.")
    told.append("Ollama puts messages of one role that follow one another together, and all system prompts in front.")
    told.append("Ollama makes control tokens of their names in what users write; edgepack makes text of them.")
    return told
