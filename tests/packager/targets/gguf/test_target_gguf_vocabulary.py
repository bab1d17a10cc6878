"""The tokenizer keys of GGUF files, judged by llama.cpp itself: it must give the ids that tokenizer.json gives."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import describe
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import Rope
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack.text.tokenizer import Tokenizer as CompiledTokenizer
from edgepack_packager.checkpoint.gguf.pretokenizers import DEEPSEEK_LLM
from edgepack_packager.checkpoint.gguf.vocabulary import TokenType
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf import header
from edgepack_packager.targets.gguf.header import U32
from edgepack_packager.targets.gguf.layout import place
from edgepack_packager.targets.gguf.metadata import metadata
from edgepack_packager.targets.gguf.vocabulary import vocabulary
from edgepack_packager.text.side import Text
from edgepack_runtimes.gguf.differences import Differences

TEXTS = [
    "Hello, world!",
    " leading and  double   spaces ",
    "tabs\tand\nnewlines\r\n\r\n\n end\n",
    "don't DON'T we've They'LL",
    "In 1999, 123456789 apples cost $3.50 - or 1,000.25?",
    "def f(x):\n    return x**2  # comment",
    "Größe, naïve, façade, Ελληνικά, русский",
    "日本語のテキスト、中文字符。한국어",
    "🦙 emoji 👩‍👩‍👧 and \u200b zero width",
    "https://example.org/a?b=c&d=%20e",
    "Once upon a time, there was a little girl named Lily.",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbb",
    "()[]{}<>!@#$%^&*_+-=|\\/~`",
    "",
    " ",
    "x",
]

# llama.cpp loads the vocabulary alone, in a process of its own: a fault in native code must not end the tests.
CHILD = """
import ctypes, json, sys
from edgepack_runtimes.gguf.abi import ModelParams
native = ctypes.CDLL(sys.argv[1])
native.llama_model_default_params.restype = ModelParams
native.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
native.llama_model_load_from_file.restype = ctypes.c_void_p
native.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
native.llama_model_get_vocab.restype = ctypes.c_void_p
native.llama_tokenize.argtypes = [
    ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32,
    ctypes.c_bool, ctypes.c_bool,
]
native.llama_vocab_is_eog.argtypes = [ctypes.c_void_p, ctypes.c_int32]
native.llama_vocab_is_eog.restype = ctypes.c_bool
native.llama_vocab_n_tokens.argtypes = [ctypes.c_void_p]
params = native.llama_model_default_params()
params.vocab_only = True
model = native.llama_model_load_from_file(sys.argv[2].encode(), params)
vocab = native.llama_model_get_vocab(model)
ids = []
for text, special in json.load(sys.stdin):
    data = text.encode()
    room = (ctypes.c_int32 * (len(data) + 16))()
    count = native.llama_tokenize(vocab, data, len(data), room, len(room), special, True)
    ids.append(list(room[:count]))
