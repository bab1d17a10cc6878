"""What llama.cpp's tokenizer is known to do otherwise, as rules over a vocabulary's structure."""

from __future__ import annotations

import pytest

from edgepack_runtimes.gguf.differences import Differences

RUNS = {"added_tokens": [{"content": "\u2581\u2581"}, {"content": "\u2581\u2581\u2581"}]}
OVERLAP = {"added_tokens": [{"content": "ab"}, {"content": "bcd"}, {"content": "<s>", "special": True}]}
END = {"added_tokens": [{"content": "<|eom_id|>"}]}

KNOWN: list[tuple[dict[str, object], str, str, bool, str | None]] = [
    ({"normalizer": {"type": "NFC"}}, "gpt2", "e\u0301", False, "NFC"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}}, "gpt2", "e\u0301", True, "NFC"),
    ({"normalizer": {"type": "NFC"}}, "gpt2", "\u00e9", False, None),
    ({"normalizer": None}, "gpt2", "e\u0301", False, None),
    (END, "gpt2", "a<|eom_id|>", False, "by its name"),
    (END, "gpt2", "a<|eom_id|>", True, None),
    ({"added_tokens": [{"content": "<|eom_id|>", "special": True}]}, "gpt2", "a<|eom_id|>", False, None),
    ({"added_tokens": [{"content": "<think>"}]}, "gpt2", "a<think>", False, None),
    ({"pre_tokenizer": {"type": "Metaspace"}}, "llama", " a", False, "a space before a text"),
    ({"pre_tokenizer": {"type": "Metaspace"}}, "llama", "a", False, None),
    ({"pre_tokenizer": {"type": "ByteLevel"}}, "gpt2", " a", False, None),
    # Spaces are no U+2581 before llama.cpp has made them so; byte-level tokens that hold one are found as they are.
    (RUNS, "llama", "x \u2581\u2581 y", False, "as a space"),
    (RUNS, "llama", "x    y", False, None),
    (RUNS, "llama", "x \u2581 y", False, None),
    (RUNS, "gpt2", "x \u2581\u2581 y", False, None),
    (OVERLAP, "gpt2", "abcd", False, "overlapping"),
    (OVERLAP, "gpt2", "ab bcd", False, None),
    (OVERLAP, "gpt2", "ab<s>cd", True, None),
]


@pytest.mark.parametrize(("tokenizer", "model", "text", "special", "reason"), KNOWN)
def test_a_rule_explains_what_it_is_about_and_nothing_else(
    tokenizer: dict[str, object], model: str, text: str, special: bool, reason: str | None
) -> None:
    found = Differences(tokenizer, model, "default").explain(text, special=special)
    assert found is None if reason is None else reason in (found or "")
