"""The text side of a source: its tokenizer, when it adds BOS, which tokens end a turn, its template and its defaults.

Everything is read from the files that the source has; nothing is looked up by a model's name. It does not tokenise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Stop
from edgepack.errors import SourceError
from edgepack.text.opening import special_tokens
from edgepack_packager.checkpoint.strictjson import parse_object, read_bytes
from edgepack_packager.text import bos, endings
from edgepack_packager.text.battery import CONVERSATIONS, DAY
from edgepack_packager.text.defaults import generation as generation
from edgepack_packager.text.files import (
    CARRIED,
    SPECIAL_TOKENS,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    parsed,
)
from edgepack_packager.text.render import Rendered, battery
from edgepack_packager.text.side import Text

_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "tekken.json")


def read_text(folder: Path, config: Mapping[str, Any], decoder: Decoder) -> Text | None:
    """Return the text side of the source in ``folder``, None where it has no tokenizer at all.

    Raises ``SourceError`` where a file is damaged, a tokenizer is there in another format only, or a token has no row
    in the embedding; ``UnsupportedModelError`` for a tokenizer that adds more than BOS to a text.
    """
    files = {name: read_bytes(folder / name) for name in CARRIED if (folder / name).exists()}
    if TOKENIZER not in files:
        if other := [name for name in _OTHER_TOKENIZERS if (folder / name).exists()]:
            raise SourceError(
                f"{folder} has {other[0]} but no {TOKENIZER}.",
                hint="Make it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
            )
        return None
    template = _chat_template(folder, files)
    if template is not None:
        files[TEMPLATE] = template.encode()
    tokenizer = parse_object(files[TOKENIZER], str(folder / TOKENIZER))
    _check_loads(files[TOKENIZER], folder / TOKENIZER)
    tokens = entries(tokenizer)
    begin = bos.find(files, config, {text: id for id, text in tokens.items()})
    text = Text(files, tokenizer, begin, bos.is_added(tokenizer, begin), (), template)
    text = replace(text, stops=tuple(stop.id for stop in stops(text, config)))
    _check_rows(text, tokens, decoder)
    return text


def rendered(text: Text, day: str = DAY) -> Rendered | None:
    """Return what the chat template makes of the battery, None without a template.

    Raises ``SourceError`` for a template that does not compile, takes too much time or memory, or cannot even print
    one message of a user.
    """
    if text.chat_template is None:
        return None
    names = special_tokens([text.files[name] for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS) if name in text.files])
    found = battery(text.chat_template, *names, day)
    if reason := found.answers[CONVERSATIONS[0].name].refusal:
        raise SourceError(
            f"{TEMPLATE} cannot print one message of a user: {reason}", hint="Remove it to build without chat."
        )
    return found


def stops(text: Text, config: Mapping[str, Any]) -> list[Stop]:
    """Return the tokens that end a turn, by ascending id, each with the source files that say so."""
    return endings.find(text.files, config, text.tokenizer, entries(text.tokenizer), rendered(text))


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


def _check_rows(text: Text, tokens: Mapping[int, str], decoder: Decoder) -> None:
    """Refuse a token without a row in the embedding; more rows than tokens are allowed.

    An added token may lack one where nothing needs it: Gemma 3 has a mark for images that its text models never see.
    """
    added = {token["id"] for token in text.tokenizer.get("added_tokens") or []}
    last = max({*tokens} - added | {*text.stops} | ({text.bos} if text.bos is not None else {0}))
    if last >= decoder.n_vocab:
        raise SourceError(
            f"{TOKENIZER} does not belong to the model: the token {tokens[last]!r} has the id {last}, "
            f"the embedding has {decoder.n_vocab} rows.",
            hint="Fetch the tokenizer and the weights from the same revision.",
        )


def _chat_template(folder: Path, files: Mapping[str, bytes]) -> str | None:
    """The template: from its own file, else from the JSON files that older tools put it in."""
    if TEMPLATE in files:
        try:
            return files[TEMPLATE].decode()
        except UnicodeDecodeError:
            raise SourceError(f"{folder / TEMPLATE} is not UTF-8.", hint="Fetch the file again.") from None
    places = [(TOKENIZER_CONFIG, parsed(files, TOKENIZER_CONFIG))]
    if (folder / "chat_template.json").exists():
        data = read_bytes(folder / "chat_template.json")
        places.insert(0, ("chat_template.json", parse_object(data, "chat_template.json")))
    for place, said in places:
        template = said.get("chat_template")
        if isinstance(template, list):
            template = _default_template(template, place)
        if template is not None:
            if not isinstance(template, str):
                raise SourceError(f"{place}: chat_template must be text or a list of named templates.")
            return template
    return None


def _default_template(templates: list[Any], place: str) -> Any:
    named = {item.get("name"): item.get("template") for item in templates if isinstance(item, dict)}
    if "default" not in named:
        raise SourceError(f"{place}: chat_template lists no template named 'default'.")
    return named["default"]


def _check_loads(data: bytes, path: Path) -> None:
    """Raise ``SourceError`` unless the library that devices use reads the file, which settles its structure."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing narrower
        raise SourceError(f"{path} is not a tokenizer: {error}.", hint="Fetch the file again.") from None


def _pairs(tokenizer: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, dict):
        yield from vocab.items()
    else:
        # A unigram model lists [token, score]; the id is the place.
        yield from ((item[0], id) for id, item in enumerate(vocab))
    yield from ((token["content"], token["id"]) for token in tokenizer.get("added_tokens") or [])
