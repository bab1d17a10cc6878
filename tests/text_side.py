"""The text side of small random checkpoints: a byte-level BPE learnt from a few lines, and a ChatML template."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_CORPUS = """\
Once upon a time there was a small model that lived in a box. The box had no network, and the model had few words, so
it said each of them with care. One day a child asked the model how many apples are in three baskets of four apples.
The model counted them, one basket after the other, and answered: twelve apples. Then the child asked for a story about
the river, the bridge and the old clock, and the model told it, and the clock struck seven, and the day was done.
"""


def write_text_side(folder: Path, n_vocab: int, add_bos: bool) -> None:
    """Write a byte-level BPE of at most 384 entries, its configuration and a ChatML template."""
    write_json(folder / "tokenizer.json", _byte_level_bpe(min(384, n_vocab), add_bos))
    names = {"bos_token": SPECIAL_TOKENS[1], "eos_token": SPECIAL_TOKENS[2]}
    write_json(folder / "tokenizer_config.json", names | {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(folder / "special_tokens_map.json", names)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 0], "do_sample": False})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _byte_level_bpe(rows: int, add_bos: bool) -> dict[str, Any]:
    """A tokenizer in SmolLM2's structure: three special tokens, 256 bytes, and merges learnt from the corpus."""
    alphabet = _byte_alphabet()
    merges = _learn_merges(rows - len(SPECIAL_TOKENS) - len(alphabet))
    entries = [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in merges)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bos = SPECIAL_TOKENS[1]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}},
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": text, **flags} for id, text in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": template if add_bos else None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: id for id, text in enumerate(entries)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins of the 256 bytes: a byte that prints stands for itself, the others follow U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _learn_merges(count: int) -> list[tuple[str, str]]:
    words = Counter(re.findall(r" ?[A-Za-z]+", _CORPUS.replace("\n", " ")))
    split = {word: list(word.replace(" ", "Ġ")) for word in words}
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in split.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = {word: _merge(pieces, best) for word, pieces in split.items()}
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
