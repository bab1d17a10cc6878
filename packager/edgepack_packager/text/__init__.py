"""The text side of a source: its tokenizer, when it adds BOS, which tokens end a turn, its template and its defaults.

Everything is read from the files that the source has; nothing is looked up by a model's name. It does not tokenise.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Stop
from edgepack.errors import SourceError
from edgepack.text.opening import special_tokens
from edgepack_packager.checkpoint.strictjson import parse_object, read_bytes
from edgepack_packager.text import bos, endings, rows, templates
from edgepack_packager.text.battery import DAY
from edgepack_packager.text.defaults import generation as generation
from edgepack_packager.text.files import (
    CARRIED,
    SPECIAL_TOKENS,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOOL_USE,
    parsed,
    token_name,
)
from edgepack_packager.text.render import Rendered, battery, check_user
from edgepack_packager.text.side import Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "tekken.json")


def read_text(
    folder: Path, config: Mapping[str, Any], decoder: Decoder, chat: bool = True, *, embeds: bool = False
) -> Text | None:
    """Return the text side of the source in ``folder``, None where it has no tokenizer at all.

    Without ``chat`` its templates are neither read nor carried. Where it ``embeds``, a text ends as the tokenizer says.

    Raises ``SourceError`` where a file is damaged, a tokenizer is there in another format only, or a token has no row
    in the embedding; ``UnsupportedModelError`` for a tokenizer that adds more than BOS before a text.
    """
    # No reader of a bundle expects the byte order mark that editors on Windows write.
    files = {name: read_bytes(folder / name).removeprefix(BOM_UTF8) for name in CARRIED if (folder / name).exists()}
    if TOKENIZER not in files:
        if other := [name for name in _OTHER_TOKENIZERS if (folder / name).exists()]:
            raise SourceError(
                f"{folder} has {other[0]} but no {TOKENIZER}.",
                hint="Make it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
            )
        return None
    for name in files.keys() & {TOKENIZER_CONFIG, SPECIAL_TOKENS}:
        for token in ("bos_token", "eos_token"):
            token_name(parsed(files, name), token, name)
    found = templates.find(folder, files) if chat else templates.Templates()
    files.pop(TEMPLATE, None)
    files |= {
        name: source.encode()
        for name, source in ((TEMPLATE, found.default), (TOOL_USE, found.tool_use))
        if source is not None
    }
    tokenizer = parse_object(files[TOKENIZER], str(folder / TOKENIZER))
    rows.check_ids(tokenizer, _loaded(files[TOKENIZER], folder / TOKENIZER))
    tokens = entries(tokenizer)
    begin = bos.find(files, config, {text: id for id, text in tokens.items()})
    add_bos, after = bos.added(tokenizer, begin)
    notes = [_unused_end([tokens.get(id, str(id)) for id in after])] if after and not embeds else []
    notes += endings.unknown(files, config, tokens)
    text = Text(files, tokenizer, begin, add_bos, (), *astuple(found))
    ends = tuple(stop.id for stop in stops(text, config))
    if not ends and not embeds:
        notes.append("No file of the source names a token that ends a turn: an answer ends at its limit of tokens.")
    text = replace(text, stops=ends, notes=tuple(notes), ends=tuple(after) if embeds else ())
    return rows.without_rowless(text, tokens, decoder.n_vocab)


def rendered(text: Text, day: str = DAY) -> Rendered | None:
    """Return what the chat template makes of the battery, None without a template.

    Raises ``SourceError`` for a template that does not compile, takes too much time or memory, or cannot even print
    one message of a user.
    """
    if text.chat_template is None:
        return None
    found = _rendered(text, text.chat_template, day, TEMPLATE)
    check_user(found, TEMPLATE)
    return found


def rendered_with_tools(text: Text, day: str = DAY) -> Rendered | None:
    """Return what the template for tools makes of the battery, None without one.

    Raises as ``rendered``, but not for a message of a user that it cannot print.
    """
    return None if text.tool_use is None else _rendered(text, text.tool_use, day, TOOL_USE)


def _rendered(text: Text, source: str, day: str, file: str) -> Rendered:
    names = special_tokens([text.files[name] for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS) if name in text.files])
    return battery(source, *names, day, file, tuple(text.names(special=True)))


def warnings(text: Text) -> list[str]:
    """Return what whoever builds should know of the templates: those that are left out, and roles that are silent."""
    found = []
    if text.left_out:
        names = ", ".join(map(repr, text.left_out))
        found.append(f"The source's chat templates {names} are left out: a bundle holds the default and tool_use.")
    for file, each in ((TEMPLATE, rendered(text)), (TOOL_USE, rendered_with_tools(text))):
        for role, place in each.arrival.lost.items() if each else ():
            found.append(f"{file} does not print what a {role!r} says ({place}): chat refuses such messages.")
    return found


def stops(text: Text, config: Mapping[str, Any]) -> list[Stop]:
    """Return the tokens that end a turn, by ascending id, each with the source files that say so."""
    found = rendered(text), rendered_with_tools(text)
    return endings.find(text.files, config, text.tokenizer, entries(text.tokenizer), *found)


def entries(tokenizer: Mapping[str, Any]) -> dict[int, str]:
    """Return the token of every id that a parsed tokenizer.json knows, by ascending id, added tokens included.

    Raises ``SourceError`` where an id has two texts.
    """
    tokens: dict[int, str] = {}
    for text, id in _pairs(tokenizer):
        if tokens.setdefault(id, text) != text:
            raise SourceError(f"{TOKENIZER}: the id {id} stands for {tokens[id]!r} and for {text!r}.")
    if not tokens:
        raise SourceError(f"{TOKENIZER} has no tokens.", hint="Fetch the file again.")
    return dict(sorted(tokens.items()))


def _unused_end(tokens: Sequence[str]) -> str:
    return f"{TOKENIZER} ends each text with {' '.join(tokens)}, which no prompt is to end with: it is left out."


def _loaded(data: bytes, path: Path) -> Tokenizer:
    """Return the file as the library that devices use reads it, which settles its structure. Raises ``SourceError``."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(data)
    except BaseException as error:  # the library raises nothing narrower, and a panic in it is no Exception
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise SourceError(f"{path} is not a tokenizer: {error}.", hint="Fetch the file again.") from None


def _pairs(tokenizer: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, dict):
        yield from vocab.items()
    else:
        # A unigram model lists [token, score]; the id is the place.
        yield from ((item[0], id) for id, item in enumerate(vocab))
    yield from ((token["content"], token["id"]) for token in tokenizer.get("added_tokens") or [])
