"""Attention: one GroupQueryAttention a layer, which keeps the cache, masks and softmaxes, and rotates where it can; of
what sees both sides, one Attention of ONNX's own.

Measured with onnxruntime 1.27 and 1.31 on a CPU, against float64: its ``local_window_size`` counts the position
itself, as ``Attention.window`` does; windows, softcap and scale are the same in one shot, in chunks and token by
token. Its own rotation wants a head dimension and a table of whole 16s (narrower than the head is partial rotation),
and it has no norms of q and k there: what it cannot do is done by operators before it.

With a cache of f16, q, k and v are rounded to it at the operator's door, after a rotation in float32, and its result is
cast back: CUDA has no other kernel of it. All the rest stays float32, whose range Gemma needs, and because CUDA's
RMSNorm of f16 also sums the squares in f16 (onnxruntime issue 29034).

With a cache of q8 the operator rounds keys and values to whole multiples of a scale for each channel when it appends
them, and attends in float32 over what that makes of them; q it does not round (measured with 1.27 to 1.32, by what it
leaves in the cache and by the same attention in float64: 2e-14).

A layer that reads the keys of another gives none: its key and value are empty, [1, 0, KV heads x head dimension], and
its past is the other's present, which the operator reads where it lies. Measured with 1.32, against the same attention
with the keys given again: no difference with windows, softcap and rotation, in one shot, in chunks and token by token.
The batch is one there; the operator continues no larger one by several tokens anyway. With a cache of q8 it wants a
present in any case, and on CUDA with one of f16 (which is not measured): a copy that nobody reads, of 8000 positions
with 256 numbers each in a millisecond.

GroupQueryAttention is causal. A text that is evaluated at once goes through Attention of opset 23, which takes a mask
of what each token sees, keeps nothing and rotates nothing. Measured with 1.27 and 1.32 against float64, in float32: up
to 8e-13 with windows, shared heads and a softcap, which comes before the mask.
"""

from __future__ import annotations

from edgepack.bundle.decoder import Attention, Decoder, Temperature
from edgepack.bundle.rope import Rope
from edgepack_packager.targets.onnx.nodes import Nodes

PAST = "past_key_values.{}.{}"
PRESENT = "present.{}.{}"
_TABLES, _SCALES = 7, 12  # which inputs of GroupQueryAttention they are


def lengths(nodes: Nodes, decoder: Decoder) -> None:
    """Add what every layer's attention needs of the mask: the last position of a row, the length of the whole, and
    the new tokens' positions where a rope is applied outside; or, of what sees both sides, what each token sees."""
    from onnx import TensorProto

    if decoder.at_once:
        _sights(nodes, decoder)
        return
    one = nodes.integers("one", 1)
    count = nodes.add("ReduceSum", ["attention_mask", one], "mask.count", keepdims=0)
    last = nodes.add("Sub", [count, one], "mask.last")
    nodes.add("Cast", [last], "seqlens_k", to=TensorProto.INT32)
    total = nodes.add("Shape", ["attention_mask"], "mask.total", start=1, end=2)
    nodes.add("Cast", [total], "total_sequence_length", to=TensorProto.INT32)
    if not any(_needs_positions(nodes, each) for each in decoder.attentions):
        return
    positions = _positions(nodes, "mask.positions")
    length = nodes.add("Shape", ["input_ids"], "input.length", start=1, end=2)
    start = nodes.add("Neg", [length], "input.start")
    nodes.add("Slice", [positions, start, nodes.end(), one], "position_ids")
    for temperature in decoder.temperatures:
        _growth(nodes, temperature)


def _positions(nodes: Nodes, name: str) -> str:
    """Add the position of each token that the mask knows: int64 [batch, total]."""
    one, zero = nodes.integers("one", 1), nodes.integers("zero", 0)
    counts = nodes.add("CumSum", ["attention_mask", one], "mask.counts")
    return nodes.add("Max", [nodes.add("Sub", [counts, one], "mask.numbers"), zero], name)


