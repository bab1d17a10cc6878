"""What of a tokenizer.json comes before the merges, as a ``Front``, where all of it is known here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgepack.text.added import SPACES, Added
from edgepack.text.expressions import Alphabet, Reader, Unknown, asked_of, settled
from edgepack.text.letters import CHARACTER_OF
from edgepack.text.splitting import Change, Item, Step
from edgepack.text.words import Front, Words

_SPACE = "\u2581"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel splits by (OpenAI's GPT-2, encoder.py)."""

_KEEPS: Mapping[tuple[str, bool], str] = {
    ("Isolated", False): "all",
    ("Isolated", True): "all",
    ("Removed", False): "between",
    ("Removed", True): "found",
    ("MergedWithPrevious", False): "before",
    ("MergedWithNext", False): "after",
}


def front_of(document: Mapping[str, Any], id_of: Mapping[str, int], *, splits: bool) -> Front | None:
    """Return the front of a parsed tokenizer.json that the library reads, None where it does what is not known here.

    ``id_of``: the ids of all tokens; ``splits`` says that no merge reaches over the beginning of a "▁".
    """
    try:
        front = _front(document, id_of, splits)
        Words(front)
    except (Unknown, ValueError):
        return None
    return front


def _front(document: Mapping[str, Any], id_of: Mapping[str, int], splits: bool) -> Front:
    alphabet = Alphabet()
    changes = list(_changes(document.get("normalizer")))
    before: list[Change] = []
    steps: list[Step] = []
    byte_level = False
    for place, each in enumerate(_flat(document.get("pre_tokenizer"), "pretokenizers")):
        if byte_level or (each["type"] == "Metaspace" and place):
            raise Unknown("a step after the last")
        if each["type"] == "Metaspace":
            before, more = _metaspace(each, alphabet)
            steps += more
        elif each["type"] == "ByteLevel":
            byte_level = True
            if each.get("add_prefix_space", True):
                raise Unknown("a space in front")
            if each.get("use_regex", True):
                steps.append(Step(Reader(_GPT2, alphabet).read()))
        else:
            steps.append(_step(each, alphabet))
    if splits and not byte_level:
        space = alphabet.part((ord(_SPACE), ord(_SPACE) + 1))
        other = alphabet.part((0, ord(_SPACE), ord(_SPACE) + 1, 0x110000))
        steps.append(Step([[Item(space, 0, 0), Item(other, 1, 0)], [Item(space, 1, 0)]]))
    starts, symbols, parts = alphabet.classes()
    letters, of_bytes = _letters(document["model"], id_of, byte_level)
    added, normalized = _added(document, id_of, changes)
    return Front(
        added=added,
        normalized=normalized,
        changes=changes,
        before=before,
        steps=[settled(step, parts) for step in steps],
        starts=memoryview(np.asarray(starts, "<u4").tobytes()).cast("I"),
        symbols=symbols,
        letters=letters,
        bytes=of_bytes,
    )


def _flat(step: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    if step is not None and step["type"] == "Sequence":
        for each in step[inner]:
            yield from _flat(each, inner)
    elif step is not None:
        yield step


def _changes(normalizer: Mapping[str, Any] | None) -> Iterator[Change]:
    for each in _flat(normalizer, "normalizers"):
        if each["type"] == "NFC":
            yield Change("nfc")
        elif each["type"] == "Prepend":
            yield Change("prepend", new=each["prepend"])
        elif each["type"] == "Replace" and each["pattern"].get("String"):
            yield Change("replace", each["pattern"]["String"], each["content"])
        else:
            raise Unknown(f"the normalizer {each['type']}")


def _step(each: Mapping[str, Any], alphabet: Alphabet) -> Step:
    kind = each["type"]
    if kind == "Digits":
        return Step([[Item(alphabet.part(asked_of(kind)), 1, 1 if each["individual_digits"] else 0)]])
    if kind == "Punctuation" and each["behavior"] == "Isolated":
        return Step([[Item(alphabet.part(asked_of(kind)))]])
    keeps = _KEEPS.get((each["behavior"], each["invert"])) if kind == "Split" else None
    if keeps is None:
        raise Unknown(f"the pre-tokenizer {kind}")
    literal = each["pattern"].get("String")
    choices = _literal(literal, alphabet) if literal else Reader(each["pattern"]["Regex"], alphabet).read()
    return Step(choices, keeps)  # type: ignore[arg-type]


def _literal(text: str, alphabet: Alphabet) -> list[list[Item]]:
    return [[Item(alphabet.part((ord(letter), ord(letter) + 1))) for letter in text]]


def _metaspace(each: Mapping[str, Any], alphabet: Alphabet) -> tuple[list[Change], list[Step]]:
    letter = each["replacement"]
    changes = [Change("replace", " ", letter)]
    if each["prepend_scheme"] != "never":
        changes.append(Change({"always": "begin", "first": "open"}[each["prepend_scheme"]], new=letter))  # type: ignore[arg-type]
    return changes, [Step(_literal(letter, alphabet), "after")] if each["split"] else []


def _letters(model: Mapping[str, Any], id_of: Mapping[str, int], byte_level: bool) -> tuple[dict[str, int], list[int]]:
    """Return the tokens of single characters and of bytes. What has neither becomes nothing, or an unknown token."""
    vocab = model["vocab"]
    names = [CHARACTER_OF[byte] if byte_level else f"<0x{byte:02X}>" for byte in range(256)]
    found = [id_of[name] if name in vocab else -1 for name in names]
    whole = -1 not in found
    if byte_level:
        if not whole and (model.get("unk_token") in vocab or model.get("ignore_merges") or model.get("byte_fallback")):
            raise Unknown("bytes without a token")
        return {}, found
    if not whole or not model.get("byte_fallback"):
        raise Unknown("characters without a token")
    return {letter: id_of[letter] for letter in vocab if len(letter) == 1}, found


def _added(
    document: Mapping[str, Any], id_of: Mapping[str, int], changes: list[Change]
) -> tuple[list[Added], list[Added]]:
    """Return the added tokens that are looked for in a text, and those in what the changes make of it."""
    found: tuple[list[Added], list[Added]] = [], []
    for token in document.get("added_tokens") or []:
        name, normalized = token["content"], token["normalized"]
        flags = token["lstrip"], token["rstrip"]
        if token["single_word"] or (any(flags) and (name[:1] in SPACES or name[-1:] in SPACES)):
            raise Unknown("a token that is a word of its own")
        if normalized and changes:
            if token["special"]:
                raise Unknown("a special token that is looked for in what a text is changed to")
            for change in changes:
                name = change.of(name, True)
        found[normalized].append(Added(name, id_of[token["content"]], token["special"], *flags))
    return found
