"""Decoders and random weights in memory, for tests that need no checkpoint."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from edgepack.bundle.decoder import Attention, Convolution, Decoder, Delta, Layer, Mlp, arranged, layer_of
from edgepack.bundle.rope import ProportionalScaling, Rope
from edgepack_packager import families
from edgepack_packager.checkpoint.weights import Float32


class Positions(msgspec.Struct, frozen=True):
    """How a layer sees positions; a ``pattern`` of some, repeated, says it of all layers."""

    rope: Rope | None
    window: int | None = None


def describe(**fields: Any) -> Decoder:
    """Return a small Llama with some facts changed; ``rope`` stands for a pattern of one without window.

    The layers that are ``convolving`` have a ``convolution`` in place of their attention, those that are ``correcting``
    a ``delta``.
    """
    rope = fields.pop("rope", None)
    facts: dict[str, Any] = {
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "n_layers": 2,
        "hidden_size": 64,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "n_vocab": 128,
        "context": 512,
        "norm_eps": 1e-5,
        "tied": True,
        **fields,
    }
    facts.setdefault("pattern", (Positions(rope or Rope(theta=10000.0, dim=facts["head_dim"])),))
    facts.setdefault("trained_context", facts["context"])
    return _decoder(facts)


LFM2: Mapping[str, Any] = {
    "n_layers": 6,
    "qk_norm": "head",
    "convolution": Convolution(length=4),
    "convolving": (0, 1, 3, 5),
}
"""A model of convolutions, of whose six layers the third and the fifth attend."""

QWEN3_5: Mapping[str, Any] = {
    "n_layers": 5,
    "qk_norm": "head",
    "gated": True,
    "head_dim": 32,
    "rope": Rope(10000.0, 16),
    "delta": Delta(n_key_heads=2, n_value_heads=4, key_dim=8, value_dim=12, length=4),
    "correcting": (0, 1, 2, 4),
}
"""A model of delta rules, of whose five layers the fourth attends."""


LFM3: Mapping[str, Any] = {
    "n_layers": 6,
    "qk_norm": "head",
    "gated": "heads",
    "norms": "both",
    "convolution": Convolution(length=7),
    "convolving": (0, 1, 3, 5),
    "pattern": (
        *[Positions(Rope(1000000.0, 16, ProportionalScaling(4)))] * 4,
        *[Positions(Rope(10000.0, 16), 24)] * 2,
    ),
}
"""A model of convolutions, of whose six layers the third attends to all and the fifth to a window, heads with gates."""


def changed(decoder: Decoder, **fields: Any) -> Decoder:
    """Return a decoder whose layers are alike, but for how they see positions, with some facts changed in all."""
    return _decoder(facts(decoder) | fields)


def relayered(decoder: Decoder, change: Callable[[Layer], Layer]) -> Decoder:
    """Return a decoder with every layer changed."""
    return msgspec.structs.replace(decoder, **arranged([change(layer) for layer in decoder.layers]))


def remixed(decoder: Decoder, change: Callable[[Attention], Attention]) -> Decoder:
    """Return a decoder with every attention changed."""

    def of(layer: Layer) -> Layer:
        mixer = change(layer.mixer) if isinstance(layer.mixer, Attention) else layer.mixer
        return msgspec.structs.replace(layer, mixer=mixer)

    return relayered(decoder, of)


class Alike:
    """A decoder whose layers are alike, but for how they see positions, with all that they share as its own."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._facts = decoder, facts(decoder)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike) and self._decoder == other._decoder

    __hash__ = None

    def __getattr__(self, name: str) -> Any:
        if name in self._facts:
            return self._facts[name]
        return getattr(self._decoder if hasattr(self._decoder, name) else self._decoder.attentions[0], name)


def described(config: Mapping[str, Any], context: int | None = None) -> Alike:
    """Return what a config.json describes."""
    return Alike(families.describe(config, context))