ends = [i for i in range(native.llama_vocab_n_tokens(vocab)) if native.llama_vocab_is_eog(vocab, i)]
json.dump({"ids": ids, "ends": ends}, sys.stdout)
"""


def llama_tokenize(model: Model, texts: Sequence[str], folder: Path, special: bool = False) -> dict[str, Any]:
    """Tokenize in llama.cpp; ``special`` adds what the vocabulary says is added to a prompt."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        pytest.skip("xllamacpp is not installed")
    library = next(Path(found.origin).parent.glob("xllamacpp*.so"))
    file = folder / "vocabulary.gguf"
    layout = place(model.decoder, "f32")
    file.write_bytes(header.encode(metadata(model, "f32"), layout))
    with open(file, "r+b") as sized:
        sized.truncate(file.stat().st_size + layout.data_bytes)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(library), str(file)],
        input=json.dumps([(text, special) for text in texts]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def decoder(n_vocab: int) -> Decoder:
    return describe(
        family="llama",
        architecture="LlamaForCausalLM",
        n_layers=1,
        hidden_size=32,
        n_heads=1,
        n_kv_heads=1,
        head_dim=32,
        intermediate_size=32,
        n_vocab=n_vocab,
        context=64,
        norm_eps=1e-5,
        rope=Rope(theta=10000.0, dim=32),
        tied=True,
    )


def as_model(
    tokenizer: dict[str, Any],
    *,
    config: dict[str, Any] | None = None,
    extra_rows: int = 0,
    bos: int | None = None,
    add_bos: bool = False,
    stops: tuple[int, ...] = (),
    template: str | None = None,
) -> Model:
    ids = [*tokenizer["model"]["vocab"].values(), *(added["id"] for added in tokenizer.get("added_tokens") or [])]
    files = {"tokenizer_config.json": json.dumps(config or {}).encode()}
    text = Text(files, tokenizer, bos, add_bos, stops, template)
    return Model("test", decoder(max(ids) + 1 + extra_rows), "f32", text=text)


def check(tokenizer: dict[str, Any], folder: Path, texts: Sequence[str] = TEXTS) -> None:
    expected = Tokenizer.from_str(json.dumps(tokenizer))
    actual = llama_tokenize(as_model(tokenizer), texts, folder)["ids"]
    ids = [expected.encode(text, add_special_tokens=False).ids for text in texts]
    assert list(zip(texts, actual, strict=True)) == list(zip(texts, ids, strict=True))


def shared_json(name: str) -> dict[str, Any]:
    folder = os.environ.get("EDGEPACK_SHARED")
    if not folder:
        pytest.skip("EDGEPACK_SHARED is not set")
    tokenizer: dict[str, Any] = json.loads((Path(folder) / name / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer


def vectors(name: str) -> Iterator[tuple[str, list[int]]]:
    folder = Path(os.environ["EDGEPACK_SHARED"]) / "tokenizer-vectors" / "llama.cpp"
    # the texts hold carriage returns, and are separated by this line
    texts = (folder / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    for text, line in zip(texts, (folder / f"ggml-vocab-{name}.gguf.out").read_text().splitlines(), strict=False):
        yield text, [int(word) for word in line.split()]


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "tokenizers/llama-3.2",
        "tokenizers/phi-3.5-mini",
        "tokenizers/qwen3",
        "tokenizers/smollm2",
        "models/stories-260K",
    ],
)
def test_real_tokenizers_give_their_own_ids_in_llama_cpp(name: str, tmp_path: Path) -> None:
    check(shared_json(name), tmp_path)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("vocabulary_name", "folder"),
    [
        ("llama-bpe", "tokenizers/llama-3.2"),
        ("phi-3", "tokenizers/phi-3.5-mini"),
        ("llama-spm", "tokenizers/phi-3.5-mini"),
        ("qwen2", "tokenizers/qwen3"),
    ],
)
def test_llama_cpps_own_vectors(vocabulary_name: str, folder: str, tmp_path: Path) -> None:
    model = as_model(shared_json(folder))
    pairs = list(vectors(vocabulary_name))
    assert len(pairs) > 40
    actual = llama_tokenize(model, [text for text, _ in pairs], tmp_path)["ids"]
    assert actual == [ids for _, ids in pairs]


CORPUS = [*TEXTS, "Once upon a time there was a small model that counted 12 apples and 345 pears, don't you know?"] * 3

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace("{1,3}", "")
O200K_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35_REGEX = QWEN2_REGEX.replace(r"?\p{L}+|", r"?[\p{L}\p{M}]+|").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
TEKKEN_REGEX = O200K_REGEX.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
DEEPSEEK_V3_REGEXES = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
EAST_ASIAN = "[一-龥\u0800-一가-\ud7ff]+"
DEEPSEEK_CODER_REGEXES = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN)


