"""Tokenizers trained on a few lines, in the two styles that are supported, as the bytes of a tokenizer.json."""

from __future__ import annotations

import json
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = [
    "Once upon a time there was a little girl who lived in a house by the sea.",
    "She said: hello, hello, world! The word world is a word, and the sea is the sea.",
    "naïve café, Größe, 東京, 👩‍🚀; 1 2 3 12 123 1234",
]


@lru_cache
def byte_level() -> bytes:
    """Byte-level BPE: 0 <|end|>, 1 <|start|> (both special), and <think>, added but not special, at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("é è", normalized=False)])
    return tokenizer.to_str().encode()


@lru_cache
def sentencepiece() -> bytes:
    """SentencePiece-style BPE with byte fallback: 0 <unk>, 1 <s>, 2 </s>, 3 to 258 the bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=30,
        show_progress=False,
    )
    tokenizer.train_from_iterator([line.replace(" ", "▁") for line in LINES], trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    return json.dumps(document).encode()


def changed(data: bytes, **fields: object) -> bytes:
    """Return the tokenizer.json with top-level fields replaced."""
    return json.dumps(json.loads(data) | fields).encode()
