"""What a checkpoint's own files say of how it embeds: those that sentence-transformers writes beside a model.

``modules.json`` lists what a text goes through: the model, the pooling, a norm. Whatever is not understood is refused
by its name: an embedding of another pooling is no embedding of this model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

from edgepack.bundle.embedding import Dense, Embedding, Pooling, Similarity
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.checkpoint.safetensors import SafetensorsFile
from edgepack_packager.checkpoint.strictjson import parse, read_bytes, read_object
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.text.files import TOKENIZER_CONFIG

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_ORDER = re.compile(r"Transformer Pooling( Dense)*( Normalize)?")
_POOLINGS: Mapping[str, Pooling] = {
    "lasttoken": "last",
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "first",
    "cls_token": "first",
}
# What sentence-transformers 6 says of a model whose last states are pooled.
_STATES: Mapping[str, object] = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}
_OF_OTHER_PROGRAMS = frozenset({"__version__", "model_type"})
_HINT = "Build it as it is published, or with a file that says what edgepack knows."


def found(folder: Path) -> bool:
    """Return whether a source says that it embeds."""
    return (folder / MODULES).is_file()


def longest(folder: Path) -> int | None:
    """Return the most tokens of a text that sentence-transformers would read, None where no file sets a limit.

    Raises ``UnsupportedModelError`` for what else it would do to a text.
    """
    said = {name: value for name, value in _optional(folder, TRANSFORMER).items() if value != _STATES.get(name)}
    limit, lower = said.pop("max_seq_length", None), said.pop("do_lower_case", False)
    if lower not in (False, None):
        raise _unknown(TRANSFORMER, "do_lower_case", lower)
    _nothing_else(said, TRANSFORMER)
    place = (TRANSFORMER, "max_seq_length")
    if limit is None:
        place = (TOKENIZER_CONFIG, "model_max_length")
        limit = _optional(folder, TOKENIZER_CONFIG).get("model_max_length")
    if limit is not None and (type(limit) not in (int, float) or not 1 <= limit < math.inf):
        raise _wrong(*place, limit, "a number of tokens")
    return None if limit is None else int(limit)


def read(folder: Path, hidden_size: int, ends: tuple[int, ...]) -> tuple[Embedding, list[Float32]]:
    """Return what the files of a source that embeds say, and its dense matrices: float32 [rows, columns].

    ``ends`` are the tokens that its tokenizer ends a text with.

    Raises ``SourceError`` for a file that is missing or damaged, ``UnsupportedModelError`` for what is not built.
    """
    modules = _modules(folder)
    pooling = _pooling(folder / modules[1][1] / CONFIG, hidden_size)
    dense = [_dense(folder / place) for kind, place in modules if kind == "Dense"]
    for kind, place in modules:
        if kind == "Normalize":
            _nothing_else(_of_a_vector(_optional(folder / place, CONFIG)), f"{place}/{CONFIG}")
    said = {name: value for name, value in _optional(folder, SETTINGS).items() if name not in _OF_OTHER_PROGRAMS}
    prompts, default = said.pop("prompts", None) or {}, said.pop("default_prompt_name", None)
    similarity = said.pop("similarity_fn_name", None) or "cosine"
    _nothing_else(said, SETTINGS)
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise _wrong(SETTINGS, "prompts", prompts, "texts by their names")
    if default is not None and default not in prompts:
        raise _wrong(SETTINGS, "default_prompt_name", default, "one of the prompts")
    known: tuple[Similarity, ...] = get_args(Similarity)
    chosen = next((each for each in known if each == similarity), None)
    if chosen is None:
        raise _unknown(SETTINGS, "similarity_fn_name", similarity)
    found = Embedding(
        pooling=pooling,
        size=len(dense[-1]) if dense else hidden_size,
        normalized=modules[-1][0] == "Normalize",
        ends=list(ends),
        prompts=prompts,
        default_prompt=default,
        similarity=chosen,
        dense=[Dense(rows=len(each), columns=each.shape[1]) for each in dense],
    )
    return found, dense


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return the kind of each module, the last part of its class's name, and its folder, in their order."""
    listed = parse(read_bytes(folder / MODULES), str(folder / MODULES))
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise SourceError(f"{MODULES} holds no list of modules.", hint="Fetch the file again.")
    kinds = [str(each.get("type")) for each in listed]
    names = [kind.rpartition(".")[2] for kind in kinds if kind.startswith("sentence_transformers.")]
    if len(names) < len(kinds) or not _ORDER.fullmatch(" ".join(names)):
        raise UnsupportedModelError(
            f"{MODULES} lists {', '.join(kinds) or 'no module'}; built are a Transformer, a Pooling, "
            "any number of Dense, and a Normalize.",
            hint=_HINT,
        )
    places = [each.get("path") for each in listed]
    if places[0] != "":
        raise _unknown(MODULES, "the path of the Transformer", places[0])
    for name, place in zip(names[1:], places[1:], strict=True):
        if not isinstance(place, str) or not re.fullmatch(r"\w[\w.-]*", place):
            raise _wrong(MODULES, f"the path of the {name}", place, "the name of a folder")
    return [(name, str(place)) for name, place in zip(names, places, strict=True)]