def trained(pre: list[dict[str, Any]], *, ignore_merges: bool = False) -> dict[str, Any]:
    """A byte-level BPE of 400 entries, with a special and a plain added token."""
    tokenizer = Tokenizer(models.BPE())
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_apart(pre), as_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    result: dict[str, Any] = json.loads(tokenizer.to_str())
    result["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pre} if len(pre) > 1 else pre[0]
    result["model"]["ignore_merges"] = ignore_merges
    return result


def _apart(pre: list[dict[str, Any]]) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Digits(individual_digits=True)] if DIGITS in pre else []


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def byte_level(use_regex: bool, add_prefix_space: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


DIGITS = {"type": "Digits", "individual_digits": True}

PRE_TOKENIZERS = [
    ("gpt-2", [byte_level(True)], False),
    ("smollm", [DIGITS, byte_level(True)], False),
    ("llama-bpe", [split(LLAMA3_REGEX), byte_level(False)], True),
    ("llama-bpe", [split(LLAMA3_REGEX, "Removed", True), byte_level(False)], True),
    ("dbrx", [split(LLAMA3_REGEX), byte_level(False)], False),
    ("qwen2", [split(QWEN2_REGEX), byte_level(False)], False),
    ("gpt-4o", [split(O200K_REGEX), byte_level(False)], False),
    ("gpt-4o", [split(O200K_REGEX, "Removed", True), byte_level(False)], False),
    ("gpt-4o", [split(O200K_REGEX), byte_level(False)], True),
    ("qwen35", [split(QWEN35_REGEX), byte_level(False)], False),
    ("tekken", [split(TEKKEN_REGEX), byte_level(False)], True),
    ("tekken", [split(TEKKEN_REGEX), byte_level(False)], False),
    ("deepseek-v3", [*map(split, DEEPSEEK_V3_REGEXES), byte_level(False)], False),
    ("deepseek-coder", [*map(split, DEEPSEEK_CODER_REGEXES), DIGITS, byte_level(False)], False),
    ("deepseek-llm", [*map(split, DEEPSEEK_LLM[:-1]), DIGITS, byte_level(False)], False),
]


@pytest.mark.parametrize(("name", "pre", "ignore_merges"), PRE_TOKENIZERS)
def test_the_pre_tokenizer_is_read_from_the_structure(
    name: str, pre: list[dict[str, Any]], ignore_merges: bool, tmp_path: Path
) -> None:
    tokenizer = trained(pre, ignore_merges=ignore_merges)
    keys = vocabulary(as_model(tokenizer))
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == name
    check(tokenizer, tmp_path, [*TEXTS, "a<|end|>b <think>c", "<|end|>"])


PIECES = (
    *"aàáAÀÁñÑßẞéÉзжЖжΩωǅʰªع한字あア龥가½²٣!/_$€。\uff0c…\u2018¡",
    *("e\u0301", "A\u0301", "\u0301", "\u200d", "\u0e31", " ", "  ", "\t", "\n", "\r\n", "\u3000", "\u00a0", "\u2028"),
    *("'s", "'S", "'ll", "\u2019s", "1", "12", "1234", "👩‍🚀", "\n/", "//", "#x", "-Y"),
)


def odd_texts(count: int) -> list[str]:
    """Texts of pieces in any order: letters of all cases and scripts beside marks, digits, signs and white space."""
    chosen = random.Random(3)
    return ["".join(chosen.choices(PIECES, k=chosen.randint(2, 14))) for _ in range(count)]


@pytest.mark.parametrize(("name", "pre", "ignore_merges"), PRE_TOKENIZERS)
def test_odd_texts_are_split_as_tokenizer_json_splits_them(
    name: str, pre: list[dict[str, Any]], ignore_merges: bool, tmp_path: Path
) -> None:
    """A vocabulary that knows most neighbours as one token shows each place where a text is split, or is not."""
    texts = odd_texts(150)
    tokenizer = trained(pre, ignore_merges=ignore_merges)
    joining = Tokenizer(models.BPE())
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    joining.pre_tokenizer = pre_tokenizers.Sequence([*_apart(pre), as_bytes])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=6000, initial_alphabet=alphabet, show_progress=False, max_token_length=12)
    joining.train_from_iterator((text[i : i + 5] for text in texts for i in range(0, len(text), 2)), trainer)
    tokenizer |= {"model": json.loads(joining.to_str())["model"] | {"ignore_merges": ignore_merges}, "added_tokens": []}
    expected = Tokenizer.from_str(json.dumps(tokenizer)).encode_batch(texts, add_special_tokens=False)
    ours = CompiledTokenizer.from_json(json.dumps(tokenizer).encode(), None, False)
    assert [ours.encode(text) for text in texts] == [wanted.ids for wanted in expected]
    actual = llama_tokenize(as_model(tokenizer), texts, tmp_path)["ids"]
    rules = Differences(tokenizer, "gpt2", name)
    others = [text for text, ids, wanted in zip(texts, actual, expected, strict=True) if ids != wanted.ids]
    assert all(rules.explain(text, special=False) for text in others)
    assert bool(others) == (name in ("gpt-4o", "tekken", "deepseek-coder", "deepseek-llm"))
    # ordinary words and numbers in every script: what is explained is about odd neighbours
    plain = ["Hello, world! 123 apples; naïve café", "Привет, мир", "日本語のテキスト", "def f(x):\n    return x**2"]
    assert not any(rules.explain(text, special=False) for text in plain)


