"""The SDK's tokenizer against the tokenizers library's own decoding, on trained and on real vocabularies."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pytest
import tiny_tokenizers as tiny
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import BundleError, UnsupportedModelError, UsageError
from edgepack.text.tokenizer import Tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text("ab <>|/ésend▁0xA\n", max_size=30)
REAL = [
    "tokenizers/llama-3.2",
    "tokenizers/phi-3.5-mini",
    "tokenizers/qwen3",
    "tokenizers/smollm2",
    "models/stories-260K",
]


@lru_cache
def byte_level() -> Tokenizer:
    return Tokenizer.from_json(tiny.byte_level(), None, False)


@lru_cache
def sentencepiece(add_bos: bool = False) -> Tokenizer:
    return Tokenizer.from_json(tiny.sentencepiece(), 1, add_bos)


@lru_cache
def native(data: bytes) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_buffer(data)


@given(TEXTS)
def test_byte_level_text_survives(text: str) -> None:
    assert byte_level().decode(byte_level().encode(text)) == text


@given(TEXTS)
def test_sentencepiece_text_survives(text: str) -> None:
    # "▁" is how these tokenizers write a space, so it comes back as one.
    assert sentencepiece().decode(sentencepiece().encode(text)) == text.replace("▁", " ")


@given(TEXTS)
def test_no_text_has_fewer_tokens_than_its_bytes_say(text: str) -> None:
    for tokenizer in (byte_level(), sentencepiece()):
        for repeated in (text, text * 9):
            for special in (False, True):
                least = tokenizer.at_least(repeated)
                assert least <= len(tokenizer.encode(repeated, bos=False, special=special))


def test_a_long_text_has_many_tokens() -> None:
    assert byte_level().at_least("x" * 100_000) > 1000
    assert sentencepiece().at_least("x" * 100_000) > 1000


@given(TEXTS)
def test_decoding_agrees_with_the_tokenizers_library(text: str) -> None:
    for data, ours in [(tiny.byte_level(), byte_level()), (tiny.sentencepiece(), sentencepiece())]:
        ids = ours.encode(text)
        if "é è" not in text:  # see test_an_added_token_adds_its_content
            assert ours.decode(ids) == native(data).decode(ids, skip_special_tokens=True)


def test_an_added_token_adds_its_content() -> None:
    ids = byte_level().encode("a<think>é è")
    assert [byte_level().token_bytes(token) for token in ids] == [b"a", b"<think>", "é è".encode()]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_no_plain_text_can_make_a_special_token(make: object) -> None:
    tokenizer: Tokenizer = make()  # type: ignore[operator]
    for token in tokenizer.special_ids:
        name = tokenizer.token(token)
        assert not tokenizer.special_ids & set(tokenizer.encode(f"a{name}b {name}"))
        assert token in tokenizer.encode(f"a{name}b", special=True)


def test_special_parsing_does_not_leak_into_the_next_call() -> None:
    tokenizer = byte_level()
    plain = tokenizer.encode("<|end|>")
    tokenizer.encode("<|end|>", special=True)
    assert tokenizer.encode("<|end|>") == plain != [0]


def test_threads_do_not_mix_up_special_parsing() -> None:
    tokenizer = byte_level()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: tokenizer.encode("<|end|>" * 5, special=i % 2 == 0), range(400)))
    assert all((ids == [0] * 5) == (i % 2 == 0) for i, ids in enumerate(found))


def test_bos_follows_the_policy_and_is_never_doubled() -> None:
    with_bos = sentencepiece(add_bos=True)
    plain = with_bos.encode("hello", bos=False)
    assert with_bos.encode("hello") == [1, *plain]
    assert sentencepiece().encode("hello") == plain
    assert sentencepiece().encode("hello", bos=True) == [1, *plain]
    assert with_bos.encode("<s>hello", special=True).count(1) == 1
    assert with_bos.encode("") == [1]
    # As ordinary text it is no BOS, so that the real one is still prepended.
    assert with_bos.encode("<s>hello")[0] == 1
    assert with_bos.encode("<s>hello").count(1) == 1


def test_sentencepiece_drops_the_space_in_front_of_a_text_only() -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode("  the sea")
    assert tokenizer.decode(ids) == "  the sea"
    assert b"".join(map(tokenizer.token_bytes, ids)) == b"   the sea"
    assert tokenizer.decode([2, *ids]) == "  the sea"


def test_byte_tokens_give_bytes() -> None:
    assert sentencepiece().token_bytes(3) == b"\x00"
    assert sentencepiece().token_bytes(258) == b"\xff"
    assert sentencepiece().decode([3 + 0xE2, 3 + 0x82]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, 10**6, 2**40])
def test_ids_without_a_token_give_nothing(token: int) -> None:
    assert byte_level().token_bytes(token) == b""
    with pytest.raises(UsageError, match="no token"):
        byte_level().token(token)


def test_truncation_and_padding_of_the_file_are_ignored() -> None:
    data = tiny.changed(
        tiny.byte_level(),
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "<|end|>"},
    )  # fmt: skip
    text = "hello world, hello sea"
    assert Tokenizer.from_json(data, None, False).encode(text) == byte_level().encode(text)


def test_n_tokens_counts_added_tokens() -> None:
    assert byte_level().n_tokens == 332
    assert byte_level().special_ids == {0, 1}


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 0, "stop": 1},
            ],
        },
    ],
)
def test_another_style_is_refused_by_name(decoder: object) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json: decoder: "):
        Tokenizer.from_json(tiny.changed(tiny.byte_level(), decoder=decoder), None, False)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"added_tokens": 3}', b'{"decoder": {"type": "ByteLevel"}}', b"\xff"])
def test_a_file_that_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.from_json(data, None, False)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(BundleError, match="BOS"):
        Tokenizer.from_json(tiny.byte_level(), None, True)
    with pytest.raises(UsageError, match="surrogate pair at index 2"):
        byte_level().encode("ab\ud800")
    with pytest.raises(UsageError, match="type bytes"):
        byte_level().encode(b"ab")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no BOS"):
        byte_level().encode("ab", bos=True)


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest, shared: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    data = (shared / request.param / "tokenizer.json").read_bytes()
    return Tokenizer.from_json(data, None, False), native(data)


@pytest.mark.shared
def test_real_tokenizers_decode_as_the_library_does(real: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, theirs = real

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def agree(text: str) -> None:
        ids = ours.encode(text)
        assert ids == theirs_plain(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    def theirs_plain(text: str) -> list[int]:
        theirs.encode_special_tokens = True
        return theirs.encode(text, add_special_tokens=False).ids

    agree()


@pytest.mark.shared
def test_real_special_tokens_need_special_parsing(real: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, _ = real
    for token in ours.special_ids:
        name = ours.token(token)
        assert not ours.special_ids & set(ours.encode(f"a{name}b"))
        assert ours.encode(f"a{name}b", special=True).count(token) == 1


@pytest.mark.shared
def test_every_real_token_has_the_bytes_that_the_library_shows(real: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, theirs = real
    anchor = ours.encode("a")[-1]  # keeps the library from stripping the space in front of a text
    prefix = theirs.decode([anchor])
    for token in range(0, ours.n_tokens, max(1, ours.n_tokens // 3000)):
        data = ours.token_bytes(token)
        if data.decode(errors="ignore").encode() == data:
            assert theirs.decode([anchor, token]) == prefix + data.decode()


VECTORS = [
    ("llama-bpe", "tokenizers/llama-3.2"),
    ("phi-3", "tokenizers/phi-3.5-mini"),
    ("llama-spm", "tokenizers/phi-3.5-mini"),
    ("qwen2", "tokenizers/qwen3"),
]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "place"), VECTORS)
def test_llama_cpp_vectors(name: str, place: str, shared: Path) -> None:
    folder = shared / "tokenizer-vectors/llama.cpp"
    tokenizer = Tokenizer.from_json((shared / place / "tokenizer.json").read_bytes(), None, False)
    # The texts hold carriage returns, so that they are read as bytes; after the last separator comes the empty text.
    texts = (folder / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    rows = (folder / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    pairs = [(text, [int(word) for word in row.split()]) for text, row in zip(texts, rows, strict=True)]
    assert [text for text, expected in pairs if tokenizer.encode(text) != expected] == []
    assert len(pairs) == 47
