"""The text side of a source: BOS, stops, template, defaults and licence, each from the files that say so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from models import make_llama
from real_templates import real_template
from text_side import CHAT_TEMPLATE

from edgepack.bundle.manifest import Generation, Stop
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import families, text
from edgepack_packager.licence import Licence, read_licence
from edgepack_packager.text import endings
from edgepack_packager.text.battery import DAY
from edgepack_packager.text.render import battery
from edgepack_packager.text.side import Text

TOOLS = "additional_chat_templates/tool_use.jinja"


def read(folder: Path) -> Text | None:
    config = json.loads((folder / "config.json").read_text())
    return text.read_text(folder, config, families.describe(config))


def found(folder: Path) -> Text:
    result = read(folder)
    assert result is not None
    return result


def edit(path: Path, **fields: object) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    value |= fields
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not ...}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_llama(tmp_path)


def test_what_a_source_says(folder: Path) -> None:
    words = found(folder)
    assert sorted(words.files) == [
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert words.files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    assert (words.bos, words.add_bos, words.stops) == (1, False, (0, 2))
    assert words.chat_template == CHAT_TEMPLATE
    assert list(text.entries(words.tokenizer)) == list(range(384))


def test_a_source_without_a_tokenizer_has_no_text_side(tmp_path: Path) -> None:
    assert read(make_llama(tmp_path, tokenizer=False)) is None


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_a_tokenizer_in_another_format_only_is_refused(name: str, tmp_path: Path) -> None:
    folder = make_llama(tmp_path, tokenizer=False)
    (folder / name).write_bytes(b"{}")
    with pytest.raises(SourceError, match=f"has {re.escape(name)} but no tokenizer.json") as raised:
        read(folder)
    assert "save_pretrained" in str(raised.value.hint)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model": {"type": "BPE"}}', b"\xff"])
def test_a_damaged_tokenizer_is_refused(content: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"tokenizer\.json"):
        read(folder)


def test_a_token_without_a_row_is_refused(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=383)
    with pytest.raises(SourceError, match=r"has the id 383, the embedding has 383 rows"):
        read(folder)


def test_more_rows_than_tokens_are_allowed(tmp_path: Path) -> None:
    words = found(make_llama(tmp_path, n_vocab=512))
    assert len(text.entries(words.tokenizer)) == 384


def test_an_id_with_two_texts_is_refused() -> None:
    tokenizer = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 1, "content": "<s>"}]}
    with pytest.raises(SourceError, match="the id 1 stands for 'b' and for '<s>'"):
        text.entries(tokenizer)


def test_entries_of_a_unigram_model_are_numbered_by_place() -> None:
    tokenizer = {"model": {"vocab": [["<unk>", 0.0], ["a", -1.5]]}, "added_tokens": [{"id": 2, "content": "<s>"}]}
    assert text.entries(tokenizer) == {0: "<unk>", 1: "a", 2: "<s>"}


BOS: list[tuple[Mapping[str, Any], bool, int | None, bool]] = [
    # tokenizer_config.json, does the post-processor add BOS, expected: BOS, is it added
    ({}, False, 1, False),
    ({}, True, 1, True),
    # As in transformers 5, tokenizer.json decides (test_transformers_gives_the_same_ids).
    ({"add_bos_token": True}, False, 1, False),
    ({"add_bos_token": False}, True, 1, True),
    ({"bos_token": {"content": "<|endoftext|>"}}, False, 0, False),
    ({"bos_token": None}, False, None, False),
]


@pytest.mark.parametrize(("config", "post_processor", "bos", "added"), BOS)
def test_bos(config: Mapping[str, Any], post_processor: bool, bos: int | None, added: bool, tmp_path: Path) -> None:
    folder = make_llama(tmp_path, add_bos=post_processor)
    edit(folder / "tokenizer_config.json", **config)
    assert (found(folder).bos, found(folder).add_bos) == (bos, added)


def test_bos_is_numbered_by_the_config_where_no_tokenizer_file_names_it(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", bos_token=...)
    edit(folder / "special_tokens_map.json", bos_token=...)
    edit(folder / "config.json", bos_token_id=0)
    assert found(folder).bos == 0
    edit(folder / "config.json", bos_token_id=...)
    assert found(folder).bos is None


def test_contradictions_about_bos_are_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, add_bos=True)
    edit(folder / "tokenizer_config.json", bos_token="<s>")
    with pytest.raises(SourceError, match=r"bos_token, '<s>', is not in tokenizer\.json"):
        read(folder)
    edit(folder / "tokenizer_config.json", bos_token=None)
    with pytest.raises(SourceError, match="no bos_token"):
        read(folder)
    edit(folder / "tokenizer_config.json", bos_token="<|endoftext|>")
    with pytest.raises(UnsupportedModelError, match=r"starts a text with the ids \[1\], not with BOS"):
        read(folder)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
ROBERTA = {"type": "RobertaProcessing", "sep": ["<|im_end|>", 2], "cls": ["<|im_start|>", 1], "trim_offsets": True}
ENDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "template": lambda adds: adds,
    "sequence": lambda adds: {"type": "Sequence", "processors": [BYTE_LEVEL, adds]},
    "roberta": lambda _: ROBERTA | {"add_prefix_space": False},
    "bert": lambda _: {"type": "BertProcessing", "sep": ["<|im_end|>", 2], "cls": ["<|im_start|>", 1]},
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_a_tokenizer_ends_a_text_with_is_left_out_and_said(kind: str, tmp_path: Path) -> None:
    folder = make_llama(tmp_path, add_bos=True)
    processor = json.loads((folder / "tokenizer.json").read_text())["post_processor"]
    processor["special_tokens"]["<|im_end|>"] = {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}
    processor["single"].append({"SpecialToken": {"id": "<|im_end|>", "type_id": 0}})
    edit(folder / "tokenizer.json", post_processor=ENDS[kind](processor))
    words = found(folder)
    assert (words.bos, words.add_bos) == (1, True)
    assert words.notes == (
        "tokenizer.json ends each text with <|im_end|>, which no prompt is to end with: it is left out.",
    )


def test_byte_order_marks_are_left_out(folder: Path) -> None:
    expected = found(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert found(folder) == expected


@pytest.mark.parametrize("name", ["generation_config.json", "special_tokens_map.json", "tokenizer_config.json"])
def test_a_file_that_is_missing_says_nothing(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert found(folder).bos == 1


def test_a_bos_in_a_list_of_one(folder: Path) -> None:
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        edit(folder / name, bos_token=...)
    edit(folder / "config.json", bos_token_id=[1])
    assert found(folder).bos == 1
    edit(folder / "config.json", bos_token_id=[1, 2])
    with pytest.raises(SourceError, match=r"bos_token_id, \[1, 2\]"):
        read(folder)


def test_stops_name_their_sources(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert text.stops(found(folder), config) == [
        Stop(id=0, text="<|endoftext|>", sources=["generation_config.json"]),
        Stop(
            id=2,
            text="<|im_end|>",
            sources=["config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"],
        ),
    ]


def only_eos(folder: Path, eos: int | None = 0) -> None:
    """Leave nothing but config.json and the template to say what ends a turn."""
    edit(folder / "config.json", eos_token_id=eos)
    (folder / "generation_config.json").unlink()
    edit(folder / "tokenizer_config.json", eos_token=...)


def test_what_the_template_writes_after_an_answer_stops_although_no_config_names_it(folder: Path) -> None:
    only_eos(folder)
    assert found(folder).stops == (0, 2)
    (folder / "chat_template.jinja").unlink()
    assert found(folder).stops == (0,)


TURN_ENDS: list[tuple[str, tuple[int, ...]]] = [
    # what the template writes after a message, expected: the stops
    ("<|im_end|>", (2,)),
    ("  \n<|im_end|>\n<|endoftext|>", (2,)),
    ("<|endoftext|>", (0,)),
    (".<|im_end|>", ()),
    ("", ()),
    ("</turn>", ()),
]


@pytest.mark.parametrize(("after", "stops"), TURN_ENDS)
def test_a_turn_ends_with_the_first_special_token_after_it(after: str, stops: tuple[int, ...], folder: Path) -> None:
    only_eos(folder, None)
    source = (
        "{% for m in messages %}<|im_start|>" + "{{ m.content + '" + after.replace("\n", "\\n") + "' }}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(source)
    assert found(folder).stops == stops


def test_a_source_in_which_nothing_ends_a_turn_is_told_of(folder: Path) -> None:
    only_eos(folder, None)
    (folder / "chat_template.jinja").unlink()
    words = found(folder)
    assert words.stops == ()
    assert words.notes == (
        "No file of the source names a token that ends a turn: an answer ends at its limit of tokens.",
    )


def test_the_longest_token_ends_a_turn(folder: Path) -> None:
    only_eos(folder, None)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    flags = tokenizer["added_tokens"][0]
    added = [flags | {"id": 384, "content": "<|im_end|>>"}, flags | {"id": 385, "content": "<x>", "special": False}]
    edit(folder / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], *added])
    edit(folder / "config.json", vocab_size=400)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_end|>>{% endfor %}")
    assert found(folder).stops == (384,)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<x>{% endfor %}")
    assert found(folder).stops == ()


def test_an_added_token_without_a_row_is_left_out_where_nothing_needs_it(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    image = tokenizer["added_tokens"][0] | {"id": 384, "content": "<image>"}
    edit(folder / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], image])
    left = found(folder)
    assert left.stops == (0, 2)
    assert json.loads(left.files["tokenizer.json"]) == left.tokenizer == tokenizer
    assert max(Tokenizer.from_json(left.files["tokenizer.json"], None, False).encode("a<image>", special=True)) < 384
    edit(folder / "generation_config.json", eos_token_id=[2, 384])
    with pytest.raises(SourceError, match=r"stop token '<image>' has the id 384, the embedding has 384 rows"):
        read(folder)
    (folder / "generation_config.json").unlink()
    edit(folder / "tokenizer_config.json", bos_token="<image>")
    with pytest.raises(SourceError, match=r"BOS token '<image>' has the id 384, the embedding has 384 rows"):
        read(folder)


def test_every_token_with_a_row_leaves_the_file_as_it_is(folder: Path) -> None:
    assert found(folder).files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()


def test_an_added_token_that_gets_another_id_is_refused(folder: Path) -> None:
    """The tokenizers library numbers added tokens without gaps, whatever the file says."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    late = tokenizer["added_tokens"][0] | {"id": 390, "content": "<late>"}
    edit(folder / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], late])
    edit(folder / "config.json", vocab_size=400)
    with pytest.raises(
        SourceError, match=r"tokenizer\.json: the added token '<late>' has the id 390, and gets the id 384"
    ):
        read(folder)