def test_a_whole_word_that_merges_do_not_make(tmp_path: Path) -> None:
    """Where llama.cpp and tokenizer.json disagree on ignore_merges, only such a word shows it."""
    tokenizer = trained([split(O200K_REGEX), byte_level(False)], ignore_merges=True)
    assert vocabulary(as_model(tokenizer))["tokenizer.ggml.pre"] == "gpt-4o"
    del tokenizer["model"]["merges"][-1]
    with pytest.raises(
        UnsupportedModelError, match=r"ignore_merges is true, .* the token '\w+' is not what merges make"
    ):
        vocabulary(as_model(tokenizer))


def test_digits_that_llama_cpp_would_join() -> None:
    """It takes DeepSeek LLM's digits together, which shows only where a token is made of two."""
    pre = [*map(split, DEEPSEEK_LLM[:-1]), DIGITS, byte_level(False)]
    tokenizer = trained([byte_level(True)])
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": pre}
    with pytest.raises(UnsupportedModelError, match=r"splits off every digit, llama\.cpp .* the token '\d+'"):
        vocabulary(as_model(tokenizer))


def test_merges_may_be_strings_or_pairs() -> None:
    tokenizer = trained([byte_level(True)])
    pairs = tokenizer["model"]["merges"]
    joined = trained([byte_level(True)])
    joined["model"]["merges"] = [f"{left} {right}" for left, right in pairs]
    name = "tokenizer.ggml.merges"
    assert vocabulary(as_model(joined))[name] == vocabulary(as_model(tokenizer))[name]


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """A BPE with byte fallback in Llama 2's manner, trained on the corpus."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *bytes_], limit_alphabet=60, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    result: dict[str, Any] = json.loads(tokenizer.to_str())
    result["added_tokens"] = [added for added in result["added_tokens"] if added["id"] < 3]
    return result | changes


SPACES_TO_BLOCKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


@pytest.mark.parametrize(
    ("changes", "prefix"),
    [
        ({}, True),
        ({"normalizer": None, "pre_tokenizer": METASPACE}, True),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "never"}}, False),
        ({"normalizer": SPACES_TO_BLOCKS}, False),
        ({"normalizer": SPACES_TO_BLOCKS, "pre_tokenizer": AT_SPACES}, False),
    ],
)
def test_sentencepiece_style_bpe_becomes_scores(changes: dict[str, Any], prefix: bool, tmp_path: Path) -> None:
    tokenizer = sentencepiece(**changes)
    keys = vocabulary(as_model(tokenizer))
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is prefix
    # Metaspace puts no second space before a text that begins with one; SentencePiece and llama.cpp do
    check(tokenizer, tmp_path, [text for text in TEXTS if "pre_tokenizer" not in changes or not text.startswith(" ")])


def test_token_types_and_padding() -> None:
    tokenizer = sentencepiece()
    rows = 3
    tokenizer["added_tokens"].append({"id": 420, "content": "▁user▁token", "special": False})
    keys = vocabulary(as_model(tokenizer, extra_rows=rows))
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, np.ndarray)
    assert types[:4].tolist() == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert (types == TokenType.BYTE).sum() == 256
    assert tokens[420] == " user token"
    assert types[420] == TokenType.USER_DEFINED
    assert tokens[-rows:] == ["[PAD421]", "[PAD422]", "[PAD423]"]
    assert (types[-rows:] == TokenType.UNUSED).all()
    assert len(tokens) == len(types) == len(keys["tokenizer.ggml.scores"])  # type: ignore[arg-type]


def test_gemmas_vocabulary(tmp_path: Path) -> None:
    """Spaces become blocks and none is put in front; BOS is, always; runs of newlines are tokens of the user's."""
    tokenizer = sentencepiece(normalizer=SPACES_TO_BLOCKS, pre_tokenizer=AT_SPACES)
    end = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] += [
        {"id": end, "content": "<end_of_turn>", "special": True, "normalized": False},
        {"id": end + 1, "content": "\n\n", "special": False, "normalized": False},
    ]
    for added in tokenizer["added_tokens"]:
        added.update(single_word=False, lstrip=False, rstrip=False, normalized=False)
    model = as_model(
        tokenizer,
        config={"eos_token": "</s>"},
        bos=1,
        add_bos=True,
        stops=(2, end),
        template="{{ bos_token }}{{ messages }}<end_of_turn>",
    )
    keys = vocabulary(model)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is False
    assert keys["tokenizer.ggml.add_bos_token"] is True
    check(tokenizer, tmp_path, [*TEXTS, "one\n\ntwo\n\n\n three", "  two <end_of_turn>\n"])
    answer = llama_tokenize(model, ["x"], tmp_path, special=True)
    assert answer["ids"][0][0] == 1
    assert answer["ends"] == [2, end]


