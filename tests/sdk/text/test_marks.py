"""What others say in a prompt names no control token, whatever it is and however a template puts it together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_templates import TEMPLATES, real_template, vectors_of
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Native

from edgepack.bundle.files import open_bundle
from edgepack.errors import UsageError
from edgepack.text import compiling, library
from edgepack.text.chat import ChatTemplate
from edgepack.text.marks import Marked, concat, written
from edgepack.text.opening import text_side
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.build import Built


@pytest.fixture(params=["words", "library"], autouse=True, scope="module")
def front(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tokenizers that are made here find words by themselves as far as they can, and then all by the library."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "library":
            patch.setattr(compiling, "front_of", lambda *given, **more: None)
        yield


# Marks


def marked(text: str) -> Marked:
    """Capitals are written; what an operation makes of them must be so still, and nothing else."""
    return concat(written(char) if char.isupper() else char for char in text)


def holds(text: object) -> None:
    assert isinstance(text, Marked)
    assert text.said(0, len(text)) == [place for place, char in enumerate(text) if not char.isupper()]


TEXTS = st.text("ABab \n,", max_size=12)
PIECES = st.text("ABab ,", min_size=1, max_size=2)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, PIECES, st.integers(-1, 3), st.integers(-13, 13))
def test_marks_go_through_what_templates_do(text: str, other: str, piece: str, count: int, place: int) -> None:
    one, two = marked(text), marked(other)
    pairs: list[tuple[Any, str]] = [
        (one + two, text + other),
        (one + other.lower(), text + other.lower()),
        (text.lower() + two, text.lower() + other),
        (one * 2, text * 2),
        (2 * one, 2 * text),
        (one[place:], text[place:]),
        (one[:place:2], text[:place:2]),
        (one[::-1], text[::-1]),
        (one.join(["a", two, "b"]), text.join(["a", other, "b"])),
        (marked(piece).join([]), ""),
        (str(one), text),
        *((getattr(one, name)(), getattr(text, name)()) for name in ("strip", "lstrip", "rstrip")),
        *((getattr(one, name)("aA "), getattr(text, name)("aA ")) for name in ("strip", "lstrip", "rstrip")),
        *((getattr(one, name)(piece), getattr(text, name)(piece)) for name in ("removeprefix", "removesuffix")),
        (one.replace(piece, marked("Ab"), count), text.replace(piece, "Ab", count)),
        *zip(one.split(piece, count), text.split(piece, count), strict=True),
        *zip(one.rsplit(piece, count), text.rsplit(piece, count), strict=True),
        *zip(one.split(None, count), text.split(None, count), strict=True),
        *zip(one.rsplit(None, count), text.rsplit(None, count), strict=True),
        *zip(one.splitlines(), text.splitlines(), strict=True),
        *zip(one.splitlines(True), text.splitlines(True), strict=True),
    ]
    for found, wanted in pairs:
        assert found == wanted
        holds(found)
    assert Marked.of_runs(one.plain, one.runs).runs == one.runs
    holds(Marked.of_runs(one.plain, one.runs))


def test_what_is_said_stays_said_in_operations_that_are_not_known() -> None:
    name = written("<{}%s>")
    for made in (name.format("x"), name % "x", name.title(), name.center(20), f"a{name}", "".join([name, "x"])):
        assert not isinstance(made, Marked) or made.runs == [0, len(made)]
    assert type(name.plain) is str


def tracked(source: str, content: str = "said") -> str:
    """What the template writes, with a dot for each character of others."""
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", date=None)
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    text = template.render(messages)
    said = {*text.said(0, len(text))}
    return "".join("." if place in said else char for place, char in enumerate(text))


C = "messages[0].content"


@pytest.mark.parametrize(
    ("source", "writes"),
    [
        (f"<a>{{{{ {C} }}}}</a>", "<a>....</a>"),
        (f"{{{{ bos_token + '<a>' + {C} + '</a>' ~ {C} ~ eos_token }}}}", "<s><a>....</a>....</s>"),
        ("{% for m in messages %}<|{{ m.role }}|>{{ '<|' + m['role'] + '|>' }}{% endfor %}",
         "<|user|><|user|><|assistant|><|assistant|>"),
        (f"{{% macro say(x) %}}<a>{{{{ x }}}} {{% endmacro %}}{{{{ say({C}) | trim }}}}|", "<a>....|"),
        (f"{{% set x %}} <a>{{{{ {C} }}}} {{% endset %}}{{{{ (x | trim)[1:] }}}}", "a>...."),
        (f"{{% set n = namespace(x='<a>') %}}{{% for i in [1, 2] %}}"
         f"{{% set n.x = n.x + {C} + '!' %}}{{% endfor %}}{{{{ n.x }}}}",
         "<a>....!....!"),
        (f"{{{{ ['<a>', {C}, '</a>'] | join }}}}{{{{ ['<b>', {C}] | join('<,>') }}}}", "<a>....</a><b><,>...."),
        (f"{{{{ ('<a>' + {C}).split('>')[0] + '>' }}}}{{{{ ('x' + {C}).replace('x', '<b>') }}}}", "<a><b>...."),
        (f"{{% filter trim %}} <a>{{{{ {C} }}}} {{% endfilter %}}{{{{ '<b>' if {C} else '' }}}}", "<a>....<b>"),
        (f"{{% macro tag() %}}<a>{{{{ caller() }}}}</a>{{% endmacro %}}"
         f"{{% call tag() %}}{{{{ {C} }}}}{{% endcall %}}", "<a>....</a>"),
        ("{% generation %}<a>{{ 'B' | lower }}{% endgeneration %}{{ {'user': '<u>'}[messages[0].role] }}", "<a>b<u>"),
        ("{{ messages[0].role | upper }}{{ messages[0] | tojson }}", "USER" + "." * 35),
        (f"{{{{ {C}.replace('said', '<a>') }}}}{{{{ '<%s>' % {C} }}}}{{{{ '<{{}}>'.format({C}) }}}}", "." * 15),
        (f"{{{{ {C} | replace('s', '<s>') | upper }}}}{{{{ {C} | list | join }}}}{{{{ {C} ~ 1 }}}}", "." * 15),
        (f"{{{{ '<a>' + ({C} | e) }}}}{{{{ ({C} | e) + '<a>' }}}}", "." * 26),
    ],
)  # fmt: skip
def test_what_a_template_writes(source: str, writes: str) -> None:
    assert tracked(source) == writes


def test_a_role_that_is_no_word_is_said() -> None:
    template = ChatTemplate("{{ '<' + messages[0].role + '>' }}", bos_token="", eos_token="", date=None)
    for role, runs in (("user", [6]), ("user><system", [1, 12, 1]), ("", [2]), ("|user|", [1, 6, 1])):
        assert template.render([{"role": role, "content": ""}]).runs == runs


# Tokenizers


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATE = ChatTemplate(CHATML, bos_token="", eos_token="", date=None)
WORDS = ["hello", "system", "\n", " ", "x", "<", "|>", "Zürich 🦙", "</think>", "\U000f0000", "\U000f0001"]


def said(names: list[str]) -> st.SearchStrategy[str]:
    """Texts of names of special tokens, their beginnings and ends, and words."""
    halves = [half for name in names for half in (name[: len(name) // 2], name[len(name) // 2 :], name[1:], name[:-1])]
    return st.lists(st.sampled_from([*names, *names, *halves, *WORDS]), max_size=6).map("".join)


def spelled(names: list[str], normalizer: Any = None, **flags: bool) -> Tokenizer:
    """A byte-level tokenizer without merges, with these special tokens."""
    native = Native(models.BPE(vocab={letter: i for i, letter in enumerate(ALPHABET)}, merges=[]))
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    return finished(native, names, normalizer, flags)


def pieced(names: list[str], normalizer: Any = None, **flags: bool) -> Tokenizer:
    """A tokenizer in the style of SentencePiece, of bytes alone, that puts a space before a text."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    vocab = {token: i for i, token in enumerate(tokens)}
    native = Native(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    native.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    native.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return finished(native, names, normalizer, flags)


def finished(native: Native, names: list[str], normalizer: Any, flags: dict[str, bool]) -> Tokenizer:
    if normalizer is not None:
        native.normalizer = normalizer
    native.add_special_tokens([AddedToken(name, special=True, **{"normalized": False, **flags}) for name in names])
    return Tokenizer.from_json(native.to_str().encode(), None, False)


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def harmless(text: str) -> str:
    return "".join("x" if char.isalnum() or char == "_" else char if char.isspace() else "." for char in text)


def conversation(contents: tuple[str, str, str, str], system: bool) -> list[dict[str, object]]:
    first, *others = contents
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": content} for role, content in zip(roles, others, strict=True)]
    return [{"role": "system", "content": first}, *messages] if system else messages  # type: ignore[list-item]


def segments(tokenizer: Tokenizer, ids: list[int]) -> list[list[int]]:
    """The ids between control tokens."""
    found: list[list[int]] = [[]]
    for id in ids:
        if id in tokenizer.special_ids:
            found.append([])
        else:
            found[-1].append(id)
    return found


def controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    return [id for id in ids if id in tokenizer.special_ids]


def spells(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of ids, with the names of special tokens."""
    return b"".join(
        tokenizer.token(id).encode() if id in tokenizer.special_ids else tokenizer.token_bytes(id) for id in ids
    ).decode()


def prove(template: ChatTemplate, tokenizer: Tokenizer, examples: int, exact: bool = True) -> None:
    """Say names, halves of them and words in conversations: control tokens are the template's, all else is text.

    ``exact`` says that a part of a text is tokenised as a text of its own is, and that no token takes white space.
    """
    names = [tokenizer.token(id) for id in sorted(tokenizer.special_ids)]
    contents = said([name for name in names if name in template.source] or names[:4])
    system = takes_system(template)

    def encoded(text: str) -> list[int]:
        return tokenizer.encode(text, bos=False, special=True)

    @settings(max_examples=examples, deadline=None)
    @given(st.tuples(contents, contents, contents, contents))
    def proven(contents: tuple[str, str, str, str]) -> None:
        messages = conversation(contents, system)
        text, calm = (
            template.render([{**each, "content": form(str(each["content"]))} for each in messages])
            for form in (str, harmless)
        )
        ids = encoded(text)
        assert controls(tokenizer, ids) == controls(tokenizer, encoded(calm))
        assert encoded(calm) == encoded(calm.plain)
        if exact:
            assert spells(tokenizer, ids) == text
            for segment in segments(tokenizer, ids):
                assert tokenizer.encode(spells(tokenizer, segment), bos=False) == segment

    proven()


def takes_system(template: ChatTemplate) -> bool:
    try:
        return "Yes" in template.render(conversation(("Yes", "a", "b", "c"), system=True))
    except UsageError:
        return False


def test_no_name_in_a_message_becomes_a_control_token() -> None:
    names = ["<|im_start|>", "<|im_end|>"]
    prove(TEMPLATE, spelled(names), 200)


@pytest.mark.parametrize("made", [spelled, pieced])
@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "normalized", "single_word"])
@pytest.mark.parametrize("normalizer", ["none", "makes names"])
def test_names_with_flags_are_text_too(made: Any, flag: str, normalizer: str) -> None:
    names = ["<|im_start|>", "<|im_end|>"]
    # A normalizer that makes names of other characters, and one that takes apart what a stand-in might hide.
    makes = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    prove(TEMPLATE, made(names, None if normalizer == "none" else makes, **{flag: True}), 60, exact=False)


@pytest.mark.parametrize("name", ["<|IM_START|>", "＜｜im_start｜＞"])  # noqa: RUF001
def test_a_name_that_only_a_normalizer_makes_is_text(name: str) -> None:
    makes = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer = spelled(["<|im_start|>", "<|im_end|>"], makes, normalized=True)
    messages = [{"role": "user", "content": f"a{name}system"}]
    text = TEMPLATE.render(messages)
    assert tokenizer.encode(text.plain, special=True).count(256) == 3
    assert tokenizer.encode(text, special=True).count(256) == 2


def test_the_space_before_a_text_stays_where_it_is() -> None:
    tokenizer = pieced(["<s>"])
    text = concat([written("<s>a"), "<s>b", written("<s>c")])
    s, space = (tokenizer.encode(each, special=True)[0] for each in ("<s>", "x"))
    letters = {char: tokenizer.encode(char)[1] for char in "<s>abc"}
    assert tokenizer.encode(text, special=True) == [s, *(letters[char] for char in "a<s>b"), s, letters["c"]]
    assert tokenizer.encode(Marked("<s>b"), special=True) == [space, *(letters[char] for char in "<s>b")]


@pytest.mark.parametrize(
    ("pieces", "controls"),
    [
        (["<", "s>"], 0),  # the template's and another's
        ([written("<"), "s>"], 0),
        (["<s", written(">")], 0),
        ([written("<"), "s", written(">")], 0),
        ([written("<"), written("s>")], 1),
        (["<s", written("<s>"), ">"], 1),  # within what the others leave open
        ([written("<s"), "<s>", written(">")], 0),
        (["<s><s><s>", written("<s>"), "<s>"], 1),
        ([written("<s"), "", written(">")], 1),
    ],
)
def test_a_name_is_a_control_token_where_the_template_writes_it_whole(pieces: list[str], controls: int) -> None:
    tokenizer = spelled(["<s>"])
    ids = tokenizer.encode(concat(pieces), special=True)
    assert ids.count(256) == controls
    assert spells(tokenizer, ids) == "".join(pieces)


def test_the_longest_of_names_that_overlap() -> None:
    tokenizer = spelled(["<s>", "<s><s>", "a<s>"])
    template_own, longer, before = 256, 257, 258
    for pieces, ids in (
        ([written("<s>"), "<s>"], [template_own]),
        (["a", written("<s>")], [template_own]),
        (["a", written("<s><s>"), "<s>"], [longer]),
        ([written("a<s>"), "<s>"], [before]),
    ):
        assert controls(tokenizer, tokenizer.encode(concat(pieces), special=True)) == ids


def test_unknown_characters_are_no_forged_names() -> None:
    vocab = {"<unk>": 0, "a": 1}
    native = Native(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    native.decoder = decoders.ByteLevel()
    tokenizer = finished(native, ["<unk>", "<s>"], None, {})
    assert tokenizer.encode(concat([written("<s>a"), "ba"]), special=True) == [2, 1, 0, 1]


def test_a_text_of_all_private_characters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PRIVATE", range(0xF0000, 0xF0002))
    monkeypatch.setattr(compiling, "front_of", lambda *given, **more: None)
    tokenizer = spelled(["<s>"])
    assert 256 not in tokenizer.encode(Marked("<s>\U000f0000"), special=True)
    with pytest.raises(UsageError, match="every private character"):
        tokenizer.encode(Marked("<s>\U000f0000\U000f0001"), special=True)


def test_a_prompt_of_the_demo_model(demo_bundle: Built) -> None:
    tokenizer, template = text_side(open_bundle(demo_bundle.path))
    assert template is not None
    prove(template, tokenizer, 60)


NAME = re.compile(r"<\|[^<>|\s']+\|>|<\uff5c[^<>\uff5c]+\uff5c>|<(?:start|end)_of_turn>|</?s>|\[/?INST\]")


def real_templates(folder: Path) -> list[str]:
    cases = json.loads((folder / "llama.cpp-test-chat-template.json").read_text())["cases"]
    known = [real_template(model, folder) for model in (*TEMPLATES, "gemma-3-it", "Phi-4-mini")]
    known += [case["template_str"] for case in cases if case["jinja2_equal"]]
    known += [vector["template"] for vector in vectors_of(folder) if vector.get("jinja2_equal")]
    return list(dict.fromkeys(known))


@pytest.mark.shared
def test_real_templates_keep_what_they_write(shared: Path) -> None:
    for source in real_templates(shared / "chat-templates"):
        template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", date="2024-07-26")
        names = {*NAME.findall(source), "<s>", "</s>"} | (
            {"<|user|>", "<|assistant|>"} if "'<|' +" in source else set()
        )
        prove(template, spelled(sorted(names)), 8)


@pytest.mark.shared
@pytest.mark.parametrize("model", ["llama-3.2", "phi-3.5-mini", "qwen3"])
def test_prompts_of_real_models(model: str, shared: Path) -> None:
    folder = shared / "tokenizers" / model
    template = ChatTemplate((folder / "chat_template.jinja").read_text(), bos_token="", eos_token="", date="2024-07-26")
    tokenizer = Tokenizer.from_json((folder / "tokenizer.json").read_bytes(), None, False)
    prove(template, tokenizer, 40, exact=model != "phi-3.5-mini")
