"""Layers that differ: what each shares, gets of a token, and has of another size, by the keys of a file."""

from __future__ import annotations

from msgspec import UNSET
from msgspec.structs import replace

from edgepack.bundle.decoder import Attention, Decoder, Layer
from edgepack.bundle.rope import ProportionalScaling
from edgepack_runtimes.gguf.keys import Keys


def check_layers(keys: Keys, decoder: Decoder) -> None:
    """Raise ``EngineError`` for what no key can say, and for keys that say something else.

    What llama.cpp asserts is refused here, as an assertion ends the process: layers of both kinds, with a window and
    without, and the two layers whose keys all others read.
    """
    _check_alike(keys, decoder)
    own = len(decoder.keeping)
    for index, each in decoder.attending.items():
        read = UNSET if index < own else own - (2 if each.window else 1)
        if each.kv_layer != read:
            raise keys.fail(f"layer {index} of its architecture {_reads(read)}, the model's another's")
    local = [int(bool(each.window)) for each in decoder.attentions]
    if len(set(local)) < 2:
        raise keys.fail("its architecture has layers with a window and layers without, the model one kind")
    keys.check_integers("attention.sliding_window_pattern", local)
    keys.check("attention.shared_kv_layers", keys.integer("attention.shared_kv_layers", 0), decoder.n_layers - own)
    inputs = keys.integer("embedding_length_per_layer_input")
    keys.check("embedding_length_per_layer_input", inputs, decoder.inputs)
    head = next(each.head_dim for each in decoder.attentions if each.window)
    for key in ("attention.key_length_swa", "attention.value_length_swa"):
        keys.check(key, keys.integer(key), head)


def _check_alike(keys: Keys, decoder: Decoder) -> None:
    sizes = {(bool(each.window), each.head_dim) for each in decoder.attentions}
    if len({_common(kind) for kind in decoder.kinds}) > 1 or len(sizes) > len({windowed for windowed, _ in sizes}):
        raise keys.fail("the model's layers differ in what those of its architecture have alike")
    if not all(each.v_norm for each in decoder.keeping.values()):
        raise keys.fail("its architecture has norms of v, the model has none in a layer")
    for each in decoder.attentions:
        scaling = each.rope.scaling if each.rope else None
        if scaling is not None and (each.window or not isinstance(scaling, ProportionalScaling)):
            raise keys.fail("its architecture scales no rope but by a table, in layers without window")


def _common(layer: Layer) -> Layer:
    """Return a layer without what may differ."""
    mixer = layer.mixer
    if isinstance(mixer, Attention):
        mixer = replace(mixer, rope=None, window=None, head_dim=1, n_kv_heads=1, v_norm=UNSET, kv_layer=UNSET)
    return replace(layer, mixer=mixer, mlp=replace(layer.mlp, size=1), scaled=UNSET)


def _reads(layer: object) -> str:
    return "has keys of its own" if layer is UNSET else f"reads the keys of layer {layer}"
