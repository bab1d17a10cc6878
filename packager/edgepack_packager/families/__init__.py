"""Families turn a checkpoint into a decoder and its weights. A family is one module and one entry in ``FAMILIES``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from edgepack.bundle.decoder import Decoder
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.checkpoint import Checkpoint
from edgepack_packager.checkpoint.gguf.file import GgufCheckpoint
from edgepack_packager.families import (
    ernie4_5,
    exaone4,
    gemma,
    gemma2,
    gemma3,
    gemma4,
    granite,
    helium,
    hunyuan,
    lfm2,
    lfm3,
    llama,
    mapping,
    mistral,
    olmo,
    phi3,
    qwen2,
    qwen3,
    qwen3_5,
    seed_oss,
    smollm3,
    stablelm,
    unbuilt,
)
from edgepack_packager.families.gguf import GgufWeights
from edgepack_packager.families.mapping import Change, MappedWeights, Source, Stored


class Family(Protocol):
    """What a family's module defines."""

    @property
    def ARCHITECTURES(self) -> frozenset[str]:  # noqa: N802 - a constant of the module
        """The entries of config.json's ``architectures`` that the family builds."""
        ...

    @property
    def MODEL_TYPES(self) -> frozenset[str]:  # noqa: N802
        """The values of config.json's ``model_type`` that mean the family."""
        ...

    @property
    def IGNORED(self) -> str:  # noqa: N802
        """A pattern that matches the whole names of the tensors that a checkpoint may have and nobody reads."""
        ...

    @property
    def describe(self) -> Callable[[Mapping[str, Any], int | None], Decoder]:
        """Read config.json for a context, or for the longest that is exact from its first token on.

        Raises ``SourceError`` for a wrong field, ``UnsupportedModelError`` for one not built, ``UsageError`` for a
        context that the model does not have.
        """
        ...

    @property
    def source(self) -> Callable[[Decoder, str], Source]:
        """Say where the checkpoint keeps a canonical tensor."""
        ...


FAMILIES: tuple[Family, ...] = (
    llama,
    phi3,
    gemma,
    gemma2,
    gemma3,
    gemma4,
    qwen2,
    qwen3,
    smollm3,
    mistral,
    granite,
    olmo,
    exaone4,
    hunyuan,
    seed_oss,
    ernie4_5,
    helium,
    lfm2,
    lfm3,
    qwen3_5,
    stablelm,
)


def describe(config: Mapping[str, Any], context: int | None = None) -> Decoder:
    """Return the decoder that a config.json describes, for sequences of up to ``context`` tokens.

    Without a context: the longest for which one description is exact, which is the trained one but for models that
    rotate short and long sequences differently.

    Raises ``UnsupportedModelError`` for an architecture or a feature that is not built, ``SourceError`` for a field
    that is missing, wrong or contradicts another.
    """
    return bounded(find(config).describe(config, context))


def without_head(decoder: Decoder) -> Decoder:
    """Return a decoder that ends at its last norm, for a model that embeds."""
    return replace(decoder, headless=True, tied=True, logits_scale=1.0, logits_softcap=None)


def bounded(decoder: Decoder) -> Decoder:
    """Return a decoder that keeps the bounds which a bundle is read with. Raises ``UnsupportedModelError``."""
    try:
        return msgspec.convert(msgspec.to_builtins(decoder), Decoder)
    except msgspec.ValidationError as error:
        raise UnsupportedModelError(
            f"config.json describes a model that no bundle can hold: {error}.",
            hint="Fetch the model's own config.json.",
        ) from None


def notes(config: Mapping[str, Any]) -> list[str]:
    """Return what was read otherwise than a config.json says it, a sentence each."""
    names = config.get("architectures") or ["no class"]
    if {*names} <= find(config).ARCHITECTURES:
        return []
    return [f"config.json: architectures names {', '.join(names)}; the model_type {config['model_type']!r} decides."]


def stored(config: Mapping[str, Any], decoder: Decoder) -> Stored:
    """Return the tensors that a checkpoint with this config.json has, which describes that decoder."""
    family = find(config)
    return mapping.stored(decoder, family.source, family.IGNORED)


def open_model(
    checkpoint: Checkpoint | GgufCheckpoint,
    context: int | None = None,
    changes: Mapping[str, Change] = MappingProxyType({}),
    *,
    headless: bool = False,
) -> MappedWeights | GgufWeights:
    """Return the canonical tensors of a checkpoint, whose names, shapes and element types are checked beforehand.

    Reading goes through the checkpoint, which must stay open, and through the ``changes`` of its tensors, by the names
    of ``stored``; a GGUF file has none. Of a ``headless`` model a head that the checkpoint has is not read. Raises as
    ``describe``, and ``SourceError`` for a missing, unknown or misshapen tensor.
    """
    if isinstance(checkpoint, GgufCheckpoint):
        return GgufWeights(checkpoint.file, describe(checkpoint.config, context))
    family, decoder = find(checkpoint.config), describe(checkpoint.config, context)
    decoder = without_head(decoder) if headless else decoder
    return MappedWeights(checkpoint, decoder, family.source, family.IGNORED, changes)


def find(config: Mapping[str, Any]) -> Family:
    """Return the family that builds a config.json's architecture.

    Where ``architectures`` names none, or a wrapper of one, the ``model_type`` decides, as in transformers. Raises
    ``UnsupportedModelError`` for what is not built.
    """
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise SourceError(
            "config.json: architectures must be a list of names.", hint='As "architectures": ["LlamaForCausalLM"].'
        )
    model_type = config.get("model_type")
    typed = next((family for family in FAMILIES if model_type in [*family.MODEL_TYPES]), None)
    if len(architectures) == 1:
        for family in FAMILIES:
            if architectures[0] in family.ARCHITECTURES:
                if typed not in (None, family):
                    raise SourceError(
                        f"config.json: architectures says {architectures[0]}, model_type says {model_type!r}.",
                        hint="Correct the one that is wrong.",
                    )
                return family
    if typed and all(unbuilt.wraps(name, typed.ARCHITECTURES) for name in architectures):
        return typed
    built = sorted(name for family in FAMILIES for name in family.ARCHITECTURES)
    hint = f"It builds: {', '.join(built)}. Of others that write text, --exporter optimum or mlx-lm may make a payload."
    if typed:
        hint = f'If the model writes text, set "architectures" to ["{min(typed.ARCHITECTURES)}"] in config.json.'
    raise UnsupportedModelError(
        f"config.json: architectures names {unbuilt.named(architectures, config)}, which edgepack does not build.",
        hint=hint,
    )