@pytest.mark.parametrize("tools", [True, False])
def test_words_of_gemma_4_that_llama_cpp_knows(tools: bool, tmp_path: Path) -> None:
    """It ends at three of them, and beside the third takes "</s>" for what merges make; so does tokenizer.json."""
    tokenizer = sentencepiece(normalizer=SPACES_TO_BLOCKS, pre_tokenizer=AT_SPACES)
    words, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    renamed = {"<s>": "<bos>", "</s>": "<eos>"}
    words |= {new: words.pop(old) for old, new in renamed.items()}
    words |= {word: len(words) + place for place, word in enumerate(sorted({*"</s>"} - words.keys()))}
    words |= {word: len(words) + place for place, word in enumerate(("</", "</s", "</s>"))}
    merges += [["<", "/"], ["</", "s"], ["</s", ">"]]
    names = ["<turn|>", *(["<|tool_response>"] if tools else [])]
    tokenizer["added_tokens"] += [
        {"id": len(words) + place, "content": name, "special": True} for place, name in enumerate(names)
    ]
    for added in tokenizer["added_tokens"]:
        added.update(single_word=False, lstrip=False, rstrip=False, normalized=False)
        added["content"] = renamed.get(added["content"], added["content"])
    texts = [*TEXTS, "a </s> b", "</s>", "<turn|>\n<|tool_response> x </s><eos>"]
    check(tokenizer, tmp_path, texts)
    ends = llama_tokenize(as_model(tokenizer), ["x"], tmp_path)["ends"]
    assert {words["<eos>"], *range(len(words), len(words) + len(names))} <= {*ends}


def test_runs_of_spaces_that_merges_make_are_merged(tmp_path: Path) -> None:
    """Added tokens that are written in blocks are in no text of spaces: merges make them, in their own order."""
    tokenizer = sentencepiece(normalizer=SPACES_TO_BLOCKS, pre_tokenizer=AT_SPACES)
    model = tokenizer["model"]
    end, runs = len(model["vocab"]), ["▁▁", "▁▁▁▁", "▁▁▁"]
    model["vocab"] |= {run: end + place for place, run in enumerate(runs)}
    word = next(right for left, right in model["merges"] if left == "▁")
    first, last = [["▁", "▁"], ["▁▁", "▁▁"]], [["▁▁", "▁"]]
    model["merges"] = [*first, *model["merges"], *last]
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [flags | {"id": end + place, "content": run} for place, run in enumerate(runs)]
    texts = [f"a{' ' * length}{word}{' ' * length}" for length in range(12)]
    check(tokenizer, tmp_path, [*TEXTS, *texts, "a▁▁▁b", "▁"])
    longest = Tokenizer.from_str(json.dumps(tokenizer)).encode(f"a   {word}", add_special_tokens=False).ids
    assert end + 2 not in longest  # a search for the longest run would find it


def test_gaps_between_added_ids_are_unused_tokens(tmp_path: Path) -> None:
    tokenizer = trained([split(O200K_REGEX), byte_level(False)])
    first = max(added["id"] for added in tokenizer["added_tokens"]) + 1
    tokenizer["added_tokens"].append({"id": first + 3, "content": "<|after a gap|>", "special": True})
    model = as_model(tokenizer, extra_rows=2)
    keys = vocabulary(model)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, np.ndarray)
    gap = [first, first + 1, first + 2, first + 4, first + 5]
    assert [tokens[index] for index in gap] == [f"[PAD{index}]" for index in gap]
    assert (types[gap] == TokenType.UNUSED).all()
    answer = llama_tokenize(model, ["a<|after a gap|>[PAD7]"], tmp_path)["ids"][0]
    assert first + 3 in answer
    assert not set(gap) & set(answer)


@pytest.mark.parametrize("name", ["tiny-Phi3", "my phi-3.5"])
def test_a_name_that_llama_cpp_would_act_upon(name: str, tmp_path: Path) -> None:
    """It lets most added tokens of a model of that name strip, and cannot load a vocabulary that lacks some."""
    stripping, plain, without = (
        as_model(sentencepiece()),
        as_model(sentencepiece()),
        as_model(trained([byte_level(True)])),
    )
    for model, strips in ((stripping, True), (plain, False)):
        added = model.text.tokenizer["added_tokens"]  # type: ignore[union-attr]
        added.append({"id": 420, "content": "<|endoftext|>", "special": True})
        for token in added:
            token["rstrip"] = strips and token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    for model, kept in ((stripping, True), (plain, False), (without, False)):
        named = replace(model, name=name, decoder=decoder(model.decoder.n_vocab + 1))
        assert (metadata(named, "f32")["general.name"] == name) == kept
        llama_tokenize(named, ["x"], tmp_path)
        (tmp_path / "vocabulary.gguf").unlink()