@pytest.mark.parametrize("id", [384, 9999, -1])
def test_a_stop_without_a_token_is_left_out_and_said(id: int, folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[2, id])
    edit(folder / "tokenizer_config.json", eos_token="<|gone|>")
    words = found(folder)
    assert words.stops == (2,)
    assert words.notes == (
        f"generation_config.json names the stop token {id}, which tokenizer.json does not have: it is left out.",
        "tokenizer_config.json names the stop token '<|gone|>', which tokenizer.json does not have: it is left out.",
    )


@pytest.mark.parametrize("id", ["2", [[2]], [{}], {}, True, 2.0])
def test_a_stop_that_is_no_token_is_refused(id: object, folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=id)
    with pytest.raises(SourceError, match=r"config\.json: eos_token_id must be the number of a token") as raised:
        read(folder)
    assert raised.value.hint


def test_a_template_is_found_wherever_tools_put_it(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert found(folder).chat_template is None

    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    words = found(folder)
    assert words.chat_template == "D"
    assert words.files["chat_template.jinja"] == b"D"

    edit(folder / "tokenizer_config.json", chat_template="S")
    assert found(folder).chat_template == "S"
    (folder / "chat_template.json").write_text('{"chat_template": "J"}')
    assert found(folder).chat_template == "J"
    (folder / "chat_template.jinja").write_text("F")
    assert found(folder).chat_template == "F"


LISTED = [{"name": "default", "template": "LD"}, {"name": "tool_use", "template": "LT"}]
# The files of a folder beside tokenizer_config.json, what that says, and then default, tool_use and what is left out
NAMED_TEMPLATES: list[tuple[dict[str, str], object, str, str | None, tuple[str, ...]]] = [
    ({}, LISTED, "LD", "LT", ()),
    ({}, {"default": "OD", "tool_use": "OT"}, "OD", "OT", ()),
    ({}, [*LISTED, {"name": "rag", "template": "LR"}], "LD", "LT", ("rag",)),
    ({"chat_template.jinja": "F", TOOLS: "T"}, None, "F", "T", ()),
    ({"chat_template.jinja": "F", TOOLS: "T"}, LISTED, "F", "T", ()),
    ({"chat_template.jinja": "F"}, LISTED, "F", None, ("tool_use",)),
    ({TOOLS: "T"}, "C", "C", "T", ()),
    ({TOOLS: "T"}, LISTED, "LD", "T", ()),
    ({"chat_template.jinja": "F", "additional_chat_templates/rag.jinja": "R"}, None, "F", None, ("rag",)),
    ({"chat_template.json": json.dumps({"chat_template": LISTED})}, "C", "LD", "LT", ()),
    ({"chat_template.json": '{"chat_template": "J"}'}, LISTED, "J", None, ("tool_use",)),
    ({"chat_template.json": '{"chat_template": "J"}', TOOLS: "T"}, None, "J", "T", ()),
]


@pytest.mark.parametrize(("files", "config", "default", "tool_use", "left_out"), NAMED_TEMPLATES)
def test_named_templates_are_found(
    files: dict[str, str],
    config: object,
    default: str,
    tool_use: str | None,
    left_out: tuple[str, ...],
    folder: Path,
) -> None:
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=config)
    (folder / TOOLS).parent.mkdir()
    for name, source in files.items():
        (folder / name).write_text(source)
    words = found(folder)
    assert (words.chat_template, words.tool_use, words.left_out) == (default, tool_use, left_out)
    assert words.files["chat_template.jinja"].decode() == default
    assert words.files.get(TOOLS, b"").decode() == (tool_use or "")