def _sights(nodes: Nodes, decoder: Decoder) -> None:
    """Add which tokens each one sees, for every reach: bool [batch, 1, sequence, sequence]."""
    from onnx import TensorProto

    positions = nodes.cast(_positions(nodes, "position_ids"), "sight.positions", "f32")
    row_axes, column_axes = nodes.integers("row_axes", 1, 3), nodes.integers("column_axes", 1, 2)
    rows = nodes.add("Unsqueeze", [positions, row_axes], "sight.rows")
    columns = nodes.add("Unsqueeze", [positions, column_axes], "sight.columns")
    distance = nodes.add("Abs", [nodes.add("Sub", [rows, columns], "sight.differences")], "sight.distances")
    tokens = nodes.add("Cast", ["attention_mask"], "sight.tokens", to=TensorProto.BOOL)
    there = nodes.add("Unsqueeze", [tokens, column_axes], "sight.there")
    for reach in sorted({_reach(decoder, each) for each in decoder.attentions}):
        near = nodes.add("Less", [distance, nodes.number(f"reach.{reach}", reach)], f"sight.{reach}.near")
        nodes.add("And", [near, there], f"sight.{reach}")
    for temperature in decoder.temperatures:
        _growth(nodes, temperature)


def _reach(decoder: Decoder, kind: Attention) -> int:
    """Return from which distance on a token sees no other."""
    return min(kind.window or decoder.context, decoder.context)


def attention(nodes: Nodes, decoder: Decoder, layer: int, inputs: str) -> str:
    """Add a layer's attention from its normed input to its output projection."""
    name, kind = f"layers.{layer}.attention", decoder.attention(layer)
    output = _attended(nodes, decoder, layer, *_parts(nodes, name, kind, inputs))
    if nodes.kv_cache == "f16":
        output = nodes.cast(output, f"{name}.output.single", "f32")
    if kind.gated:
        output = _opened(nodes, name, kind, inputs, output)
    return nodes.linear(f"{name}.o", output)


def _opened(nodes: Nodes, name: str, kind: Attention, inputs: str, output: str) -> str:
    """Add the gate of each element of the attention's result, or of each head's."""
    opened = nodes.add("Sigmoid", [nodes.linear(f"{name}.gate", inputs)], f"{name}.opened")
    if kind.gated != "heads":
        return nodes.add("Mul", [output, opened], f"{name}.gated")
    parts = {"heads": (output, kind.head_dim), "gates": (opened, 1)}
    apart = [
        nodes.add("Reshape", [of, nodes.integers(f"{kind.n_heads}x{size}", 0, 0, kind.n_heads, size)], f"{name}.{part}")
        for part, (of, size) in parts.items()
    ]
    return nodes.add(
        "Reshape", [nodes.add("Mul", apart, f"{name}.gated"), nodes.integers("flat", 0, 0, -1)], f"{name}.flat"
    )


def _parts(nodes: Nodes, name: str, kind: Attention, inputs: str) -> tuple[dict[str, str], list[str]]:
    """Add q, and k and v where the layer has its own, up to the operator; return them and the tables it rotates by."""
    heads = {"q": kind.n_heads} | ({"k": kind.n_kv_heads, "v": kind.n_kv_heads} if kind.owns else {})
    parts = {part: nodes.linear(f"{name}.{part}", inputs) for part in heads}
    turned = [part for part in parts if part != "v"]

    def head_norms() -> None:
        for part in turned:
            parts[part] = head_norm(nodes, f"{name}.{part}_norm", parts[part], heads[part], kind.head_dim)

    if kind.qk_norm == "width":
        parts |= {part: nodes.norm(f"{name}.{part}_norm", parts[part]) for part in turned}
    if kind.qk_norm == "head":
        head_norms()
    if kind.v_norm and kind.owns:
        ones = nodes.ones(kind.head_dim)
        parts["v"] = head_norm(nodes, f"{name}.v_norm", parts["v"], heads["v"], kind.head_dim, ones)
    tables: list[str] = []
    if kind.rope:
        tables = [nodes.stored(table) for table in nodes.layout.tables[kind.rope]]
        if not _rotates_inside(nodes, kind, kind.rope):
            for part in turned:
                parts[part] = _rotate(nodes, f"{name}.{part}", parts[part], heads[part], kind.rope, tables)
            tables = []
    if kind.qk_norm == "rotated":
        head_norms()
    if kind.temperature:
        parts["q"] = nodes.add("Mul", [parts["q"], _growth_name(kind.temperature)], f"{name}.q.grown")
    if nodes.kv_cache == "f16":
        parts = {part: nodes.cast(each, f"{name}.{part}.half", "f16") for part, each in parts.items()}
    return parts, tables


