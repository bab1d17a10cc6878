"""Small decoders that between them have every feature that llama.cpp can express, by the architecture they become."""

from __future__ import annotations

from typing import Any

from decoders import LFM2, QWEN3_5, Positions, describe
from msgspec import UNSET

from edgepack.bundle.decoder import Attention, Convolution, Decoder, Delta, Layer, Mlp, Temperature, arranged, check
from edgepack.bundle.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    Rope,
    YarnScaling,
)

WINDOW = 24


def rope(theta: float = 10000.0, dim: int = 16, **scaling: Any) -> Rope:
    return Rope(theta=theta, dim=dim, **scaling)


LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32)
LINEAR = LinearScaling(factor=8.0)
LONG = LongRopeScaling(factors=tuple(1 + 0.3 * i for i in range(8)), magnitude=1.19, original_context=128)
SHORT = LongRopeScaling(factors=tuple(1 + 0.05 * i for i in range(6)), magnitude=1.19, original_context=4096)
# Its ramp is from pair 0 to pair 3 of 8; with other turns from pair 1.
YARN = YarnScaling(factor=8.0, original_context=64, magnitude=1.21)
OTHER_TURNS = YarnScaling(factor=8.0, original_context=64, beta_fast=1.5, beta_slow=0.125)

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
BOTH_SIDES = GEMMA3 | {"bidirectional": True, "headless": True}
GEMMA1: dict[str, Any] = {name: value for name, value in GEMMA.items() if name != "norms"}
MISTRAL3 = {"temperature": Temperature(0.3, 64), "rope": rope(1e6, scaling=OTHER_TURNS), "tied": False}
GRANITE = {"embedding_scale": 12.0, "attention_scale": 0.1, "residual_scale": 0.22, "logits_scale": 0.125}
OLMO2 = {"qk_norm": "width", "norms": "after", "tied": False, "n_layers": 4}
EXAONE4 = {"qk_norm": "head", "norms": "after", "rope": rope(1e6, scaling=LLAMA3)}
EXAONE4_OF_64 = {
    **EXAONE4,
    "tied": False,
    "n_layers": 64,
    "pattern": (Positions(rope(1e6, scaling=LLAMA3), WINDOW),) * 3 + (Positions(None),),
}
QWEN35 = {**QWEN3_5, "delta": Delta(n_key_heads=2, n_value_heads=2, key_dim=16, value_dim=16, length=4)}
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
    "gemma-embedding": BOTH_SIDES,
    "gemma-embedding: three to one, linear rope on global layers, biases, scores": BOTH_SIDES
    | {"pattern": (Positions(rope(5e4), WINDOW),) * 3 + (FAR_LINEAR,), "qkv_bias": True, "attention_scale": 0.2},
    "gemma-embedding: rounded embedding scale": BOTH_SIDES | {"embedding_scale": 8.03125},
    "gemma-embedding: each token alone in some layers": BOTH_SIDES | {"pattern": (Positions(rope(), 1), FAR)},
    "llama: yarn": {"rope": rope(scaling=YARN)},
    "qwen2: yarn": {"qkv_bias": True, "rope": rope(1e6, scaling=YARN)},
    "qwen3: yarn": {"qk_norm": "head", "rope": rope(1e6, scaling=YARN)},
    "mistral3": MISTRAL3,
    "mistral3: yarn's own turns, biases, scores": MISTRAL3
    | {"rope": rope(scaling=YARN), "qkv_bias": True, "mlp_bias": True, "attention_scale": 0.4},
    "mistral3: a plain rope": MISTRAL3 | {"rope": rope(dim=32), "tied": True, "head_dim": 32},
    "mistral3: no temperature": MISTRAL3 | {"temperature": None},
    "granite": GRANITE,
    "granite: everything": GRANITE
    | {
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "tied": False,
        "rope": rope(5e5, scaling=LLAMA3),
        "embedding_scale": 8.0,
    },
    "granite: yarn, scaled logits alone": {"logits_scale": 0.3, "rope": rope(scaling=YARN)},
    "gemma": GEMMA1,
    "gemma: rounded embedding scale, linear rope, scores": GEMMA1
    | {"embedding_scale": 8.03125, "attention_scale": 0.2, "rope": rope(scaling=LINEAR), "qkv_bias": True},
    "olmo2": OLMO2,
    "olmo2: windows, yarn on the other layers": OLMO2
    | {"pattern": (LOCAL,) * 3 + (Positions(rope(scaling=YARN)),), "n_layers": 8},
    "olmo2: windows on odd layers, linear rope on even ones, biases, scores": OLMO2
    | {"pattern": (Positions(rope(scaling=LINEAR)), LOCAL), "attention_scale": 0.4, "qkv_bias": True},
    "olmo2: windows, one rope": OLMO2 | {"pattern": (LOCAL,) * 3 + (GLOBAL,)},
    "olmo2: yarn": OLMO2 | {"rope": rope(scaling=YARN)},
    "exaone4": EXAONE4,
    "exaone4: untied, linear rope, biases, scores": EXAONE4
    | {"rope": rope(scaling=LINEAR), "tied": False, "qkv_bias": True, "attention_scale": 0.4},
    "exaone4: of 64 layers": EXAONE4_OF_64,
    "exaone4: of 64 layers, windows on even ones, linear rope": EXAONE4_OF_64
    | {"pattern": (Positions(rope(scaling=LINEAR), WINDOW), Positions(None))},
    "qwen35": QWEN35,
    "qwen35: untied, scores, another pattern": {
        **QWEN35,
        "tied": False,
        "attention_scale": 0.4,
        "correcting": (1, 3),
        "rope": rope(1e6, 24),
        "delta": Delta(n_key_heads=4, n_value_heads=4, key_dim=32, value_dim=32, length=3),
    },
    "qwen35: twice the heads of values": {
        **QWEN35,
        "delta": Delta(n_key_heads=2, n_value_heads=4, key_dim=32, value_dim=32, length=4),
    },
    "qwen35: three times the heads of values, in blocks of 256": {
        **QWEN35,
        "delta": Delta(n_key_heads=4, n_value_heads=12, key_dim=64, value_dim=64, length=3),
    },
    "lfm2": LFM2,
    "lfm2: untied, scores": {**LFM2, "tied": False, "attention_scale": 0.4, "convolution": Convolution(length=3)},
    "stablelm": {"norm": "layer", "tied": False, "rope": rope(dim=4)},
    "stablelm: biases, linear rope, scores": {
        "norm": "layer",
        "tied": False,
        "qkv_bias": True,
        "rope": rope(scaling=LINEAR),
        "attention_scale": 0.4,
    },
    "hunyuan-dense": {"qk_norm": "rotated", "head_dim": 32, "rope": rope(1e6, 32)},
    "hunyuan-dense: untied, linear rope, biases, scores": {
        "qk_norm": "rotated",
        "rope": rope(scaling=LINEAR),
        "tied": False,
        "qkv_bias": True,
        "attention_scale": 0.4,
    },
}


