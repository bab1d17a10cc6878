"""The graph that a decoder has: every operator, attribute and initialiser that a file may hold, in plain data.

An engine computes what a file says, and some of it ends the process or fills the memory: a number of heads that divides
by nothing, positions behind the end of a table, a product of two matrices of weights. What is not the graph of the
decoder is therefore no graph. The file itself decides how each matrix is stored, how exactly quantised
products are computed, and the type of the KV cache.
"""

from __future__ import annotations

from typing import Final

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp, Temperature
from edgepack.bundle.rope import Rope
from edgepack_runtimes.onnx.building import Building
from edgepack_runtimes.onnx.operators import BOOL, F16, F32, I32, Attribute, Graph, Tensor

_TABLES: Final = 7
_SCALES: Final = 12


def output_name(decoder: Decoder) -> str:
    """Return what the graph calls what it gives after each token; ``<name>_start`` says from which on."""
    return "states" if decoder.headless else "logits"


def expected(decoder: Decoder, found: Graph) -> Graph:
    """Return the graph of a decoder that stores its matrices as the one that was found does."""
    building = _Decoding(decoder, found)
    building.lengths()
    building.decode()
    return building.graph


class _Decoding(Building):
    def __init__(self, decoder: Decoder, found: Graph) -> None:
        super().__init__(decoder, found)
        self._ropes = {rope: f"rope.{index}" for index, rope in enumerate(decoder.ropes)}
        self._half = f"layers.{min(decoder.attending)}.attention.q.half" in self._made_by
        self._bytes = found.quantized_cache

    def lengths(self) -> None:
        """What every layer's attention needs of the mask."""
        if self._decoder.at_once:
            self._sights()
            return
        one = self._integers("one", 1)
        count = self._add("ReduceSum", ["attention_mask", one], "mask.count", keepdims=0)
        last = self._add("Sub", [count, one], "mask.last")
        self._cast(last, "seqlens_k", I32)
        total = self._add("Shape", ["attention_mask"], "mask.total", start=1, end=2)
        self._cast(total, "total_sequence_length", I32)
        if not any(self._needs_positions(each) for each in self._decoder.attentions):
            return
        positions = self._positions("mask.positions")
        length = self._add("Shape", ["input_ids"], "input.length", start=1, end=2)
        start = self._add("Neg", [length], "input.start")
        self._add("Slice", [positions, start, self._end(), one], "position_ids")
        for temperature in self._decoder.temperatures:
            self._growth(temperature)

    def _positions(self, name: str) -> str:
        one, zero = self._integers("one", 1), self._integers("zero", 0)
        counts = self._add("CumSum", ["attention_mask", one], "mask.counts")
        return self._add("Max", [self._add("Sub", [counts, one], "mask.numbers"), zero], name)

    def _sights(self) -> None:
        """Which tokens each one sees of a text that is evaluated at once, for every reach."""
        positions = self._cast(self._positions("position_ids"), "sight.positions", F32)
        row_axes, column_axes = self._integers("row_axes", 1, 3), self._integers("column_axes", 1, 2)
        rows = self._add("Unsqueeze", [positions, row_axes], "sight.rows")
        columns = self._add("Unsqueeze", [positions, column_axes], "sight.columns")
        distance = self._add("Abs", [self._add("Sub", [rows, columns], "sight.differences")], "sight.distances")
        there = self._add("Unsqueeze", [self._cast("attention_mask", "sight.tokens", BOOL), column_axes], "sight.there")
        for reach in sorted({self._reach(each) for each in self._decoder.attentions}):
            near = self._add("Less", [distance, self._number(f"reach.{reach}", reach)], f"sight.{reach}.near")
            self._add("And", [near, there], f"sight.{reach}")
        for temperature in self._decoder.temperatures:
            self._growth(temperature)

    def _reach(self, kind: Attention) -> int:
        """From which distance on a token sees no other."""
        return min(kind.window or self._decoder.context, self._decoder.context)

    def decode(self) -> None:
        """From token ids to logits, or to states."""
        residual, output = self._embedded(), ""
        if self._decoder.inputs:
            self._token_inputs(residual)
        mixers = {"attention": self._attention, "convolution": self._convolution, "delta": self._delta}
        for index, layer in enumerate(self._decoder.layers):
            mixes, feeds = f"layers.{index}.{layer.mixer.room}", f"layers.{index}.mlp"
            inputs, residual = self._entered(layer, mixes, output, residual)
            output = self._left(layer, mixes, mixers[layer.mixer.room](index, inputs))
            inputs, residual = self._entered(layer, feeds, output, residual)
            output = self._left(layer, feeds, self._mlp(layer.mlp, feeds, inputs))
            output, residual = self._finished(layer, f"layers.{index}", output, residual)
        self._head(self._norm_of_sum("norm", output, residual)[0] if output else self._norm("norm", residual))

    def _entered(self, layer: Layer, block: str, output: str, residual: str) -> tuple[str, str]:
        """The output before is added to the stream, mostly by the norm: return what a block reads, and the stream."""
        if not layer.pre_norms:
            residual = self._add("Add", [output, residual], f"{block}.residual") if output else residual
            return residual, residual
        if not output:
            return self._norm(f"{block}.norm", residual), residual
        return self._norm_of_sum(f"{block}.norm", output, residual)

    def _left(self, layer: Layer, block: str, output: str) -> str:
        """What a layer makes of a block's output before it joins the stream."""
        if layer.post_norms:
            output = self._norm(f"{block}.post_norm", output)
        return output if layer.residual_scale == 1 else self._scaled(block, output, layer.residual_scale)

    def _embedded(self) -> str:
        rows, scale = self._gathered("embedding"), self._decoder.embedding_scale
        return rows if scale == 1.0 else self._scaled("embedding", rows, scale)

    def _token_inputs(self, embedded: str) -> None:
        """What each layer gets of the tokens: of their rows of a table, and of their scaled embeddings."""
        n, size = self._decoder.n_layers, self._decoder.inputs
        rows = self._gathered("inputs.embedding")
        rows = self._scaled("inputs.embedding", rows, size**0.5)
        projected = self._linear("inputs.projection", embedded)
        projected = self._scaled("inputs.projection", projected, self._decoder.hidden_size**-0.5)
        total = self._add("Add", [self._head_norm("inputs.norm", projected, n, size), rows], "inputs.sum")
        parts = (f"layers.{layer}.inputs" for layer in range(n))
        self._add("Split", [self._scaled("inputs", total, 2**-0.5)], *parts, axis=-1, num_outputs=n)

    def _finished(self, layer: Layer, name: str, output: str, residual: str) -> tuple[str, str]:
        """What follows a layer's blocks, of the stream with the output of the last: return both as ``_entered``."""
        if layer.inputs:
            residual = self._add("Add", [output, residual], f"{name}.inputs.residual")
            gate = self._activated(layer.mlp, f"{name}.inputs", self._linear(f"{name}.inputs.gate", residual))
            product = self._add("Mul", [gate, f"{name}.inputs"], f"{name}.inputs.product")
            output = self._norm(f"{name}.inputs.post_norm", self._linear(f"{name}.inputs.out", product))
        if not layer.scaled:
            return output, residual
        total = self._add("Add", [output, residual], f"{name}.residual")
        return "", self._add("Mul", [total, self._stored(f"{name}.scale.weight", F32, 1)], f"{name}.scaled")

    def _attention(self, layer: int, inputs: str) -> str:
        name, kind = f"layers.{layer}.attention", self._decoder.attention(layer)
        output = self._attended(layer, *self._parts(name, kind, inputs))
        output = self._cast(output, f"{name}.output.single", F32) if self._half else output
        if kind.gated:
            output = self._opened(name, kind, inputs, output)
        return self._linear(f"{name}.o", output)

    def _opened(self, name: str, kind: Attention, inputs: str, output: str) -> str:
        opened = self._add("Sigmoid", [self._linear(f"{name}.gate", inputs)], f"{name}.opened")
        if kind.gated != "heads":
            return self._add("Mul", [output, opened], f"{name}.gated")
        apart = [
            self._add("Reshape", [of, self._integers(f"{kind.n_heads}x{size}", 0, 0, kind.n_heads, size)], made)
            for of, size, made in ((output, kind.head_dim, f"{name}.heads"), (opened, 1, f"{name}.gates"))
        ]
        product = self._add("Mul", apart, f"{name}.gated")
        return self._add("Reshape", [product, self._integers("flat", 0, 0, -1)], f"{name}.flat")

    def _parts(self, name: str, kind: Attention, inputs: str) -> tuple[dict[str, str], list[str]]:
        """q, and what the layer has of k and v, as attention takes them, and the tables that it rotates them by."""
        heads = {"q": kind.n_heads, "k": kind.n_kv_heads, "v": kind.n_kv_heads} if kind.owns else {"q": kind.n_heads}
        parts = {part: self._linear(f"{name}.{part}", inputs) for part in heads}
        turned = [part for part in parts if part != "v"]
        if kind.qk_norm == "width":
            parts |= {part: self._norm(f"{name}.{part}_norm", parts[part]) for part in turned}
        if kind.qk_norm == "head":
            self._norm_heads(name, kind, parts, turned)
        if kind.v_norm and kind.owns:
            gain = self._ones(kind.head_dim)
            parts["v"] = self._head_norm(f"{name}.v_norm", parts["v"], kind.n_kv_heads, kind.head_dim, gain)
        tables: list[str] = []
        if kind.rope:
            table = (self._decoder.context, kind.rope.dim // 2)
            tables = [self._stored(f"{self._ropes[kind.rope]}.{each}", F32, *table) for each in ("cosine", "sine")]
            if not self._rotates_inside(kind, kind.rope):
                for part in turned:
                    parts[part] = self._rotated(f"{name}.{part}", parts[part], heads[part], kind.rope, tables)
                tables = []
        if kind.qk_norm == "rotated":
            self._norm_heads(name, kind, parts, turned)
        if kind.temperature:
            parts["q"] = self._add("Mul", [parts["q"], _growth_name(kind.temperature)], f"{name}.q.grown")
        if self._half:
            parts = {part: self._cast(each, f"{name}.{part}.half", F16) for part, each in parts.items()}
        return parts, tables

    def _norm_heads(self, name: str, kind: Attention, parts: dict[str, str], turned: list[str]) -> None:
        for part in turned:
            heads = kind.n_heads if part == "q" else kind.n_kv_heads
            parts[part] = self._head_norm(f"{name}.{part}_norm", parts[part], heads, kind.head_dim)

    def _attended(self, layer: int, parts: dict[str, str], tables: list[str]) -> str:
        """Attention to the layer's own keys and values, or to those that another layer keeps."""
        name, kind = f"layers.{layer}.attention", self._decoder.attention(layer)
        if kind.bidirectional:
            return self._add(
                "Attention",
                [parts["q"], parts["k"], parts["v"], f"sight.{self._reach(kind)}"],
                f"{name}.output",
                q_num_heads=kind.n_heads,
                kv_num_heads=kind.n_kv_heads,
                scale=kind.score_scale,
                softcap=kind.softcap or 0.0,
            )
        keeper = kind.kv_layer if isinstance(kind.kv_layer, int) else layer
        scales: list[str] = []
        kinds: dict[str, Attribute] = {}
        if self._bytes:
            shape, kept = (1, kind.n_kv_heads, 1, kind.head_dim), f"layers.{keeper}.attention"
            unused = [""] * (_SCALES - _TABLES - len(tables))
            scales = [*unused, *(self._stored(f"{kept}.{part}.cache.scales", F32, *shape) for part in ("k", "v"))]
            kinds = {"k_quant_type": b"PER_CHANNEL", "v_quant_type": b"PER_CHANNEL", "kv_cache_bit_width": 8}
        present = [f"present.{keeper}.{part}" for part in ("key", "value")]
        if kind.owns:
            given, past = [parts["k"], parts["v"]], [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        else:
            given, past = [self._nothing(kind.kv_size)] * 2, present
            copies = self._half or self._bytes
            present = [f"{name}.{part}.copy" for part in ("key", "value")] if copies else []
        return self._add(
            "GroupQueryAttention",
            [parts["q"], *given, *past, "seqlens_k", "total_sequence_length", *tables, *scales],
            f"{name}.output",
            *present,
            num_heads=kind.n_heads,
            kv_num_heads=kind.n_kv_heads,
            do_rotary=int(bool(tables)),
            local_window_size=min(kind.window, self._decoder.context) if kind.window else -1,
            scale=kind.score_scale,
            softcap=kind.softcap or 0.0,
            domain="",
            **kinds,
        )

    def _nothing(self, width: int) -> str:
        """The keys, or values, of no position."""
        self.graph.tensors[f"nothing.{width}"] = Tensor(F16 if self._half else F32, (1, 0, width), ())
        return f"nothing.{width}"

    def _convolution(self, layer: int, inputs: str) -> str:
        name, kind = f"layers.{layer}.convolution", self._decoder.convolving[layer]
        parts = tuple(f"{name}.{part}" for part in ("opening", "closing", "values"))
        self._add("Split", [self._linear(f"{name}.in", inputs)], *parts, axis=-1, num_outputs=3)
        gated = self._add("Mul", [parts[0], parts[2]], f"{name}.gated")
        bias = self._stored(f"{name}.kernel.bias", F32, self._decoder.hidden_size) if kind.bias else ""
        mixed = self._convolved(name, layer, gated, (self._decoder.hidden_size, 1, kind.length), bias)
        return self._linear(f"{name}.out", self._add("Mul", [parts[1], mixed], f"{name}.closed"))

    def _delta(self, layer: int, inputs: str) -> str:
        name, kind = f"layers.{layer}.delta", self._decoder.correcting[layer]
        joined = self._linear(f"{name}.qkv", inputs)
        mixed = self._convolved(name, layer, joined, (kind.channels, 1, kind.length), activation=b"silu")
        sizes = self._integers("delta.sizes", 2 * kind.key_size, kind.value_size)
        self._add("Split", [mixed, sizes], f"{name}.qk.joined", f"{name}.v.joined", axis=-1)
        shapes = ("qk", 2 * kind.n_key_heads, kind.key_dim), ("v", kind.n_value_heads, kind.value_dim)
        both, values = (
            self._add("Reshape", [f"{name}.{of}.joined", self._integers(f"{n}x{d}", 0, 0, n, d)], f"{name}.{of}.heads")
            for of, n, d in shapes
        )
        parts = f"{name}.q.heads", f"{name}.k.heads"
        self._add("Split", [self._unit(f"{name}.qk", both)], *parts, axis=2, num_outputs=2)
        a, b = (self._linear(f"{name}.{part}", inputs) for part in ("a", "b"))
        vectors = ("decay", "step", "head_norm")
        decay, step, gain = (self._stored(f"{name}.{p}.weight", F32, *self._shapes[f"{name}.{p}"]) for p in vectors)
        found = self._add(
            "GatedDeltaNet",
            [*parts, values, "", a, b, f"past_delta.{layer}", decay, step],
            f"{name}.found",
            f"present_delta.{layer}",
            gate_activation=b"softplus",
            beta_activation=b"sigmoid",
            scale=kind.key_dim**-0.5,
        )
        flat = self._add("Reshape", [found, self._integers("flat", 0, 0, -1)], f"{name}.flat")
        inner = [flat, gain, self._linear(f"{name}.z", inputs)]
        gated = self._add("GatedRMSNorm", inner, f"{name}.gated", epsilon=self._decoder.norm_eps, activation=b"silu")
        return self._linear(f"{name}.out", gated)

    def _unit(self, name: str, inputs: str) -> str:
        axis = self._integers("last_axis", -1)
        squares = self._add("ReduceSumSquare", [inputs, axis], f"{name}.squares", keepdims=1)
        more = self._add("Add", [squares, self._number("delta.epsilon", 1e-6)], f"{name}.more")
        return self._add("Div", [inputs, self._add("Sqrt", [more], f"{name}.length")], f"{name}.unit")

    def _convolved(
        self, name: str, layer: int, inputs: str, dims: tuple[int, ...], bias: str = "", activation: bytes = b"none"
    ) -> str:
        kernel = self._stored(f"{name}.kernel.weight", F32, *dims)
        states = f"past_conv.{layer}", f"present_conv.{layer}"
        return self._add(
            "CausalConvWithState",
            [inputs, kernel, bias, states[0]],
            f"{name}.mixed",
            states[1],
            ndim=1,
            channels_last=1,
            activation=activation,
        )

    def _mlp(self, mlp: Mlp, name: str, inputs: str) -> str:
        gate, up = (self._linear(f"{name}.{part}", inputs) for part in ("gate", "up"))
        product = self._add("Mul", [self._activated(mlp, name, gate), up], f"{name}.product")
        return self._linear(f"{name}.down", product)

    def _activated(self, mlp: Mlp, name: str, inputs: str) -> str:
        if mlp.activation == "silu":
            sigmoid = self._add("Sigmoid", [inputs], f"{name}.sigmoid")
            return self._add("Mul", [inputs, sigmoid], f"{name}.activated")
        return self._add("Gelu", [inputs], f"{name}.activated", approximate=b"tanh")

    def _head(self, inputs: str) -> None:
        name, headless = output_name(self._decoder), self._decoder.headless
        bounds = [self._integers(f"{name}_start", 0), self._end(), self._integers("position_axis", 1)]
        last = self._add("Slice", [inputs, *bounds], name if headless else "head.input")
        if headless:
            return
        stored = "embedding" if self._decoder.tied else "head"
        cap, scale = self._decoder.logits_softcap, self._decoder.logits_scale
        made = self._product("head", stored, last, "logits" if cap is None and scale == 1 else "head.output")
        if scale != 1:
            by = self._number("logits.scale", scale)
            made = self._add("Mul", [made, by], "logits" if cap is None else "head.scaled")
        if cap is None:
            return
        limit = self._number("logits.softcap", cap)
        parts = self._add("Div", [made, limit], "head.parts")
        self._add("Mul", [self._add("Tanh", [parts], "head.tanh"), limit], "logits")

    def _needs_positions(self, attention: Attention) -> bool:
        rotates = attention.rope is not None and not self._rotates_inside(attention, attention.rope)
        return rotates or attention.temperature is not None

    def _growth(self, temperature: Temperature) -> None:
        """What the queries of each position are multiplied by."""
        name = _growth_name(temperature)
        axis, length = self._integers("last_axis", -1), self._integers(f"{name}.length", temperature.length)
        times = self._cast(self._add("Div", ["position_ids", length], f"{name}.whole"), f"{name}.times", F32)
        one, beta = self._number("unit", 1.0), self._number(f"{name}.beta", temperature.beta)
        logarithm = self._add("Log", [self._add("Add", [times, one], f"{name}.counted")], f"{name}.log")
        grown = self._add("Add", [self._add("Mul", [logarithm, beta], f"{name}.part"), one], f"{name}.flat")
        self._add("Unsqueeze", [grown, axis], name)

    def _rotates_inside(self, attention: Attention, rope: Rope) -> bool:
        if attention.qk_norm == "rotated" or attention.bidirectional:
            return False
        return not self._half and attention.head_dim % 16 == 0 and rope.dim % 16 == 0

    def _rotated(self, name: str, inputs: str, heads: int, rope: Rope, tables: list[str]) -> str:
        return self._add(
            "RotaryEmbedding",
            [inputs, "position_ids", *tables],
            f"{name}.rotated",
            num_heads=heads,
            rotary_embedding_dim=rope.dim,
        )


def _growth_name(temperature: Temperature) -> str:
    return f"temperature.{temperature.beta:g}.{temperature.length}"