def _attended(nodes: Nodes, decoder: Decoder, layer: int, parts: dict[str, str], tables: list[str]) -> str:
    """Add the operator, over the layer's own keys and values or over those that another one keeps."""
    name, kind = f"layers.{layer}.attention", decoder.attention(layer)
    if kind.bidirectional:
        return nodes.add(
            "Attention",
            [parts["q"], parts["k"], parts["v"], f"sight.{_reach(decoder, kind)}"],
            f"{name}.output",
            q_num_heads=kind.n_heads,
            kv_num_heads=kind.n_kv_heads,
            scale=kind.score_scale,
            softcap=kind.softcap or 0.0,
        )
    keeper = kind.kv_layer if isinstance(kind.kv_layer, int) else layer
    scales: list[str] = []
    kinds: dict[str, str | int] = {}
    if nodes.kv_cache == "q8":
        unused = [""] * (_SCALES - _TABLES - len(tables))
        kept = nodes.layout.caches
        scales = [*unused, *(nodes.stored(kept[f"layers.{keeper}.attention.{part}"]) for part in ("k", "v"))]
        kinds = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    if kind.owns:
        given = [parts[part] for part in ("k", "v")]
        caches, made = ([pattern.format(layer, part) for part in ("key", "value")] for pattern in (PAST, PRESENT))
    else:
        given = [nodes.nothing(kind.kv_size)] * 2
        caches = [PRESENT.format(keeper, part) for part in ("key", "value")]
        made = [] if nodes.kv_cache == "f32" else [f"{name}.{part}.copy" for part in ("key", "value")]
    return nodes.contrib(
        "GroupQueryAttention",
        [parts["q"], *given, *caches, "seqlens_k", "total_sequence_length", *tables, *scales],
        f"{name}.output",
        *made,
        num_heads=kind.n_heads,
        kv_num_heads=kind.n_kv_heads,
        do_rotary=int(bool(tables)),
        local_window_size=min(kind.window, decoder.context) if kind.window else -1,
        scale=kind.score_scale,
        softcap=kind.softcap or 0.0,
        **kinds,
    )


def _needs_positions(nodes: Nodes, attention: Attention) -> bool:
    rotates = attention.rope is not None and not _rotates_inside(nodes, attention, attention.rope)
    return rotates or attention.temperature is not None


def _growth_name(temperature: Temperature) -> str:
    return f"temperature.{temperature.beta:g}.{temperature.length}"


def _growth(nodes: Nodes, temperature: Temperature) -> None:
    """Add what the queries of each position are multiplied by: float32 [batch, sequence, 1]."""
    name = _growth_name(temperature)
    axis, length = nodes.integers("last_axis", -1), nodes.integers(f"{name}.length", temperature.length)
    times = nodes.cast(nodes.add("Div", ["position_ids", length], f"{name}.whole"), f"{name}.times", "f32")
    one, beta = nodes.number("unit", 1.0), nodes.number(f"{name}.beta", temperature.beta)
    logarithm = nodes.add("Log", [nodes.add("Add", [times, one], f"{name}.counted")], f"{name}.log")
    grown = nodes.add("Add", [nodes.add("Mul", [logarithm, beta], f"{name}.part"), one], f"{name}.flat")
    nodes.add("Unsqueeze", [grown, axis], name)


def _rotates_inside(nodes: Nodes, attention: Attention, rope: Rope) -> bool:
    """Whether the operator can rotate: what is done to q and k between their rotation and it, it cannot."""
    if attention.qk_norm == "rotated" or attention.bidirectional:
        return False
    return nodes.kv_cache != "f16" and attention.head_dim % 16 == 0 and rope.dim % 16 == 0


def head_norm(nodes: Nodes, name: str, inputs: str, heads: int, size: int, gain: str = "") -> str:
    """Add an RMSNorm over each head of [batch, sequence, heads x size], by its own gain or by another."""
    split = nodes.add("Reshape", [inputs, nodes.integers(f"{heads}x{size}", 0, 0, heads, size)], f"{name}.heads")
    return nodes.add("Reshape", [nodes.norm(name, split, gain), nodes.integers("flat", 0, 0, -1)], f"{name}.flat")


def _rotate(nodes: Nodes, name: str, inputs: str, heads: int, rope: Rope, tables: list[str]) -> str:
    return nodes.contrib(
        "RotaryEmbedding",
        [inputs, "position_ids", *tables],
        f"{name}.rotated",
        num_heads=heads,
        rotary_embedding_dim=rope.dim,
    )