@pytest.mark.oracle
@pytest.mark.parametrize(("files", "config", "default", "tool_use", "left_out"), NAMED_TEMPLATES)
def test_transformers_finds_the_same(
    files: dict[str, str],
    config: object,
    default: str,
    tool_use: str | None,
    left_out: tuple[str, ...],
    folder: Path,
) -> None:
    """It takes nothing from chat_template.json, which is a processor's, and has no default beside the folder's."""
    if "chat_template.json" in files or (TOOLS in files and "chat_template.jinja" not in files):
        pytest.skip("served here where transformers has no template")
    transformers: Any = pytest.importorskip("transformers")
    test_named_templates_are_found(files, config, default, tool_use, left_out, folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.get_chat_template() == default
    assert theirs.get_chat_template(tools=[{}]) == (tool_use or default)


def test_a_source_is_read_without_its_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% if %}")
    edit(folder / "tokenizer_config.json", chat_template=3)
    fields = json.loads((folder / "config.json").read_text())
    words = text.read_text(folder, fields, families.describe(fields), chat=False)
    assert words is not None
    assert (words.chat_template, words.tool_use, words.left_out) == (None, None, ())
    assert "chat_template.jinja" not in words.files
    assert text.rendered(words) is None


def test_what_a_build_should_know_of_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    )
    assert text.warnings(found(folder)) == [
        "chat_template.jinja does not print what a 'system' says (a system prompt): chat refuses such messages."
    ]
    (folder / "chat_template.jinja").unlink()
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    rag = [{"name": name, "template": plain} for name in ("default", "rag", "other")]
    edit(folder / "tokenizer_config.json", chat_template=rag)
    assert text.warnings(found(folder)) == [
        "The source's chat templates 'other', 'rag' are left out: a bundle holds the default and tool_use."
    ]


