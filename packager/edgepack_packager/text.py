"""The text side of a source: its tokenizer, when it adds BOS, which tokens end a turn, its template and its defaults.

Everything is read from the files that the source has; nothing is looked up by a model's name. It does not tokenise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgepack.decoder import Decoder
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack.manifest import Generation, Stop
from edgepack_packager.checkpoint import CONFIG
from edgepack_packager.strictjson import parse_object, read_bytes
from edgepack_packager.targets import Text

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"

_CARRIED = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, GENERATION, TEMPLATE)
_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "tekken.json")

# What templates write after a turn. A model that was trained with such a template ends its own turn with it too, but
# not every source's configuration says so.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>")


def read_text(folder: Path, config: Mapping[str, Any], decoder: Decoder) -> Text | None:
    """Return the text side of the source in ``folder``, None where it has no tokenizer at all.

    Raises ``SourceError`` where a file is damaged, a tokenizer is there in another format only, or a token has no row
    in the embedding; ``UnsupportedModelError`` for a tokenizer that adds more than BOS to a text.
    """
    files = {name: read_bytes(folder / name) for name in _CARRIED if (folder / name).exists()}
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
    check_rows(tokens, decoder)
    ids = {text: id for id, text in tokens.items()}
    bos = _bos(files, config, ids)
    add_bos = _adds_bos(files, tokenizer, bos)
    stop_ids = tuple(stop.id for stop in _stops(files, config, tokenizer))
    return Text(files, tokenizer, bos, add_bos, stop_ids, template)


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


def check_rows(tokens: Mapping[int, str], decoder: Decoder) -> None:
    """Raise ``SourceError`` where a token id has no row in the embedding. More rows than tokens are allowed."""
    last = max(tokens)
    if last >= decoder.n_vocab:
        raise SourceError(
            f"{TOKENIZER} does not belong to the model: the token {tokens[last]!r} has the id {last}, "
            f"the embedding has {decoder.n_vocab} rows.",
            hint="Fetch the tokenizer and the weights from the same revision.",
        )


def stops(text: Text, config: Mapping[str, Any]) -> list[Stop]:
    """Return the tokens that end a turn, by ascending id, each with the source files that say so."""
    return _stops(text.files, config, text.tokenizer)


def generation(text: Text) -> Generation:
    """Return the source's defaults of generation: what generation_config.json says, greedy where it does not sample.

    Raises ``SourceError`` for a value out of range.
    """
    config = _parsed(text.files, GENERATION)
    plain = Generation()
    penalty = _number(config, "repetition_penalty", plain.repetition_penalty, 0, math.inf)
    limit = config.get("max_new_tokens")
    if limit is None:
        limit = plain.max_tokens
    if type(limit) is not int or limit <= 0:
        raise SourceError(f"{GENERATION}: max_new_tokens must be a whole number above 0, not {limit!r}.")
    samples = config.get("do_sample") or False
    if not isinstance(samples, bool):
        raise SourceError(f"{GENERATION}: do_sample must be true or false, not {samples!r}.")
    if not samples:
        return Generation(repetition_penalty=penalty, max_tokens=limit)
    top_k = config.get("top_k") or plain.top_k
    if type(top_k) is not int or top_k < 0:
        raise SourceError(f"{GENERATION}: top_k must be a whole number, not {top_k!r}.")
    return Generation(
        # A temperature of 1 is what sampling without one means.
        temperature=_number(config, "temperature", 1.0, 0, math.inf),
        top_p=_number(config, "top_p", plain.top_p, 0, 1),
        top_k=top_k,
        min_p=_number(config, "min_p", plain.min_p, 0, 1),
        repetition_penalty=penalty,
        max_tokens=limit,
    )


def _stops(files: Mapping[str, bytes], config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> list[Stop]:
    tokens = entries(tokenizer)
    sources: dict[int, list[str]] = {}
    for place, id in _said_stops(files, config, tokenizer, {text: id for id, text in tokens.items()}):
        if id not in tokens:
            raise SourceError(f"{place}: the stop token {id!r} is not in {TOKENIZER}.")
        said = sources.setdefault(id, [])
        if place not in said:
            said.append(place)
    return [Stop(id=id, text=tokens[id], sources=sources[id]) for id in sorted(sources)]


def _said_stops(
    files: Mapping[str, bytes], config: Mapping[str, Any], tokenizer: Mapping[str, Any], ids: Mapping[str, int]
) -> Iterator[tuple[str, Any]]:
    """Yield (file, token id) for everything that says which token ends a turn."""
    for place, said in ((CONFIG, config), (GENERATION, _parsed(files, GENERATION))):
        eos = said.get("eos_token_id")
        for id in eos if isinstance(eos, list) else [eos]:
            if id is not None:
                yield place, id
    name = _token_name(_parsed(files, TOKENIZER_CONFIG), "eos_token", TOKENIZER_CONFIG)
    if name is not None:
        yield TOKENIZER_CONFIG, ids.get(name, name)
    template = files.get(TEMPLATE, b"").decode()
    for token in tokenizer.get("added_tokens") or []:
        if token.get("special") and token["content"] in _TURN_ENDS and token["content"] in template:
            yield TEMPLATE, token["id"]


def _bos(files: Mapping[str, bytes], config: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    """The BOS token: as the tokenizer's configuration names it, else as config.json numbers it."""
    for place in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        said = _parsed(files, place)
        if "bos_token" in said:
            name = _token_name(said, "bos_token", place)
            if name is not None and name not in ids:
                raise SourceError(f"{place}: bos_token, {name!r}, is not in {TOKENIZER}.")
            return None if name is None else ids[name]
    id = config.get("bos_token_id")
    if id is not None and id not in ids.values():
        raise SourceError(f"{CONFIG}: bos_token_id, {id!r}, is not in {TOKENIZER}.")
    return id