def facts(decoder: Decoder) -> dict[str, Any]:
    """Return what ``describe`` would be told of a decoder whose layers are alike but for how they see positions."""
    assert decoder.alike
    found = msgspec.structs.asdict(decoder)
    del found["kinds"]
    layer, mixer = decoder.layer(0), decoder.attentions[0]
    found |= {name: getattr(mixer, old) for name, old in _MIXER.items()}
    found |= {name: getattr(layer.mlp, old) for name, old in _MLP.items()}
    found |= {"norms": layer.norms, "residual_scale": layer.residual_scale}
    if convolving := decoder.convolving:
        found |= {"convolving": tuple(convolving), "convolution": next(iter(convolving.values()))}
    if correcting := decoder.correcting:
        found |= {"correcting": tuple(correcting), "delta": next(iter(correcting.values()))}
    first, attending = decoder.attentions[0], decoder.attending
    mixers = [attending.get(index, first) for index in range(len(decoder.pattern))]
    return found | {"pattern": tuple(Positions(each.rope, each.window) for each in mixers)}


_MIXER = {
    **{name: name for name in ("n_heads", "n_kv_heads", "head_dim", "qkv_bias", "output_bias")},
    **{name: name for name in ("qk_norm", "temperature", "gated", "bidirectional")},
    "attention_scale": "scale",
    "attention_softcap": "softcap",
}
_MLP = {"intermediate_size": "size", "activation": "activation", "mlp_bias": "bias"}


def _decoder(facts: Mapping[str, Any]) -> Decoder:
    rest = dict(facts)
    mixer = {old: rest.pop(name) for name, old in _MIXER.items() if name in rest}
    mlp = Mlp(**{old: rest.pop(name) for name, old in _MLP.items() if name in rest})
    layer = {name: rest.pop(name) for name in ("norms", "residual_scale") if name in rest}
    pattern: Sequence[Positions] = rest.pop("pattern")
    others = dict.fromkeys(rest.pop("convolving", ()), rest.pop("convolution", None))
    others |= dict.fromkeys(rest.pop("correcting", ()), rest.pop("delta", None))
    layers = [
        Layer(
            mixer=others.get(index) or Attention(rope=each.rope, window=each.window, **mixer),
            mlp=mlp,
            **layer,
        )
        for index, each in enumerate(pattern[index % len(pattern)] for index in range(rest["n_layers"]))
    ]
    return Decoder(**rest, **arranged(layers))


class RandomWeights:
    """``Weights`` whose every block is audible in the logits; the same seed gives the same values on every host.

    ``gain`` scales the deviation of all matrices.
    """

    def __init__(self, decoder: Decoder, seed: int = 0, dtype: str = "f32", gain: float = 1.0) -> None:
        self.decoder, self.dtype = decoder, dtype
        self.tensors = {name: _draw(decoder, name, shape, seed, gain) for name, shape in decoder.tensors()}

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows of a tensor: float32."""
        return self.tensors[name][start:stop]


def _draw(decoder: Decoder, name: str, shape: tuple[int, ...], seed: int, gain: float) -> Float32:
    normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if name.endswith("q_norm") and decoder.attention(layer_of(name)).scale == 1:  # nothing else keeps scores small
        return np.float32(shape[0] ** -0.5) * (1 + np.float32(0.2) * normal)
    if name.endswith(".scale"):
        return np.float32(0.8) + np.float32(0.1) * normal
    if name.endswith("norm"):
        return 1 + np.float32(0.2) * normal
    if name.endswith(".bias"):
        return np.float32(0.5) * normal
    if name == "embedding" and not decoder.tied:
        return normal
    if name.endswith((".step", ".decay")):
        return normal - np.float32(1)
    if name.endswith(".kernel"):
        mixer = decoder.layer(layer_of(name)).mixer
        assert not isinstance(mixer, Attention)
        return np.float32(gain * 1.2 / np.sqrt(mixer.length)) * normal
    # Logits get a deviation of 3; the scores of attention one of 2; a block's output is as large as the stream.
    wide = 3.0 if name in ("embedding", "head") else 1.4 if name.endswith((".q", ".k")) else 1.2
    return np.float32(gain * wide / np.sqrt(shape[1])) * normal