def test_a_template_for_tools_ends_a_turn_too(folder: Path) -> None:
    only_eos(folder, None)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    (folder / TOOLS).parent.mkdir()
    (folder / TOOLS).write_text("{{ tools }}{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}")
    stops = {stop.id: stop.sources for stop in text.stops(found(folder), {})}
    assert stops == {0: [TOOLS], 2: ["chat_template.jinja"]}


@pytest.mark.parametrize("template", [[], {}, [{"name": "rag", "template": "R"}], 3, ["T"], [{"name": "default"}]])
def test_a_template_that_is_none_is_refused(template: object, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(SourceError, match=r"tokenizer_config\.json: chat_template"):
        read(folder)


GENERATION: list[tuple[Mapping[str, Any], Generation]] = [
    ({}, Generation()),
    ({"temperature": 0.7, "top_p": 0.9}, Generation()),
    ({"do_sample": False, "repetition_penalty": 1.1}, Generation(repetition_penalty=1.1)),
    ({"do_sample": True}, Generation(temperature=1.0)),
    (
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "max_new_tokens": 64},
        Generation(temperature=0.6, top_p=0.9, max_tokens=64),
    ),
    ({"do_sample": True, "top_k": -1}, Generation(temperature=1.0)),
    ({"do_sample": True, "top_k": 0, "temperature": 0}, Generation()),
    ({"do_sample": True, "temperature": None, "top_p": 1, "top_k": None}, Generation(temperature=1.0)),
    ({"do_sample": None, "top_k": -1}, Generation()),
    ({"do_sample": True, "top_k": 20, "min_p": 0.05}, Generation(temperature=1.0, top_k=20, min_p=0.05)),
]


