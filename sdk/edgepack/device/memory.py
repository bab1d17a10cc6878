"""What a loaded model needs of the memory: the arithmetic behind a plan. Pure: a decoder and numbers go in.

Every formula is what an engine allocates and touches, compared with resident memory by ``benchmarks/memory.py`` on the
engines that are bound today; docs/benchmarks.md has the table.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgepack.bundle.decoder import Decoder, KvCache
from edgepack.device.engine import Options

CHUNK = 128
_KV_BITS: Mapping[KvCache, float] = {"f32": 32, "f16": 16, "q8": 8}
Q8_BLOCK: Mapping[str, int] = {"gguf": 32}
"""The neighbours in a head that share a 16-bit scale in a KV cache of q8, where it has such scales: ggml's q8_0."""

MIB = 1 << 20
PROCESS = 36 * MIB
"""Python 3.11, numpy and this package before a load: VmRSS after ``import edgepack, numpy; edgepack.load``."""

_KV_PADDING: Mapping[str, int] = {"gguf": 256}
"""The cells of llama.cpp's KV cache are a multiple of this."""

_ROLLING = frozenset({"gguf", "mlx"})
"""The runtimes whose layers with a window hold no more than they need of a long context."""

MARKS = 4
"""How many states of an earlier length a session keeps beside its own, of layers that keep one whatever the length."""

ROOM = 2
"""How many windows such a layer holds: one that the next token sees, and one that can be taken back."""

_TOUCHED = 64 << 10
"""The bytes of a mapped file that become resident with one that is read: Linux maps so many around it, where the file
cache has them (``fault_around_bytes``; more of it in large folios)."""

_REPACKED: Mapping[str, tuple[int, float]] = {"q4_0": (32, 4.5), "iq4_nl": (32, 4.5), "q4_k_m": (256, 3.8)}
"""The blocks that a row must consist of for llama.cpp to rearrange it, and the bits of a layer's weight that it then
rearranges: all of them, and all but those in q6_K, a seventh. What q4_k_m has in their place in other rows has no such
form."""


_MLX_GROUP = 64
"""The neighbours in a row that share a scale and a bias in MLX's forms, but where a form's name says another number."""


@dataclass(frozen=True, slots=True)
class _Engine:
    """What a load adds beside the model, in bytes: ``code`` whatever the model, with the engine's state and the text
    side's libraries, and ``token`` for each entry of the tokenizer, its merges included.

    ``code`` is what ``benchmarks/memory.py`` measures of the demo model beyond the rest of the prediction; ``token`` is
    the size of ``tokenizer.bin`` per entry of four published tokenizers of 32,000 to 152,000: 30 to 53 bytes.
    """

    code: int
    token: int


