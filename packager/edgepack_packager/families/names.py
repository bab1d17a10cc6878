"""The names of a checkpoint's tensors without what was around the model when it was saved."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from edgepack.errors import SourceError

# torch.compile, FSDP and activation checkpointing wrap any module of a model; DDP and DeepSpeed wrap the whole.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.")

# What a model's own body is called in it, and is not called where it was saved alone.
_BODY = "model."


def unwrapped(name: str) -> str:
    """Return the name of a tensor without what wrapped the model, or modules of it."""
    return _WRAPPERS.sub("", name)


def plain(stored: Collection[str], known: Collection[str]) -> dict[str, str]:
    """Return the stored names by their plain ones.

    Left out are wrappers' names, and the beginning, such as ``base_model.model.`` or ``llm.``, without which the most
    names become ``known`` ones, be it of all tensors or of some. Raises ``SourceError`` where two names become one.
    """
    names = _renamed({name: unwrapped(name) for name in stored})
    beginning = max(_beginnings(names, known), key=lambda each: (_hits(names, each, known), -len(each)))
    if beginning:
        return _renamed({names[name]: name.removeprefix(beginning) for name in names})
    alone = {names[name]: _BODY + name if _BODY + name in known else name for name in names}
    return _renamed(alone) if sum(name in known for name in alone.values()) > _hits(names, "", known) else names


def _beginnings(names: Collection[str], known: Collection[str]) -> set[str]:
    """Return what stands before a known name that has one of each model: those of its embedding and its last norm."""
    ends = [each for each in known if each.endswith(("embed_tokens.weight", ".norm.weight"))]
    return {"", *(name[: -len(end)] for name in names for end in ends if name.endswith(f".{end}"))}


def _hits(names: Collection[str], beginning: str, known: Collection[str]) -> int:
    return sum(name.removeprefix(beginning) in known for name in names)


def _renamed(names: Mapping[str, str]) -> dict[str, str]:
    """Return old names by new ones, given the new by the old. Raises ``SourceError`` where two have the same."""
    found: dict[str, str] = {}
    for old, new in names.items():
        if other := found.get(new):
            raise SourceError(
                f"The weights have both {other} and {old}, which are the same tensor {new}.",
                hint="Save the model again without its wrapper, or remove the ones that are out of date.",
            )
        found[new] = old
    return found