def _adds_bos(files: Mapping[str, bytes], tokenizer: Mapping[str, Any], bos: int | None) -> bool:
    """Whether a text starts with BOS: as the tokenizer's configuration says, else as its post-processor does."""
    before = _added_before(tokenizer)
    said = _parsed(files, TOKENIZER_CONFIG).get("add_bos_token")
    adds = bool(before) if said is None else said
    if not isinstance(adds, bool):
        raise SourceError(f"{TOKENIZER_CONFIG}: add_bos_token must be true or false, not {adds!r}.")
    if adds and bos is None:
        raise SourceError(f"{TOKENIZER_CONFIG} has no bos_token, but the tokenizer starts a text with one.")
    if before not in ([], [bos]):
        raise UnsupportedModelError(
            f"{TOKENIZER}: the post-processor starts a text with the ids {before}, not with BOS."
        )
    return adds


def _added_before(tokenizer: Mapping[str, Any]) -> list[int]:
    """The ids that the post-processor puts before a text. Raises ``UnsupportedModelError`` where it adds others."""
    processor = tokenizer.get("post_processor") or {}
    before: list[int] = []
    for step in processor.get("processors", []) if processor.get("type") == "Sequence" else [processor]:
        if step.get("type") in (None, "ByteLevel"):
            continue
        if step["type"] != "TemplateProcessing":
            raise UnsupportedModelError(f"{TOKENIZER}: the post-processor {step['type']} is not built.")
        template = step["single"]
        place = next(index for index, piece in enumerate(template) if "Sequence" in piece)
        if len(template) > place + 1:
            raise UnsupportedModelError(f"{TOKENIZER}: the post-processor adds a token after a text.")
        for piece in template[:place]:
            before += step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return before


def _chat_template(folder: Path, files: Mapping[str, bytes]) -> str | None:
    """The template: from its own file, else from the JSON files that older tools put it in."""
    if TEMPLATE in files:
        try:
            return files[TEMPLATE].decode()
        except UnicodeDecodeError:
            raise SourceError(f"{folder / TEMPLATE} is not UTF-8.", hint="Fetch the file again.") from None
    places = [(TOKENIZER_CONFIG, _parsed(files, TOKENIZER_CONFIG))]
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


def _token_name(said: Mapping[str, Any], key: str, place: str) -> str | None:
    value = said.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise SourceError(f"{place}: {key} must be text, not {value!r}.")
    return value


def _number(config: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not least <= value <= most or math.isinf(value):
        raise SourceError(f"{GENERATION}: {name} is out of range: {value!r}.")
    return float(value)


def _parsed(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_object(files[name], name) if name in files else {}