_ENGINES: Mapping[str, _Engine] = {
    "gguf": _Engine(28 * MIB, 300),  # reads the vocabulary of the file too, and leaves it behind
    "onnx": _Engine(45 * MIB, 60),
    "mlx": _Engine(28 * MIB, 60),
}
_OTHER = _Engine(0, 60)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a candidate needs, and that the machine has available (None: the system does not say).

    ``weights`` are as the engine keeps them, with the copy that it may rearrange for this processor; ``kv_cache`` is
    that of a full context, with states that do not grow; ``overhead`` is what one prefill step works in; ``engine`` is
    its code and the tokenizer; ``loading`` is what the load takes beyond all these, before there is a cache or a step;
    ``draft`` is what a draft model adds to all of these.
    """

    weights: int
    kv_cache: int
    overhead: int
    engine: int
    available: int | None
    loading: int = 0
    draft: int = 0

    @property
    def total(self) -> int:
        """The most that a load or a full context adds to this process: the figure that is compared with ``available``.

        Pages of a mapped file count, though the system could drop them: every token would read them again.
        """
        return self.weights + self.kv_cache + self.overhead + self.engine + self.loading + self.draft

    @property
    def peak(self) -> int:
        """The most that is resident in a process that does nothing but load and generate (VmHWM, ``ru_maxrss``)."""
        return self.total + PROCESS

    @property
    def fits(self) -> bool:
        """Whether the total is at most what is available, or the system does not say what is."""
        return self.available is None or self.total <= self.available


@dataclass(frozen=True, slots=True)
class Payload:
    """What is loaded, and on which device: ``weights`` and ``loading`` are the manifest's ``weights_bytes`` and
    ``loading_bytes``, ``rows`` are the entries of the tokenizer, ``code`` is the engine's own where it says so, see
    ``Support``."""

    decoder: Decoder
    runtime: str
    scheme: str
    weights: int
    rows: int
    device: str = "cpu"
    code: int | None = None
    loading: int = 0


def needed(payload: Payload, options: Options, available: int | None = None) -> Memory:
    """Return what a payload needs under the options: at most what a load takes, or a full context.

    A load has ``payload.loading`` for a second copy of a matrix, and neither cache nor step. A full context has both,
    and of that matrix, which is the embedding or no smaller, what its tokens touch: ``_TOUCHED`` each, and no rows
    without an entry of the tokenizer. The total never falls as the context grows.
    """
    decoder, runtime = payload.decoder, payload.runtime
    engine = _ENGINES.get(runtime, _OTHER)
    cells, count = cells_of(runtime, options, None), options.sequences
    second = min(payload.loading, payload.weights)
    entries = min(payload.rows, decoder.n_vocab)
    touched = min(second * entries // decoder.n_vocab, _TOUCHED * options.context * count)
    kept = payload.weights - second + touched
    cache = kv_bytes(decoder, runtime, options.kv_cache, cells, options.chunk, count)
    cache += count * state_bytes(decoder, runtime)
    overhead = overhead_bytes(decoder, runtime, options.kv_cache, cells, _step(decoder, options), count)
    return Memory(
        weights=kept + _repacked_bytes(payload, options.repack) + _widened_bytes(payload, options.kv_cache),
        kv_cache=cache,
        overhead=overhead,
        engine=(engine.code if payload.code is None else payload.code) + engine.token * payload.rows,
        available=available,
        loading=max(0, second - touched - cache - overhead),
    )


def _step(decoder: Decoder, options: Options) -> int:
    """Return the tokens of the longest step: of a text that is evaluated at once, all that the context holds."""
    return options.context if decoder.at_once else min(options.chunk, options.context)


def draft_bytes(payload: Payload, options: Options) -> int:
    """Return the bytes that a draft model adds to an engine and a tokenizer that are loaded already."""
    own = needed(payload, options)
    vocabulary = _ENGINES.get(payload.runtime, _OTHER).token - _OTHER.token  # of the engine alone
    return own.weights + own.kv_cache + own.overhead + own.loading + vocabulary * payload.rows


def largest_context(total: Callable[[int], float], limit: int, available: int | None) -> int:
    """Return the most tokens, up to ``limit``, whose ``total`` is at most ``available``; 0 where not even one is.

    ``total`` must not fall as the context grows.
    """
    return limit if available is None else bisect_right(range(1, limit + 1), float(available), key=total)


def cells_of(runtime: str, options: Options, window: int | None) -> int:
    """Return how many tokens the KV cache of a layer has room for, which sees the last ``window`` (None: all).

    gguf and mlx keep two windows and the tokens of a step, so that a window can be taken back; where that is no less
    than the context, all of it. onnx keeps all in any case: its attention reads a cache from the first position on. So
    does gguf of each of several sequences.
    """
    padding = _KV_PADDING.get(runtime, 1)
    whole = -(-options.context // padding) * padding
    chunk = min(options.chunk, options.context)
    if window is None or runtime not in _ROLLING or (runtime == "gguf" and options.sequences > 1):
        return whole
    return min(whole, -(-(ROOM * window + chunk) // padding) * padding)


def kv_bytes(
    decoder: Decoder, runtime: str, kv_cache: KvCache, context: int, chunk: int = CHUNK, sequences: int = 1
) -> int:
    """Return the bytes of a KV cache for ``context`` tokens of each sequence, which layers with a window may not all
    hold.

    In q8 a value takes 34/32 bytes in llama.cpp. Else it keeps the values of each layer as wide as the widest layer's.
    """
    scale = 16 / Q8_BLOCK[runtime] if kv_cache == "q8" and runtime in Q8_BLOCK else 0
    options = Options(context, 1, kv_cache, chunk, sequences=sequences)

    def cells(window: int | None) -> int:
        return context if window is None else min(context, cells_of(runtime, options, window))

    cached = decoder.cached.values()
    widest = max((each.kv_size for each in cached), default=0) if runtime == "gguf" and kv_cache != "q8" else 0
    values = sum((each.kv_size + max(each.kv_size, widest)) * cells(each.window) for each in cached)
    return sequences * int(values * (_KV_BITS[kv_cache] + scale) / 8)


def state_bytes(decoder: Decoder, runtime: str) -> int:
    """Return the bytes of what layers keep whatever the number of tokens, in float32, and of its marks.

    onnxruntime writes each step's state beside the one that it read.
    """
    held = MARKS + (2 if runtime == "onnx" else 1)
    return 4 * held * sum(math.prod(shape) for shape in decoder.states.values())


def overhead_bytes(
    decoder: Decoder, runtime: str, kv_cache: KvCache, context: int, chunk: int = CHUNK, sequences: int = 1
) -> int:
    """Return the bytes that one prefill step of ``chunk`` tokens works in at the end of ``context``, in float32.

    Of several sequences a step has a token of each beside the chunk, and llama.cpp's attention sees the cells of all
    where layers keep a state.

    Per token of the chunk: four rows of the hidden size (residual, normed, the two block outputs); what the widest
    mixer works in; gate, up and their product; what the layers get of a token itself, twice; and the scores of a
    layer's attention over the whole context:

    - llama.cpp keeps them for all heads, beside the mask, in the place where gate and up are at another time, and with
      an f16 cache once more in f16. Its own figure ("compute buffer size") is this without the f16 copy. With a q8
      cache it keeps none, and the mask in f16.
    - ONNX Runtime keeps none from 1.28 on, but for a softcap, a window or an f16 cache, which its tiled attention does
      not do.
    - MLX, and whatever is not known, keeps them, what a mask leaves of them and their softmax. So does what an
      exporter wrote, which moreover makes logits of the whole chunk, and in onnx writes each step's KV cache beside the
      one that it read.

    A text that is evaluated at once meets no cache. llama.cpp then has two masks, of windows and of none; ONNX Runtime
    keeps the scores, and makes its masks of distances: as much as four in float32.

    Once for each sequence: two rows of logits (the engine's and the caller's).
    """
    chunk += sequences if sequences > 1 else 0
    if runtime == "gguf" and decoder.states:
        context *= sequences
    attentions = decoder.attentions
    row = 4 * decoder.hidden_size + max(kind.mixer.worked(decoder.hidden_size) for kind in decoder.kinds)
    row += 2 * decoder.n_layers * decoder.inputs
    mlp = 3 * max(kind.mlp.size for kind in decoder.kinds)
    scores = max(each.n_heads for each in attentions) * context
    at_once = decoder.at_once
    kv_cache = "f32" if at_once else kv_cache
    if runtime == "gguf":
        copied = scores // 2 if kv_cache == "f16" else 0
        masks = (1 + at_once) * context
        row += mlp + context // 2 if kv_cache == "q8" else max(mlp, scores + masks) + copied
    elif decoder.exported:
        again = decoder.kv_values_per_token * context if runtime == "onnx" else 0
        row += mlp + 3 * scores + decoder.n_vocab + again // chunk
    elif runtime == "onnx":
        plain = not at_once and not any(each.softcap or each.window for each in attentions)
        row += mlp + (0 if plain and kv_cache == "f32" else scores) + 4 * at_once * context
    else:
        row += mlp + 3 * scores
    return 4 * (chunk * row + 2 * sequences * decoder.n_vocab)


def _repacked_bytes(payload: Payload, repack: bool | None) -> int:
    """Return the bytes of the copy that llama.cpp rearranges for a CPU: the 4-bit matrices of the layers.

    Left to itself, the runtime makes one where most bytes are q4_0 (``edgepack_runtimes.gguf.load``).
    """
    if payload.runtime != "gguf" or payload.device != "cpu" or payload.scheme not in _REPACKED or repack is False:
        return 0
    block, bits = _REPACKED[payload.scheme]
    named = payload.decoder.tensors()
    matrices = (shape for name, shape in named if name.startswith("layers.") and len(shape) == 2)
    copy = int(sum(rows * columns for rows, columns in matrices if columns % block == 0) * bits / 8)
    return copy if repack or (payload.scheme == "q4_0" and 2 * copy > payload.weights) else 0


def _widened_bytes(payload: Payload, kv_cache: KvCache) -> int:
    """Return what numbers of 16 bits take more where MLX computes in float32, with a KV cache of it: of packed weights
    the scale and the bias of each group, and on a CPU weights that are not packed.
    """
    if payload.runtime != "mlx" or kv_cache != "f32" or payload.scheme == "f32":
        return 0
    if payload.scheme in ("f16", "bf16"):
        return payload.weights if payload.device == "cpu" else 0
    stated = payload.scheme.partition("_g")[2]
    group = int(stated) if stated.isdecimal() else _MLX_GROUP
    matrices = (shape for _, shape in payload.decoder.tensors() if len(shape) == 2)
    return sum(4 * (rows * columns // group) for rows, columns in matrices)


def human(count: int) -> str:
    """Return bytes as people read them: "512 B", "3.4 KiB", "44.2 MiB", "1.3 GiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