@pytest.mark.parametrize(("config", "expected"), GENERATION)
def test_generation_defaults(config: Mapping[str, Any], expected: Generation, folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps(config))
    assert text.generation(found(folder)) == expected
    longer = expected if "max_new_tokens" in config else msgspec.structs.replace(expected, max_tokens=2048)
    assert text.generation(found(folder), thinks=True) == longer


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"top_k": 1.5},
        {"top_k": -2},
        {"min_p": 2},
        {"max_new_tokens": 0},
    ],
)
def test_a_generation_default_out_of_range_is_named(config: Mapping[str, Any], folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, **config}))
    with pytest.raises(SourceError, match=rf"generation_config\.json: {next(iter(config))}") as raised:
        text.generation(found(folder))
    assert raised.value.hint


REAL: list[tuple[str, str, int | None, bool, tuple[int, ...]]] = [
    ("models/stories-260K", "models/stories-260K/config.json", 1, True, (1, 2)),
    # Its configuration asks for BOS, its tokenizer.json has none.
    ("tokenizers/phi-3.5-mini", "configs/Phi-3.5-mini-instruct.json", 1, False, (32000, 32007)),
    ("tokenizers/qwen3", "configs/Qwen3-0.6B.json", None, False, (151645,)),
    ("tokenizers/smollm2", "configs/SmolLM2-135M.json", 0, False, (0,)),
    ("tokenizers/llama-3.2", "configs/Llama-3.2-1B-Instruct.json", 128000, True, (128001, 128008, 128009)),
]


@pytest.mark.shared
@pytest.mark.parametrize(("folder", "config", "bos", "added", "stops"), REAL)
def test_real_tokenizers(
    folder: str, config: str, bos: int | None, added: bool, stops: tuple[int, ...], shared: Path
) -> None:
    fields = json.loads((shared / config).read_text())
    words = text.read_text(shared / folder, fields, families.describe(fields))
    assert words is not None
    assert (words.bos, words.add_bos, words.stops) == (bos, added, stops)