def _pooling(path: Path, hidden_size: int) -> Pooling:
    said, place = read_object(path), f"{path.parent.name}/{path.name}"
    size = said.pop("word_embedding_dimension", said.pop("embedding_dimension", None))
    if size != hidden_size:
        raise _wrong(place, "word_embedding_dimension", size, f"the hidden size, {hidden_size}")
    if said.pop("include_prompt", True) is not True:
        raise _unknown(place, "include_prompt", False)
    flags = {name.removeprefix("pooling_mode_"): said.pop(name) for name in [*said] if name.startswith("pooling_mode_")}
    modes = [name for name, asked in flags.items() if asked is not False]
    if (named := said.pop("pooling_mode", None)) is not None:
        modes.append(str(named))
    _nothing_else(said, place)
    if len(modes) != 1 or modes[0] not in _POOLINGS or flags.get(modes[0], True) is not True:
        raise UnsupportedModelError(
            f"{place} pools by {' and '.join(modes) or 'nothing'}; edgepack builds one of lasttoken, mean and cls.",
            hint=_HINT,
        )
    return _POOLINGS[modes[0]]


def _dense(folder: Path) -> Float32:
    """Return the matrix of a Dense without bias and activation: float32 [out, in]."""
    said, place = read_object(folder / CONFIG), f"{folder.name}/{CONFIG}"
    shape = said.pop("out_features", None), said.pop("in_features", None)
    if said.pop("bias", True) is not False:
        raise _unknown(place, "bias", True)
    if str(activation := said.pop("activation_function", None)).rpartition(".")[2] != "Identity":
        raise _unknown(place, "activation_function", activation)
    _nothing_else(_of_a_vector(said), place)
    with closing(SafetensorsFile(folder / WEIGHTS)) as file:
        shapes = {name: entry.shape for name, entry in file.entries.items()}
        if shapes != {"linear.weight": shape}:
            raise _wrong(f"{folder.name}/{WEIGHTS}", "its tensors", shapes, f"linear.weight of {shape}")
        return file.rows("linear.weight", 0, shapes["linear.weight"][0])


def _of_a_vector(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file of a module says beside this: it takes the vector of the text, and gives it back."""
    ours = ("module_input_name", "sentence_embedding"), ("module_output_name", "sentence_embedding")
    return {name: value for name, value in said.items() if (name, value) not in ours}


def _optional(folder: Path, name: str) -> dict[str, Any]:
    return read_object(folder / name) if (folder / name).is_file() else {}


def _nothing_else(said: Mapping[str, Any], place: str) -> None:
    """Refuse a field that is left, and says anything."""
    for name, value in said.items():
        if value is not None:
            raise _unknown(place, name, value)


def _unknown(place: str, name: str, value: object) -> UnsupportedModelError:
    return UnsupportedModelError(f"{place}: {name} is {value!r}, which edgepack does not build.", hint=_HINT)


def _wrong(place: str, name: str, value: object, wanted: str) -> SourceError:
    return SourceError(f"{place}: {name} is {value!r}, and not {wanted}.", hint="Fetch the file again.")
