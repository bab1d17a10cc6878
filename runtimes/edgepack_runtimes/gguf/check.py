"""Whether a header describes the model that the bundle promises: what llama.cpp will compute from it, number by number.

A graph of llama.cpp has constants of its own and defaults for keys that are absent; both count here. Their source is
src/models/<architecture>.cpp and ``load_hparams`` in src/llama-model.cpp. A factor that the packager multiplied into a
tensor is not visible in a header: the proof at build time covers those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import inf, log, sqrt
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.bounds import MAX_LAYERS
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import LinearScaling, Llama3Scaling, LongRopeScaling, Rope, YarnScaling
from edgepack.errors import EngineError
from edgepack_runtimes.gguf.graphs import EXAONE4_OF_64, GRAPHS, Graph
from edgepack_runtimes.gguf.header import Array, Header, Scalar, Tensor, damaged

_TABLES: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class _Yarn(NamedTuple):
    """How a rope is scaled by yarn: the factor, the original context, and between how many turns in it the ramp is."""

    factor: float | None
    original: int | None
    fast: float | None
    slow: float | None

    def __str__(self) -> str:
        return f"by {self.factor} from {self.original}, between {self.fast} and {self.slow} turns"


class _Position(NamedTuple):
    """How a layer sees positions: base, dimension and linear factor of its rope (None: no rope), yarn, and window."""

    base: float | None
    dim: int | None
    factor: float | None
    yarn: _Yarn | None
    window: int | None


_SILENT: Final = _Position(None, None, None, None, None)


def check(header: Header, decoder: Decoder, path: Path) -> str:
    """Return the architecture's name, which prefixes its keys, if the file describes this decoder.

    Raises ``EngineError`` that names the first fact which it does not.
    """
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in GRAPHS:
        raise damaged(path, f"general.architecture is {architecture!r}, not one of {', '.join(GRAPHS)}")
    keys, graph = _Keys(header.metadata, architecture, path), GRAPHS[architecture]
    if architecture == "exaone4" and keys.integer("block_count") == 64:
        graph = EXAONE4_OF_64
    _check_graph(keys, graph, decoder)
    _check_numbers(keys, graph, decoder)
    _check_positions(keys, graph, decoder)
    keys.check_all_read()
    _check_tensors(header, decoder, path)
    return architecture


class _Keys:
    """The keys of an architecture. What is asked for is compared; what nobody asked for is refused."""

    def __init__(self, metadata: Mapping[str, Scalar | Array], architecture: str, path: Path) -> None:
        self._prefix, self._path = f"{architecture}.", path
        self._found = {key: value for key, value in metadata.items() if key.startswith(self._prefix)}
        self._read: set[str] = set()
        self.metadata = metadata

    def get(self, key: str) -> Scalar | Array | None:
        self._read.add(self._prefix + key)
        return self._found.get(self._prefix + key)

    def integer(self, key: str, default: int | None = None) -> int | None:
        found = self.get(key)
        if found is None:
            return default
        if type(found) is not int:
            raise self.wrong(key, found, "an integer")
        return found

    def number(self, key: str, default: float | None = None) -> float | None:
        # The engine asserts on some numbers instead of failing, and an assertion ends the process.
        found = self.get(key)
        if found is None:
            return default
        if type(found) is not float or not 0 < found < inf:
            raise self.wrong(key, found, "a positive number")
        return found

    def check_integers(self, key: str, wanted: list[int]) -> None:
        found = self.get(key)
        self.check(key, [*map(int, found.values)] if isinstance(found, Array) else found, wanted)

    def wrong(self, key: str, found: object, wanted: str) -> EngineError:
        return damaged(self._path, f"{self._prefix}{key} is {found}, not {wanted}")

    def check(self, key: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise damaged(self._path, f"{self._prefix}{key} is {found}, the model's is {wanted}")

    def fail(self, what: str) -> EngineError:
        return damaged(self._path, what)

    def check_all_read(self) -> None:
        for key in self._found.keys() - self._read:
            raise damaged(self._path, f"the key {key} is not one that edgepack writes")


def _check_graph(keys: _Keys, graph: Graph, decoder: Decoder) -> None:
    layer, attention = decoder.layer(0), decoder.attentions[0]
    if not decoder.alike:
        raise keys.fail("its architecture has layers of one shape, the model of several")
    _check_convolutions(keys, graph, decoder)
    _check_delta_rules(keys, graph, decoder)
    partial = any(rope.dim != attention.head_dim for rope in decoder.ropes)
    capped = decoder.logits_softcap is not None
    facts = {  # (what the graph has, what the model has)
        "attention to what comes after": (False, decoder.at_once),
        "activation": (graph.activation, layer.mlp.activation),
        "norm of q and k": (graph.qk_norm, attention.qk_norm),
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


def _check_convolutions(keys: _Keys, graph: Graph, decoder: Decoder) -> None:
    convolving = decoder.convolving
    if bool(convolving) != graph.convolutions:
        raise keys.fail(f"its architecture has {'' if graph.convolutions else 'no '}convolutions, unlike the model")
    if not convolving:
        return
    lengths = {each.length for each in convolving.values()}
    keys.check("shortconv.l_cache", keys.integer("shortconv.l_cache"), lengths.pop())
    heads = [0 if layer in convolving else decoder.attentions[0].n_kv_heads for layer in range(decoder.n_layers)]
    keys.check_integers("attention.head_count_kv", heads)


def _check_delta_rules(keys: _Keys, graph: Graph, decoder: Decoder) -> None:
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
    if (delta.n_key_heads, delta.key_dim) != (delta.n_value_heads, delta.value_dim):
        raise keys.fail("its architecture has as many heads of keys as of values, all of one size, unlike the model")
    keys.check_integers("attention.recurrent_layers", [int(each in correcting) for each in range(decoder.n_layers)])
    pairs = decoder.ropes[0].dim // 2
    keys.check_integers("rope.dimension_sections", [*(-(-(pairs - turn) // 3) for turn in range(3)), 0])


def _check_scales(keys: _Keys, graph: Graph, decoder: Decoder) -> None:
    wanted = {  # (what the model has, what llama.cpp assumes for a key that is absent)
        "attention.scale": (decoder.attentions[0].score_scale, decoder.attentions[0].head_dim ** -0.5),
        "embedding_scale": (decoder.embedding_scale, 1.0),
        "residual_scale": (decoder.layer(0).residual_scale, 1.0),
        "logit_scale": (1 / decoder.logits_scale, None),  # a divisor
    }
    if graph.scales:
        for key, (number, assumed) in wanted.items():
            keys.check(key, _float32(keys.number(key, assumed)), _float32(number))
        return
    for what, number in (("blocks' outputs", decoder.layer(0).residual_scale), ("logits", decoder.logits_scale)):
        if number != 1:
            raise keys.fail(f"its architecture multiplies the {what} by 1, the model by {number:g}")
    root = sqrt(decoder.hidden_size) if graph.scaled_embedding else 1.0
    # The model's scale is rounded to the type of its weights; the packager puts the rest into norms and epsilon.
    if abs(decoder.embedding_scale / root - 1) > 2**-8 * graph.scaled_embedding:
        raise keys.fail(f"its architecture multiplies embeddings by {root:g}, the model by {decoder.embedding_scale:g}")


def _check_numbers(keys: _Keys, graph: Graph, decoder: Decoder) -> None:
    attention = decoder.attentions[0]
    head = decoder.hidden_size // attention.n_heads
    sizes = {  # (what the model has, what llama.cpp assumes for a key that is absent)
        "block_count": (decoder.n_layers, None),
        "embedding_length": (decoder.hidden_size, None),
        "feed_forward_length": (decoder.layer(0).mlp.size, None),
        "attention.head_count": (attention.n_heads, None),
        "attention.key_length": (attention.head_dim, head),
        "attention.value_length": (attention.head_dim, head),
        "vocab_size": (decoder.n_vocab, decoder.n_vocab),
    }
    if not graph.convolutions:
        sizes["attention.head_count_kv"] = (attention.n_kv_heads, attention.n_heads)
    for key, (wanted, assumed) in sizes.items():
        keys.check(key, keys.integer(key, assumed), wanted)
    if decoder.n_layers > MAX_LAYERS:
        raise keys.fail(f"it has {decoder.n_layers} layers, llama.cpp allows {MAX_LAYERS}")
    keys.integer("context_length")
    if decoder.headless:
        keys.integer("pooling_type")  # for others: what this runtime asks for are the states
    numbers = {
        "attention.layer_norm_rms_epsilon": (_epsilon(graph, decoder), None),
        "rope.scaling.attn_factor": (_attention_factor(decoder), 1.0),
        "attn_logit_softcapping": (attention.softcap, graph.attention_softcap),
        "final_logit_softcapping": (decoder.logits_softcap, graph.logits_softcap or None),
    }
    for key, (number, assumption) in numbers.items():
        keys.check(key, keys.number(key, assumption), _float32(number))
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Array) and tokens.length != decoder.n_vocab:
        raise keys.fail(f"tokenizer.ggml.tokens has {tokens.length} entries, the model's vocabulary {decoder.n_vocab}")


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


def _check_positions(keys: _Keys, graph: Graph, decoder: Decoder) -> None:
    found = _positions(keys, graph, decoder)
    for layer, attention in decoder.attending.items():
        has, rope = found[layer], attention.rope
        wanted = _Position(
            _float32(rope.theta) if rope else None,
            rope.dim if rope else None,
            _float32(rope.scaling.factor if isinstance(rope.scaling, LinearScaling) else 1.0) if rope else None,
            _yarn_of(rope),
            attention.window,
        )
        for what, one, other in zip(
            ("rope's base", "rope's dimension", "rope's linear factor", "rope's yarn", "window"),
            _seen(has, decoder),
            _seen(wanted, decoder),
            strict=True,
        ):
            if one != other:
                raise keys.fail(f"the {what} of layer {layer} is {one}, the model's is {other}")


def _yarn_of(rope: Rope | None) -> _Yarn | None:
    if not rope or not isinstance(yarn := rope.scaling, YarnScaling):
        return None
    return _Yarn(_float32(yarn.factor), yarn.original_context, _float32(yarn.beta_fast), _float32(yarn.beta_slow))


def _seen(position: _Position, decoder: Decoder) -> _Position:
    """A window hides nothing from a context that it covers."""
    covered = position.window is not None and position.window >= decoder.context
    return position._replace(window=None) if covered else position


def _positions(keys: _Keys, graph: Graph, decoder: Decoder) -> list[_Position]:
    base, factor = keys.number("rope.freq_base", 10000.0), keys.number("rope.scaling.factor", 1.0)
    kind, yarn = keys.get("rope.scaling.type") or "linear", None
    original = keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))
    _check_temperature(keys, graph, decoder, original)
    if graph.yarn and kind == "yarn":
        fast = keys.number("rope.scaling.yarn_beta_fast", 32.0) if graph.turns else 32.0
        slow = keys.number("rope.scaling.yarn_beta_slow", 1.0) if graph.turns else 1.0
        factor, yarn = 1.0, _Yarn(factor, original, fast, slow)
    else:
        keys.check("rope.scaling.type", kind, "linear")
    dim = keys.integer("rope.dimension_count", decoder.attentions[0].head_dim)
    local = position = _Position(base, dim, factor, yarn, None)
    window = keys.integer("attention.sliding_window", graph.window) if graph.period else None
    if window:
        local_base = keys.number("rope.freq_base_swa", graph.local_base or base)
        local = _Position(
            base if graph.one_base else local_base, dim, factor if graph.local_scaling else 1.0, None, window
        )
    is_local = _local_layers(keys, graph, decoder)
    if graph.window and not (window and any(is_local)):
        # The engine ends the process.
        raise keys.fail("no layer has a window, and its architecture needs one")
    positions = [local if one else position for one in is_local]
    if graph.fourth_without_rope:
        positions[3::4] = [_SILENT] * len(positions[3::4])
    if graph.full_without_rope:
        positions = [position if one else _SILENT for position, one in zip(positions, is_local, strict=True)]
    return positions


def _check_temperature(keys: _Keys, graph: Graph, decoder: Decoder, original: int | None) -> None:
    temperature = decoder.attentions[0].temperature
    beta = keys.number("attention.temperature_scale") if graph.temperature else None
    keys.check("attention.temperature_scale", beta, _float32(temperature.beta if temperature else None))
    if temperature:
        keys.check("rope.scaling.original_context_length", original, temperature.length)


def _local_layers(keys: _Keys, graph: Graph, decoder: Decoder) -> list[bool]:
    if not graph.period:
        return [False] * decoder.n_layers
    pattern = keys.get("attention.sliding_window_pattern")
    if pattern is None:
        return [(layer + 1) % graph.period != 0 for layer in range(decoder.n_layers)]
    if not isinstance(pattern, Array) or len(pattern.values) != decoder.n_layers:
        raise keys.wrong("attention.sliding_window_pattern", pattern, f"{decoder.n_layers} numbers")
    return [bool(value) for value in pattern.values]


def _check_tensors(header: Header, decoder: Decoder, path: Path) -> None:
    """Check those that llama.cpp does without where they are absent; it looks for all others itself."""
    tensors = {tensor.name: tensor for tensor in header.tensors}
    embedding = tensors.get("token_embd.weight")
    if embedding is None or embedding.shape != (decoder.hidden_size, decoder.n_vocab):
        raise damaged(path, f"token_embd.weight has shape {embedding and embedding.shape}")
    if ("output.weight" in tensors) == decoder.tied:
        raise damaged(path, f"it has {'a' if decoder.tied else 'no'} head of its own, unlike the model")
    found = Counter(name.rpartition(".")[0].rpartition(".")[2] for name in tensors if name.endswith(".bias"))
    qkv = ("attn_qkv",) if "blk.0.attn_qkv.weight" in tensors else ("attn_q", "attn_k", "attn_v")
    attention, mlp = decoder.attentions[0], decoder.layer(0).mlp
    biases = qkv * attention.qkv_bias + ("attn_output",) * attention.output_bias
    biases += ("ffn_gate", "ffn_up", "ffn_down") * mlp.bias
    wanted = Counter(biases * decoder.n_layers) + Counter({"ssm_dt": len(decoder.correcting)})
    if found != wanted:
        raise damaged(path, f"it has biases on {', '.join(sorted(found)) or 'nothing'}, unlike the model")
    expected = _tables(decoder)
    for name in _TABLES:
        if (name in tensors) != (name in expected):
            raise damaged(path, f"it has {'a' if name in tensors else 'no'} tensor {name}, unlike the model")
        if name in expected:
            _check_table(tensors[name], expected[name])


def _check_table(tensor: Tensor, expected: NDArray[np.float32]) -> None:
    path = tensor.file
    if tensor.type_name != "f32" or tensor.shape != expected.shape:
        raise damaged(path, f"{tensor.name} is {tensor.type_name} of shape {tensor.shape}, not f32 of {expected.shape}")
    values = np.fromfile(path, "<f4", len(expected), offset=tensor.offset)
    if not np.allclose(values, expected, rtol=1e-5):
        raise damaged(path, f"{tensor.name} holds other factors than the model's rope")


def _tables(decoder: Decoder) -> dict[str, NDArray[np.float32]]:
    rope = decoder.ropes[0]
    match rope.scaling:
        case Llama3Scaling():
            return {_TABLES[0]: Rope(theta=rope.theta, dim=rope.dim).frequencies() / rope.frequencies()}
        case LongRopeScaling(factors):
            return dict.fromkeys(_TABLES[1:], np.array(factors, np.float32))
    return {}


def _float32(value: float | None) -> float | None:
    """The number that a key of 32 bits holds."""
    return None if value is None else float(np.float32(value))
