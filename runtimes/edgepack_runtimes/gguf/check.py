"""Whether a header describes the model that the bundle promises: what llama.cpp will compute from it, number by number.

A graph of llama.cpp has constants of its own and defaults for keys that are absent; both count here. Their source is
src/models/<architecture>.cpp and ``load_hparams`` in src/llama-model.cpp. A factor that the packager multiplied into a
tensor is not visible in a header: the proof at build time covers those.
"""

from __future__ import annotations

from math import log, sqrt
from pathlib import Path

from edgepack.bundle.bounds import MAX_LAYERS
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import Llama3Scaling, LongRopeScaling, ProportionalScaling, YarnScaling
from edgepack_runtimes.gguf.graphs import EXAONE4_OF_64, GRAPHS, Graph
from edgepack_runtimes.gguf.header import Array, Header, damaged
from edgepack_runtimes.gguf.keys import Keys, float32
from edgepack_runtimes.gguf.layers import check_layers
from edgepack_runtimes.gguf.positions import check_positions
from edgepack_runtimes.gguf.tensors import check_tensors


def check(header: Header, decoder: Decoder, path: Path) -> str:
    """Return the architecture's name, which prefixes its keys, if the file describes this decoder.

    Raises ``EngineError`` that names the first fact which it does not.
    """
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in GRAPHS:
        raise damaged(path, f"general.architecture is {architecture!r}, not one of {', '.join(GRAPHS)}")
    keys, graph = Keys(header.metadata, architecture, path), GRAPHS[architecture]
    if architecture == "exaone4" and keys.integer("block_count") == 64:
        graph = EXAONE4_OF_64
    _check_graph(keys, graph, decoder)
    _check_numbers(keys, graph, decoder)
    check_positions(keys, graph, decoder)
    keys.check_all_read()
    check_tensors(header, graph, decoder, path)
    return architecture


def _check_graph(keys: Keys, graph: Graph, decoder: Decoder) -> None:
    layer, attention = decoder.layer(0), decoder.attentions[0]
    if graph.by_layer:
        check_layers(keys, decoder)
    elif not decoder.alike:
        raise keys.fail("its architecture has layers of one shape, the model of several")
    _check_convolutions(keys, graph, decoder)
    _check_delta_rules(keys, graph, decoder)
    partial = any(each.rope and each.rope.dim != each.head_dim for each in decoder.attentions)
    still = any(isinstance(rope.scaling, ProportionalScaling) for rope in decoder.ropes)
    scaled = any(kind.scaled for kind in decoder.kinds)
    capped = decoder.logits_softcap is not None
    facts = {  # (what the graph has, what the model has)
        "attention to what comes after": (graph.both_sides, decoder.at_once),
        "activation": (graph.activation, layer.mlp.activation),
        "norm of q and k": (graph.qk_norm, attention.qk_norm),
        "LayerNorm": (graph.layer_norms, bool(decoder.norm)),
        "norm of v": (graph.v_norm, any(each.v_norm for each in decoder.attentions)),
        "inputs of layers": (decoder.inputs * graph.by_layer, decoder.inputs),
        "scale of layers": (graph.by_layer and scaled, scaled),
        "rotation of the first pairs alone": (graph.by_layer and still, still),
        "place of the norms": (graph.norms, layer.norms),
        "softcap on the scores": (graph.attention_softcap is not None, attention.softcap is not None),
        "softcap on the logits": (graph.logits_softcap is not None and capped, capped),
        "rotation of parts of heads": (graph.partial_rotation and partial, partial),
    }
    for what, (found, wanted) in facts.items():
        if found != wanted:
            raise keys.fail(f"the {what} of its architecture is {found}, the model's is {wanted}")
    if any(isinstance(rope.scaling, YarnScaling) and not rope.scaling.whole for rope in decoder.ropes):
        raise keys.fail("its architecture has a yarn ramp from one whole pair to another, the model between pairs")
    tables = [rope for rope in decoder.ropes if isinstance(rope.scaling, Llama3Scaling | LongRopeScaling)]
    if not decoder.ropes or (tables and len(decoder.ropes) > 1):
        raise keys.fail(f"its architecture has one rope, the model {len(decoder.ropes)}")
    _check_scales(keys, graph, decoder)


def _check_convolutions(keys: Keys, graph: Graph, decoder: Decoder) -> None:
    convolving = decoder.convolving
    if bool(convolving) != graph.convolutions:
        raise keys.fail(f"its architecture has {'' if graph.convolutions else 'no '}convolutions, unlike the model")
    if not convolving:
        return
    lengths = {each.length for each in convolving.values()}
    keys.check("shortconv.l_cache", keys.integer("shortconv.l_cache"), lengths.pop())
    heads = [0 if layer in convolving else decoder.attentions[0].n_kv_heads for layer in range(decoder.n_layers)]
    keys.check_integers("attention.head_count_kv", heads)


