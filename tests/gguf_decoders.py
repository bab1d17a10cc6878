"""Small decoders that between them have every feature that llama.cpp can express, by the architecture they become."""

from __future__ import annotations

from typing import Any

from decoders import Positions, describe

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import LinearScaling, Llama3Scaling, LongRopeScaling, Rope

WINDOW = 24


def rope(theta: float = 10000.0, dim: int = 16, **scaling: Any) -> Rope:
    return Rope(theta=theta, dim=dim, **scaling)


LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32)
LINEAR = LinearScaling(factor=8.0)
LONG = LongRopeScaling(factors=tuple(1 + 0.3 * i for i in range(8)), magnitude=1.19, original_context=128)
SHORT = LongRopeScaling(factors=tuple(1 + 0.05 * i for i in range(6)), magnitude=1.19, original_context=4096)

LOCAL, GLOBAL = Positions(rope(), WINDOW), Positions(rope())
FAR = Positions(rope(1e6))
FAR_LINEAR = Positions(rope(1e6, scaling=LINEAR))

GEMMA: dict[str, Any] = {
    "activation": "gelu_tanh",
    "norms": "both",
    "norm_eps": 1e-6,
    "embedding_scale": 8.0,
    "n_layers": 4,
}
GEMMA2 = GEMMA | {"pattern": (LOCAL, GLOBAL), "attention_softcap": 4.0, "logits_softcap": 6.0}
GEMMA3 = GEMMA | {"pattern": (LOCAL,) * 5 + (FAR,), "qk_norm": "head", "n_layers": 12}
NOPE = {"n_layers": 8, "pattern": (GLOBAL,) * 3 + (Positions(None),)}

FIELDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama: everything": {
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "tied": False,
        "rope": rope(5e5, scaling=LLAMA3),
    },
    "llama: linear rope": {"rope": rope(scaling=LINEAR)},
    "llama: wide heads": {"head_dim": 32, "rope": rope(dim=32), "n_kv_heads": 1, "tied": False, "norm_eps": 1e-3},
    "llama: scores": {"attention_scale": 0.4, "qkv_bias": True, "output_bias": True},
    "llama: a window that hides nothing": {"pattern": (Positions(rope(), 512),)},
    "qwen2": {"qkv_bias": True, "rope": rope(1e6)},
    "qwen2: untied, linear rope": {"qkv_bias": True, "tied": False, "rope": rope(scaling=LINEAR)},
    "qwen3": {"qk_norm": "head", "head_dim": 32, "rope": rope(1e6, 32)},
    "qwen3: scores": {"qk_norm": "head", "attention_scale": 0.4, "tied": False},
    "phi3: beyond the original context": {"rope": rope(scaling=LONG), "tied": False},
    "phi3: partial, within the original context": {"rope": rope(dim=12, scaling=SHORT)},
    "phi3: partial, biases, scores": {"rope": rope(dim=12), "qkv_bias": True, "attention_scale": 0.4},
    "smollm3": NOPE,
    "smollm3: untied": NOPE
    | {"tied": False, "n_layers": 6, "head_dim": 32, "pattern": (Positions(rope(dim=32)),) * 3 + (Positions(None),)},
    "gemma2": GEMMA2,
    "gemma2: windows on odd layers, linear rope, scores": GEMMA2
    | {
        "pattern": (Positions(rope(scaling=LINEAR)), Positions(rope(scaling=LINEAR), WINDOW)),
        "attention_scale": 0.2,
    },
    "gemma2: no windows": GEMMA2 | {"pattern": (GLOBAL,)},
    "gemma3": GEMMA3,
    "gemma3: linear rope on global layers": GEMMA3 | {"pattern": (LOCAL,) * 5 + (FAR_LINEAR,)},
    "gemma3: three to one, softcap, untied, scores": GEMMA3
    | {
        "pattern": (Positions(rope(5e4), WINDOW),) * 3 + (FAR,),
        "logits_softcap": 6.0,
        "tied": False,
        "attention_scale": 0.2,
    },
    "gemma3: rounded embedding scale": GEMMA3 | {"embedding_scale": 8.03125},
    "gemma3: no windows": GEMMA3 | {"pattern": (FAR_LINEAR,), "n_layers": 2},
}

DECODERS: dict[str, Decoder] = {name: describe(**fields) for name, fields in FIELDS.items()}


def architecture(name: str) -> str:
    """The architecture that a decoder of this name is written as."""
    return name.partition(":")[0]