def gemma4(
    layers: str = "sfsf sf",
    *,
    head_dims: tuple[int, int] = (16, 32),
    kv_heads: tuple[int, int] = (2, 2),
    turned: int | None = 4,
    scale: float | None = 1.0,
    inputs: int = 32,
    scaled: bool = True,
    mlp: int = 96,
    wider: int = 2,
    **changes: Any,
) -> Decoder:
    """Return a small Gemma 4: "s" is a layer with a window, "f" one without, and those behind the space share keys.

    Pairs are of layers with a window and without; ``turned`` pairs of a head turn in the latter, None: all. MLPs of
    layers that share keys are ``wider``.
    """
    own = len(layers.split(" ")[0])

    def layer(index: int, kind: str) -> Layer:
        windowed, shared = kind == "s", index >= own
        dim = head_dims[not windowed]
        mixer = Attention(
            n_heads=4,
            n_kv_heads=kv_heads[not windowed],
            head_dim=dim,
            rope=rope(dim=dim) if windowed else rope(1e6, dim, scaling=turned and ProportionalScaling(turned)),
            window=WINDOW if windowed else None,
            scale=scale,
            qk_norm="head",
            v_norm=UNSET if shared else True,
            kv_layer=own - 1 - windowed if shared else UNSET,
        )
        block = Mlp(size=mlp * (wider if shared else 1), activation="gelu_tanh")
        return Layer(mixer=mixer, mlp=block, norms="both", inputs=inputs or UNSET, scaled=scaled or UNSET)

    kinds = layers.replace(" ", "")
    facts: dict[str, Any] = {
        "family": "gemma4",
        "architecture": "Gemma4ForCausalLM",
        "n_layers": len(kinds),
        "hidden_size": 64,
        "n_vocab": 128,
        "context": 512,
        "trained_context": 512,
        "norm_eps": 1e-6,
        "tied": True,
        "embedding_scale": 8.0,
        "logits_softcap": 6.0,
        **arranged([layer(index, kind) for index, kind in enumerate(kinds)]),
    }
    decoder = Decoder(**facts | changes)
    check(decoder)
    return decoder


GEMMA4: dict[str, Decoder] = {
    "gemma4": gemma4(),
    "gemma4: untied, no inputs, nothing scaled, other KV heads": gemma4(
        inputs=0, scaled=False, tied=False, logits_softcap=None, kv_heads=(2, 1)
    ),
    "gemma4: nothing shared, heads and MLPs of one size, a plain rope": gemma4(
        "sfs", head_dims=(16, 16), turned=None, wider=1
    ),
    "gemma4: rounded embedding scale": gemma4(embedding_scale=8.03125),
    "gemma4: scores": gemma4("ssf f", scale=None),
}

DECODERS: dict[str, Decoder] = {name: describe(**fields) for name, fields in FIELDS.items()} | GEMMA4


def architecture(name: str) -> str:
    """The architecture that a decoder of this name is written as."""
    return name.partition(":")[0]
