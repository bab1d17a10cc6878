"""The text part of a model that also sees or hears: where config.json has it, and what its tensors are called there.

Files from the hub, and files that transformers 5 writes, prefix the names of its tensors differently. What belongs to
the other senses is not packed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.families.fields import FILE, agreed
from edgepack_packager.families.mapping import Source

IGNORED = r"(model\.)?(vision_tower|multi_modal_projector|audio_tower|embed_vision|embed_audio)\..+"


def text_part(config: Mapping[str, Any], wrapper: str, model_types: Collection[str]) -> Mapping[str, Any]:
    """Return the fields of the text model: config.json's own, or its text_config and what stands above that.

    ``wrapper`` is the architecture that has a text_config, which must be of one of ``model_types``.
    """
    text = config.get("text_config")
    if text is None and wrapper not in (config.get("architectures") or ()):
        return config
    if not isinstance(text, dict):
        raise SourceError(f"{FILE}: text_config must be an object, not {text!r}.")
    if (kind := text.get("model_type")) is not None and kind not in model_types:
        built = " or ".join(map(repr, sorted(model_types)))
        raise UnsupportedModelError(f"{FILE}: text_config.model_type is {kind!r}; edgepack builds {built} only.")
    above = ("torch_dtype", "dtype", "tie_word_embeddings", "quantization_config")
    places = {name: {name: config.get(name), f"text_config.{name}": text.get(name)} for name in above}
    shared = {name: agreed({k: v for k, v in said.items() if v is not None}) for name, said in places.items()}
    return {**text, **shared}


def spelled(place: Source) -> Source:
    """Return a tensor's place with the names that it has in a model of several parts."""
    within = place.tensor.replace("model.", "model.language_model.", 1)
    return replace(place, others=(f"language_model.{place.tensor}", within))