# template, special tokens, eos of config.json, of generation_config.json and of tokenizer_config.json, expected.
# The ids are those of the published files; where the template alone names one, it is the last.
TEMPLATE, CONFIG, GENERATED, NAMED = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
)
FAMILIES: list[tuple[str, dict[int, str], Any, Any, str | None, dict[int, list[str]]]] = [
    (
        "Llama-3.2",
        {128001: "<|end_of_text|>", 128008: "<|eom_id|>", 128009: "<|eot_id|>"},
        [128001, 128008, 128009],
        [128001, 128008, 128009],
        "<|eot_id|>",
        {
            128001: [CONFIG, GENERATED],
            128008: [CONFIG, GENERATED],
            128009: [CONFIG, GENERATED, NAMED, TEMPLATE],
        },
    ),
    (
        "Phi-3.5-mini",
        {32000: "<|endoftext|>", 32001: "<|assistant|>", 32007: "<|end|>"},
        32000,
        [32007, 32001, 32000],
        "<|endoftext|>",
        {32000: [CONFIG, GENERATED, NAMED], 32001: [GENERATED], 32007: [GENERATED, TEMPLATE]},
    ),
    (
        "Phi-4-mini",
        {199999: "<|endoftext|>", 200020: "<|end|>"},
        199999,
        [200020, 199999],
        "<|endoftext|>",
        {199999: [CONFIG, GENERATED, NAMED], 200020: [GENERATED, TEMPLATE]},
    ),
    (
        "gemma-2-it",
        {1: "<eos>", 107: "<end_of_turn>"},
        1,
        1,
        "<eos>",
        {1: [CONFIG, GENERATED, NAMED], 107: [TEMPLATE]},
    ),
    (
        "gemma-3-it",
        {1: "<eos>", 106: "<end_of_turn>"},
        [1, 106],
        [1, 106],
        "<eos>",
        {1: [CONFIG, GENERATED, NAMED], 106: [CONFIG, GENERATED, TEMPLATE]},
    ),
    (
        "Qwen2.5",
        {151643: "<|endoftext|>", 151645: "<|im_end|>"},
        151645,
        [151645, 151643],
        "<|im_end|>",
        {151643: [GENERATED], 151645: [CONFIG, GENERATED, NAMED, TEMPLATE]},
    ),
    (
        "Qwen3",
        {151643: "<|endoftext|>", 151645: "<|im_end|>"},
        151645,
        [151645, 151643],
        "<|im_end|>",
        {151643: [GENERATED], 151645: [CONFIG, GENERATED, NAMED, TEMPLATE]},
    ),
    (
        "ChatML",
        {0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>"},
        2,
        2,
        "<|im_end|>",
        {2: [CONFIG, GENERATED, NAMED, TEMPLATE]},
    ),
    (
        "ChatML with the mark of training",
        {128001: "<|end_of_text|>", 128012: "<|im_end|>"},
        128012,
        None,
        None,
        {128012: [CONFIG, TEMPLATE]},
    ),
]
MARKED = CHAT_TEMPLATE.replace("{{- '<|im_start|>' +", "{% generation %}{{- '<|im_start|>' +", 1).replace(
    "'\\n' }}\n", "'\\n' }}{% endgeneration %}\n", 1
)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "special", "config", "generation", "named", "expected"), FAMILIES)
def test_the_stops_of_each_family(
    name: str,
    special: dict[int, str],
    config: Any,
    generation: Any,
    named: str | None,
    expected: dict[int, list[str]],
    shared: Path,
) -> None:
    own = {"ChatML": CHAT_TEMPLATE, "ChatML with the mark of training": MARKED}
    source = own[name] if name in own else real_template(name, shared / "chat-templates")
    files = {
        GENERATED: json.dumps({"eos_token_id": generation}).encode(),
        NAMED: json.dumps({"eos_token": named}).encode(),
    }
    tokenizer = {"added_tokens": [{"id": id, "content": text, "special": True} for id, text in special.items()]}
    found = endings.find(
        files, {"eos_token_id": config}, tokenizer, special, battery(source, "<bos>", named or "", DAY)
    )
    assert {stop.id: stop.sources for stop in found} == expected
    assert all(stop.text == special[stop.id] for stop in found)


LICENCES: list[tuple[Mapping[str, str], Licence]] = [
    ({}, Licence("LicenseRef-unknown", ())),
    ({"README.md": "# A model"}, Licence("LicenseRef-unknown", ())),
    ({"README.md": "---\nlicense: apache-2.0\n---\n"}, Licence("Apache-2.0", ())),
    ({"README.md": "---\ntags:\n- x\nlicense: 'mit' # short\n---\n"}, Licence("MIT", ())),
    ({"README.md": "---\nlicense: llama3.2\n---\n"}, Licence("LicenseRef-llama3.2", ())),
    ({"README.md": "---\nlicense: other\nlicense_name: my terms (v2)\n---\n"}, Licence("LicenseRef-my-terms-v2", ())),
    ({"README.md": "---\nlicense: other\n---\n"}, Licence("LicenseRef-unknown", ())),
    ({"README.md": "---\ntitle: x\n---\nlicense: mit\n"}, Licence("LicenseRef-unknown", ())),
    ({"LICENSE": "MIT License\n\nCopyright"}, Licence("MIT", ("LICENSE",))),
    ({"LICENSE.txt": "   Apache License\n   Version 2.0, January 2004"}, Licence("Apache-2.0", ("LICENSE.txt",))),
    (
        {"LICENSE.txt": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n", "USE_POLICY.md": "Use", "NOTICE": "N"},
        Licence("LicenseRef-llama3.2", ("LICENSE.txt", "NOTICE", "USE_POLICY.md")),
    ),
    (
        {"README.md": "---\nlicense: gemma\n---\n", "LICENSE": "MIT License"},
        Licence("LicenseRef-gemma", ("LICENSE",)),
    ),
    ({"LICENSE": "All rights reserved.", "LICENSED_DATA.csv": ""}, Licence("LicenseRef-unknown", ("LICENSE",))),
]


@pytest.mark.parametrize(("files", "expected"), LICENCES)
def test_licence(files: Mapping[str, str], expected: Licence, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert read_licence(tmp_path) == expected