def _check_delta_rules(keys: Keys, graph: Graph, decoder: Decoder) -> None:
    correcting = decoder.correcting
    if (bool(correcting), decoder.attentions[0].gated) != (graph.delta_rules, graph.delta_rules):
        raise keys.fail(f"its architecture has {'' if graph.delta_rules else 'no '}delta rules, unlike the model")
    if not correcting:
        return
    delta = next(iter(correcting.values()))
    wanted = {
        "ssm.conv_kernel": delta.length,
        "ssm.inner_size": delta.value_size,
        "ssm.state_size": delta.key_dim,
        "ssm.time_step_rank": delta.n_value_heads,
        "ssm.group_count": delta.n_key_heads,
    }
    for key, number in wanted.items():
        keys.check(key, keys.integer(key), number)
    if delta.key_dim != delta.value_dim:
        raise keys.fail("its architecture has heads of keys and of values of one size, unlike the model")
    if delta.n_value_heads % delta.n_key_heads:
        raise keys.fail(f"its {delta.n_value_heads} heads of values do not share {delta.n_key_heads} heads of keys")
    keys.check_integers("attention.recurrent_layers", [int(each in correcting) for each in range(decoder.n_layers)])
    pairs = decoder.ropes[0].dim // 2
    keys.check_integers("rope.dimension_sections", [*(-(-(pairs - turn) // 3) for turn in range(3)), 0])


def _check_scales(keys: Keys, graph: Graph, decoder: Decoder) -> None:
    wanted = {  # (what the model has, what llama.cpp assumes for a key that is absent)
        "attention.scale": (decoder.attentions[0].score_scale, decoder.attentions[0].head_dim ** -0.5),
        "embedding_scale": (decoder.embedding_scale, 1.0),
        "residual_scale": (decoder.layer(0).residual_scale, 1.0),
        "logit_scale": (1 / decoder.logits_scale, None),  # a divisor
    }
    if graph.scales:
        for key, (number, assumed) in wanted.items():
            keys.check(key, float32(keys.number(key, assumed)), float32(number))
        return
    for what, number in (("blocks' outputs", decoder.layer(0).residual_scale), ("logits", decoder.logits_scale)):
        if number != 1:
            raise keys.fail(f"its architecture multiplies the {what} by 1, the model by {number:g}")
    root = sqrt(decoder.hidden_size) if graph.scaled_embedding else 1.0
    # The model's scale is rounded to the type of its weights; the packager puts the rest into norms and epsilon.
    if abs(decoder.embedding_scale / root - 1) > 2**-8 * graph.scaled_embedding:
        raise keys.fail(f"its architecture multiplies embeddings by {root:g}, the model by {decoder.embedding_scale:g}")


def _check_numbers(keys: Keys, graph: Graph, decoder: Decoder) -> None:
    attention = next((each for each in decoder.attentions if not each.window), decoder.attentions[0])
    head = decoder.hidden_size // attention.n_heads
    sizes = {  # (what the model has, what llama.cpp assumes for a key that is absent)
        "block_count": (decoder.n_layers, None),
        "embedding_length": (decoder.hidden_size, None),
        "attention.head_count": (attention.n_heads, None),
        "attention.key_length": (attention.head_dim, head),
        "attention.value_length": (attention.head_dim, head),
        "vocab_size": (decoder.n_vocab, decoder.n_vocab),
    }
    mlps = [layer.mlp.size for layer in decoder.layers]
    kv_heads = [each.n_kv_heads for each in decoder.attentions]
    if graph.by_layer:
        keys.check("feed_forward_length", keys.each("feed_forward_length", decoder.n_layers), mlps)
        found = keys.each("attention.head_count_kv", decoder.n_layers, attention.n_heads)
        keys.check("attention.head_count_kv", found, kv_heads)
    else:
        sizes["feed_forward_length"] = (mlps[0], None)
        if not graph.convolutions:
            sizes["attention.head_count_kv"] = (kv_heads[0], attention.n_heads)
    for key, (wanted, assumed) in sizes.items():
        keys.check(key, keys.integer(key, assumed), wanted)
    if decoder.n_layers > MAX_LAYERS:
        raise keys.fail(f"it has {decoder.n_layers} layers, llama.cpp allows {MAX_LAYERS}")
    keys.integer("context_length")
    if decoder.headless:
        keys.integer("pooling_type")  # for others: what this runtime asks for are the states
    numbers = {
        f"attention.layer_norm_{'' if graph.layer_norms else 'rms_'}epsilon": (_epsilon(graph, decoder), None),
        "rope.scaling.attn_factor": (_attention_factor(decoder), 1.0),
        "attn_logit_softcapping": (attention.softcap, graph.attention_softcap),
    }
    for key, (number, assumption) in numbers.items():
        keys.check(key, keys.number(key, assumption), float32(number))
    keys.check("final_logit_softcapping", _logits_softcap(keys, graph), float32(decoder.logits_softcap))
    if graph.layer_norms:
        keys.check("use_parallel_residual", keys.get("use_parallel_residual"), False)
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Array) and tokens.length != decoder.n_vocab:
        raise keys.fail(f"tokenizer.ggml.tokens has {tokens.length} entries, the model's vocabulary {decoder.n_vocab}")


def _logits_softcap(keys: Keys, graph: Graph) -> float | None:
    """What a key says or llama.cpp assumes. Where layers differ, 0 is none."""
    found = keys.get("final_logit_softcapping")
    if graph.by_layer and type(found) is float and found == 0:
        return None
    return keys.number("final_logit_softcapping", graph.logits_softcap or None)


def _epsilon(graph: Graph, decoder: Decoder) -> float:
    """The model's, in the units of llama.cpp's states, which are larger where it scales embeddings by another root."""
    scaled = graph.scaled_embedding and graph.norms == "both"
    ratio = sqrt(decoder.hidden_size) / decoder.embedding_scale if scaled else 1.0
    return decoder.norm_eps * (1.0 if abs(ratio - 1) <= 2**-22 else ratio) ** 2


def _attention_factor(decoder: Decoder) -> float:
    """What cosine and sine are multiplied by, less what llama.cpp's yarn multiplies them by itself."""
    for rope in decoder.ropes:
        if isinstance(yarn := rope.scaling, YarnScaling):
            return yarn.magnitude / (1 + 0.1 * log(max(yarn.factor, 1)))
    return decoder.ropes[0].magnitude