def test_special_tokens_and_template(tmp_path: Path) -> None:
    tokenizer = trained([byte_level(True)])
    end = next(added["id"] for added in tokenizer["added_tokens"] if added["content"] == "<|end|>")
    turn, other = end + 2, end + 3
    tokenizer["added_tokens"] += [
        {"id": turn, "content": "<turn>", "special": True},
        {"id": other, "content": "<other>", "special": True},
    ]
    model = as_model(
        tokenizer,
        config={"eos_token": {"content": "<|end|>"}, "pad_token": "<other>"},
        bos=0,
        add_bos=True,
        stops=(end, other, turn),
        template="{{ messages }}<turn>",
    )
    keys = vocabulary(model)
    assert {key.split(".")[-1]: value for key, value in keys.items() if key.endswith("_id")} == {
        "bos_token_id": U32(0),
        "eos_token_id": U32(end),
        "eot_token_id": U32(turn),
        "eom_token_id": U32(other),
        "padding_token_id": U32(other),
    }
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False
    assert keys["tokenizer.chat_template"] == "{{ messages }}<turn>"
    assert "tokenizer.chat_templates" not in keys
    assert model.text is not None
    keys = vocabulary(replace(model, text=replace(model.text, tool_use="{{ tools }}")))
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    assert keys["tokenizer.chat_template.tool_use"] == "{{ tools }}"
    answer = llama_tokenize(model, ["x"], tmp_path, special=True)
    assert answer["ids"][0][0] == 0
    assert len(answer["ids"][0]) == 2
    assert answer["ends"] == sorted([end, turn, other])


def test_eos_that_does_not_stop_is_not_eos() -> None:
    tokenizer = trained([byte_level(True)])
    keys = vocabulary(as_model(tokenizer, config={"eos_token": "<think>"}, stops=(5,)))
    assert keys["tokenizer.ggml.eos_token_id"] == U32(5)


def test_a_config_without_special_tokens_names_none() -> None:
    tokenizer = trained([byte_level(True)])
    tokenizer["added_tokens"].append({"id": 402, "content": "None", "special": False})
    keys = vocabulary(as_model(tokenizer, config={"eos_token": None, "pad_token": None}))
    assert not [key for key in keys if key.endswith("_id")]


@pytest.mark.parametrize(
    ("changes", "blamed"),
    [
        ({"pre_tokenizer": split(r"\p{L}+|\p{N}")}, r"\\p{L}+"),
        ({"pre_tokenizer": byte_level(True, add_prefix_space=True)}, "add_prefix_space"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": None}, "null"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ],
)
def test_a_structure_that_llama_cpp_lacks_is_named(changes: dict[str, Any], blamed: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        vocabulary(as_model(trained([byte_level(True)]) | changes))
    assert blamed in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": None, "pre_tokenizer": None},
        {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": METASPACE},
        {"normalizer": None, "pre_tokenizer": METASPACE | {"split": True}},
        {"normalizer": None, "pre_tokenizer": AT_SPACES},
    ],
)
def test_sentencepiece_with_more_than_spaces_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json"):
        vocabulary(as_model(sentencepiece(**changes)))


def test_other_models_than_bpe_are_refused() -> None:
    tokenizer = trained([byte_level(True)])
    tokenizer["model"]["type"] = "Unigram"
    with pytest.raises(UnsupportedModelError, match="Unigram"):
        vocabulary(as_model(tokenizer))


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    with pytest.raises(SourceError, match="embedding has 401 rows"):
        vocabulary(as_model(trained([byte_level(True)]), extra_rows=-1))


def test_two_tokens_of_one_id_are_refused() -> None:
    tokenizer = trained([byte_level(True)])
    tokenizer["added_tokens"][0]["id"] = 7
    with pytest.raises(SourceError, match="the same id 7"):
        vocabulary(as_model(tokenizer))


def test_a_slice_has_no_vocabulary() -> None:
    assert vocabulary(Model("slice", decoder(10), "f32")) == {"tokenizer.ggml.model": "no_vocab"}
