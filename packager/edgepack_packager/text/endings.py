"""Which tokens end a turn: the union of what the source's files say and of what its chat template writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgepack.bundle.manifest import Stop
from edgepack.errors import SourceError
from edgepack_packager.checkpoint import CONFIG
from edgepack_packager.text.battery import ANSWER
from edgepack_packager.text.files import GENERATION, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, TOOL_USE, parsed, token_name
from edgepack_packager.text.render import Rendered


def find(
    files: Mapping[str, bytes],
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    tokens: Mapping[int, str],
    rendered: Rendered | None,
    with_tools: Rendered | None = None,
) -> list[Stop]:
    """Return the tokens that end a turn, by ascending id, each with the files that say so.

    ``rendered`` and ``with_tools`` are what the chat template and that for tools make of the battery. A token that the
    tokenizer does not have ends nothing; ``unknown`` names those. Raises ``SourceError`` for a value that is no token.
    """
    sources: dict[int, list[str]] = {}
    said = [
        *_configured(files, config, tokens),
        *((TEMPLATE, id) for id in _written(tokenizer, rendered)),
        *((TOOL_USE, id) for id in _written(tokenizer, with_tools)),
    ]
    for place, id in said:
        if isinstance(id, int) and id in tokens:
            places = sources.setdefault(id, [])
            if place not in places:
                places.append(place)
    return [Stop(id=id, text=tokens[id], sources=sources[id]) for id in sorted(sources)]


def unknown(files: Mapping[str, bytes], config: Mapping[str, Any], tokens: Mapping[int, str]) -> list[str]:
    """Return a sentence for each stop token that a file names and the tokenizer does not have."""
    missing = dict.fromkeys((place, id) for place, id in _configured(files, config, tokens) if id not in tokens)
    return [
        f"{place} names the stop token {id!r}, which {TOKENIZER} does not have: it is left out."
        for place, id in missing
    ]


def _configured(
    files: Mapping[str, bytes], config: Mapping[str, Any], tokens: Mapping[int, str]
) -> Iterator[tuple[str, int | str]]:
    """Yield what each file names, as the id, or as a text that no id has."""
    for place, said in ((CONFIG, config), (GENERATION, parsed(files, GENERATION))):
        eos = said.get("eos_token_id")
        for id in eos if isinstance(eos, list) else [eos]:
            if type(id) is int:
                yield place, id
            elif id is not None:
                raise SourceError(
                    f"{place}: eos_token_id must be the number of a token, or a list of them, not {eos!r}.",
                    hint="Correct or remove it.",
                )
    name = token_name(parsed(files, TOKENIZER_CONFIG), "eos_token", TOKENIZER_CONFIG)
    if name is not None:
        yield TOKENIZER_CONFIG, next((id for id, text in tokens.items() if text == name), name)


def _written(tokenizer: Mapping[str, Any], rendered: Rendered | None) -> Iterator[int]:
    """Yield the special token that the template writes after an answer.

    A model that was trained with the template ends its own turn so, but not every source's configuration says it.
    """
    last = rendered.answers.get("assistant last") if rendered else None
    if last is None or last.text is None:
        return
    _, answer, after = last.text.rpartition(ANSWER)
    special = [token for token in tokenizer.get("added_tokens") or [] if token.get("special")]
    ends = [token for token in special if answer and after.lstrip().startswith(token["content"])]
    if ends:
        yield max(ends, key=lambda token: len(token["content"]))["id"]
