"""Says what a model is that edgepack does not build, so that a refusal names more than a class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

# Beginnings of architectures that look like a built one.
_KNOWN: Mapping[str, str] = {
    "Gemma3n": "Gemma 3n, which embeds every layer's input and shares keys and values",
    "Gemma4Unified": "Gemma 4 Unified, whose senses share one part",
    "Llama4": "Llama 4, a mixture of experts",
    "Mllama": "Llama 3.2 Vision",
    "PaliGemma": "PaliGemma, a vision model",
    "Phi3Small": "Phi-3-small, with block-sparse attention",
    "Phi3V": "Phi-3-vision",
    "Phi4MM": "Phi-4-multimodal",
    "Phi4Multimodal": "Phi-4-multimodal",
    "PhiFor": "Phi-1 or Phi-2",
    "PhiMoE": "Phi-3.5-MoE, a mixture of experts",
    "Phimoe": "Phi-3.5-MoE, a mixture of experts",
    "Qwen2Audio": "Qwen2-Audio",
    "Qwen2VL": "Qwen2-VL, a vision model",
    "Qwen2_5_VL": "Qwen2.5-VL, a vision model",
    "Qwen3Next": "Qwen3-Next, a mixture of experts with linear attention",
    "Qwen3VL": "Qwen3-VL, a vision model",
    "SmolVLM": "SmolVLM, a vision model",
}

_FIELDS: Mapping[str, str] = {
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "vision_config": "a vision model",
    "img_processor": "a vision model",
    "audio_config": "an audio model",
    "audio_processor": "an audio model",
}


# What holds a model of any class and is saved by its own name.
_WRAPPERS = frozenset({"PeftModelForCausalLM", "AutoPeftModelForCausalLM", "AutoModelForCausalLM", "OptimizedModule"})


def wraps(name: str, architectures: Collection[str]) -> bool:
    """Whether a class, by its name, holds one of these architectures: PEFT's by any name, FSDP's by a longer one."""
    return name in _WRAPPERS or name.endswith(tuple(architectures))


def named(architectures: Sequence[str], config: Mapping[str, Any]) -> str:
    """Return the architectures with what they are: as far as it is known, or as a field or the model_type says."""
    names = ", ".join(architectures) or "no architecture"
    starts = (what for start, what in _KNOWN.items() for name in architectures if name.startswith(start))
    what = next(starts, None) or deciding_field(config) or f"model_type {config.get('model_type')!r}"
    return f"{names} ({what})"


def deciding_field(config: Mapping[str, Any]) -> str | None:
    """Return the field that makes a model more than a dense decoder of text, with what it means; None without one."""
    for name, what in _FIELDS.items():
        # 0 experts, or 1, are a dense model's.
        if config.get(name) not in (None, 0, 1):
            return f"{name}: {what}"
    return None
