"""Attention: one GroupQueryAttention a layer, which keeps the cache, masks and softmaxes, and rotates where it can.

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
    the new tokens' positions where a rope is applied outside."""
    from onnx import TensorProto

    one = nodes.integers("one", 1)
    count = nodes.add("ReduceSum", ["attention_mask", one], "mask.count", keepdims=0)
    last = nodes.add("Sub", [count, one], "mask.last")
    nodes.add("Cast", [last], "seqlens_k", to=TensorProto.INT32)
    total = nodes.add("Shape", ["attention_mask"], "mask.total", start=1, end=2)
    nodes.add("Cast", [total], "total_sequence_length", to=TensorProto.INT32)
    if not any(_needs_positions(nodes, each) for each in decoder.attentions):
        return
    zero = nodes.integers("zero", 0)
    counts = nodes.add("CumSum", ["attention_mask", one], "mask.counts")
    numbers = nodes.add("Sub", [counts, one], "mask.numbers")
    positions = nodes.add("Max", [numbers, zero], "mask.positions")
    length = nodes.add("Shape", ["input_ids"], "input.length", start=1, end=2)
    start = nodes.add("Neg", [length], "input.start")
    nodes.add("Slice", [positions, start, nodes.end(), one], "position_ids")
    for temperature in decoder.temperatures:
        _growth(nodes, temperature)


def attention(nodes: Nodes, decoder: Decoder, layer: int, inputs: str) -> str:
    """Add a layer's attention from its normed input to its output projection."""
    name, kind = f"layers.{layer}.attention", decoder.attention(layer)
    q, k, v = (nodes.linear(f"{name}.{part}", inputs) for part in ("q", "k", "v"))
    if kind.qk_norm == "width":
        q, k = (nodes.norm(f"{name}.{part}_norm", each) for part, each in (("q", q), ("k", k)))
    if kind.qk_norm == "head":
        q, k = _head_norms(nodes, name, kind, q, k)
    tables: list[str] = []
    if kind.rope:
        cosine, sine = nodes.layout.tables[kind.rope]
        tables = [nodes.stored(cosine), nodes.stored(sine)]
        if not _rotates_inside(nodes, kind, kind.rope):
            q = _rotate(nodes, f"{name}.q", q, kind.n_heads, kind.rope, tables)
            k = _rotate(nodes, f"{name}.k", k, kind.n_kv_heads, kind.rope, tables)
            tables = []
    if kind.qk_norm == "rotated":
        q, k = _head_norms(nodes, name, kind, q, k)
    if kind.temperature:
        q = nodes.add("Mul", [q, _growth_name(kind.temperature)], f"{name}.q.grown")
    if nodes.kv_cache == "f16":
        q, k, v = (nodes.cast(each, f"{name}.{part}.half", "f16") for each, part in ((q, "q"), (k, "k"), (v, "v")))
    scales: list[str] = []
    kinds: dict[str, str | int] = {}
    if nodes.kv_cache == "q8":
        unused = [""] * (_SCALES - _TABLES - len(tables))
        scales = [*unused, *(nodes.stored(nodes.layout.caches[f"{name}.{part}"]) for part in ("k", "v"))]
        kinds = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    caches = [PAST.format(layer, part) for part in ("key", "value")]
    output = nodes.contrib(
        "GroupQueryAttention",
        [q, k, v, *caches, "seqlens_k", "total_sequence_length", *tables, *scales],
        f"{name}.output",
        *(PRESENT.format(layer, part) for part in ("key", "value")),
        num_heads=kind.n_heads,
        kv_num_heads=kind.n_kv_heads,
        do_rotary=int(bool(tables)),
        local_window_size=min(kind.window, decoder.context) if kind.window else -1,
        scale=kind.score_scale,
        softcap=kind.softcap or 0.0,
        **kinds,
    )
    if nodes.kv_cache == "f16":
        output = nodes.cast(output, f"{name}.output.single", "f32")
    if kind.gated:
        opened = nodes.add("Sigmoid", [nodes.linear(f"{name}.gate", inputs)], f"{name}.opened")
        output = nodes.add("Mul", [output, opened], f"{name}.gated")
    return nodes.linear(f"{name}.o", output)


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
    if attention.qk_norm == "rotated":
        return False
    return nodes.kv_cache != "f16" and attention.head_dim % 16 == 0 and rope.dim % 16 == 0


def _head_norms(nodes: Nodes, name: str, kind: Attention, q: str, k: str) -> tuple[str, str]:
    return (
        _head_norm(nodes, f"{name}.q_norm", q, (kind.n_heads, kind.head_dim)),
        _head_norm(nodes, f"{name}.k_norm", k, (kind.n_kv_heads, kind.head_dim)),
    )


def _head_norm(nodes: Nodes, name: str, inputs: str, heads: tuple[int, int]) -> str:
    """Add an RMSNorm over each head of [batch, sequence, heads x head dimension]."""
    apart = nodes.integers("x".join(map(str, heads)), 0, 0, *heads)
    split = nodes.add("Reshape", [inputs, apart], f"{name}.heads")
    return nodes.add("Reshape", [nodes.norm(name, split), nodes.integers("flat", 0, 0, -1)], f"{name}.flat")


def _rotate(nodes: Nodes, name: str, inputs: str, heads: int, rope: Rope, tables: list[str]) -> str:
    return nodes.contrib(
        "RotaryEmbedding",
        [inputs, "position_ids", *tables],
        f"{name}.rotated",
        num_heads=heads,
        rotary_embedding_dim=rope.dim,
    )
