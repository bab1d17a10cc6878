"""The memory that a plan predicts: its arithmetic, and that a process takes what was predicted."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import decoders
import pytest
import small_bundle
from decoders import Positions
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as with_fields

from edgepack.bundle.decoder import Attention, Convolution, Decoder, Delta, Layer, Mlp
from edgepack.bundle.exported import Cell, Exported, Graph
from edgepack.device.hardware import Hardware
from edgepack.device.memory import MIB, PROCESS, Memory, Payload, largest_context, needed
from edgepack.device.planning import Plan, make_plan
from edgepack.errors import ContextTooLargeError
from edgepack.runtime import KvCache, Options, Support
from edgepack.text.compiling import compile_tokenizer
from edgepack.text.tables import encode
from edgepack_packager.build import Built

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "memory.py"
TOLERANCE = 0.1


def decoder(**changes: Any) -> Decoder:
    fields = {"hidden_size": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "intermediate_size": 128}
    return decoders.describe(**(fields | {"n_layers": 2, "n_vocab": 260, "context": 8192} | changes))


def memory(
    runtime: str = "onnx",
    context: int = 1000,
    kv_cache: KvCache = "f32",
    *,
    scheme: str = "f32",
    weights: int = 1_000_000,
    rows: int = 260,
    device: str = "cpu",
    chunk: int = 128,
    repack: bool | None = None,
    sequences: int = 1,
    **changes: Any,
) -> Memory:
    payload = Payload(decoder(**changes), runtime, scheme, weights, rows, device)
    return needed(payload, Options(context, 1, kv_cache, chunk, repack, sequences=sequences))


# What a process takes


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="measured on Linux and x86-64 alone"
)
def test_a_process_takes_what_was_predicted(demo_bundle: Built, tmp_path: Path) -> None:
    report = tmp_path / "memory.json"
    variants = [v.id for v in demo_bundle.manifest.variants if v.runtime in ("gguf", "onnx")]
    command = [str(BENCHMARK), str(demo_bundle.path), "--contexts", "64", "1024", "--json", str(report)]
    done = subprocess.run([sys.executable, *command, "--variants", *variants], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ratios = {(row["variant"], row["context"]): row["ratio"] for row in json.loads(report.read_text())}
    assert len(ratios) == 2 * len(variants) == 8
    assert {key: ratio for key, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE} == {}


@pytest.mark.shared
@pytest.mark.parametrize("name", ["llama-3.2", "phi-3.5-mini", "qwen3", "smollm2"])
def test_a_tokenizer_takes_what_was_predicted(name: str, shared: Path, tmp_path: Path) -> None:
    data = (shared / "tokenizers" / name / "tokenizer.json").read_bytes()
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(encode(compile_tokenizer(data)))
    code = (
        "import sys; from edgepack import fake; from pathlib import Path\n"
        "from edgepack.text.tables import decode; from edgepack.text.tokenizer import Tokenizer\n"
        "def resident(): return next(int(l.split()[1]) << 10 for l in open('/proc/self/status') if 'VmRSS' in l)\n"
        "model = fake.model(); before = resident()\n"
        "tokenizer = Tokenizer(decode(Path(sys.argv[1]).read_bytes()), None, False)\n"
        "print(resident() - before, tokenizer.n_tokens)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    grown, tokens = map(int, done.stdout.split())
    predicted = memory(rows=tokens).engine - memory(rows=0).engine
    # The library and its first merges come on top: they are counted with the engine's code, as of the demo model.
    assert predicted / 2 < grown < predicted + 5 * MIB


# The arithmetic


def test_the_total_is_what_a_load_adds_and_the_peak_the_whole_process() -> None:
    found = Memory(weights=1, kv_cache=20, overhead=300, engine=4000, available=54321, loading=50000)
    assert found.total == 54321
    assert found.peak == 54321 + PROCESS
    assert found.fits
    assert not replace(found, available=54320).fits
    assert replace(found, available=None).fits


def test_working_memory_is_what_each_engine_keeps() -> None:
    # Per token of the chunk: 4 x 64 hidden, 2 x 64 q, 2 x 32 kv; 3 x 128 intermediate; 4 heads x 1024 scores.
    row, mlp, scores, logits = 256 + 128 + 64, 384, 4096, 2 * 260
    assert memory("onnx", 1024).overhead == 4 * (128 * (row + mlp) + logits)
    assert memory("mlx", 1024).overhead == 4 * (128 * (row + mlp + 3 * scores) + logits)
    assert memory("gguf", 1024).overhead == 4 * (128 * (row + scores + 1024) + logits)
    assert memory("gguf", 1024, "f16").overhead == 4 * (128 * (row + scores + 1024 + scores // 2) + logits)
    assert memory("gguf", 256, intermediate_size=8192).overhead == 4 * (128 * (row + 3 * 8192) + logits)
    assert memory("gguf", 1024, "q8").overhead == 4 * (128 * (row + mlp + 1024 // 2) + logits)


def test_a_second_copy_at_load_and_a_full_context_are_not_there_at_once() -> None:
    weights, second = 20_000_000, 8_000_000

    def found(context: int, rows: int = 260, loading: int = second) -> Memory:
        payload = Payload(decoder(), "onnx", "int8", weights, rows, loading=loading)
        return needed(payload, Options(context, 1, "f32"))

    short, long = found(16), found(8192)
    load = weights + short.engine
    assert short.total == load  # the copy is more than the cache, a step and 16 times 64 KiB
    assert short.weights == weights - second + 16 * 65536
    assert long.loading == 0  # the whole embedding is touched, and the cache comes on top
    assert long.total == load + long.kv_cache + long.overhead
    # Rows of no token stay in the file, and a manifest from before there was the field counts both.
    assert found(8192, rows=130).weights == weights - second // 2
    assert found(16, loading=0).total == load + short.kv_cache + short.overhead
    assert found(16, loading=2 * weights).total == load


def test_a_layer_with_a_window_holds_two_of_them_in_a_long_context() -> None:
    one, local = Positions(None), Positions(None, window=100)
    each = 2 * 32 * 4  # keys and values of two heads of 16 in f32, a token in a layer

    def kv(runtime: str, context: int, chunk: int = 128) -> int:
        pattern = (local, local, local, one)
        return memory(runtime, context, chunk=chunk, pattern=pattern, n_layers=8).kv_cache

    assert kv("mlx", 1000) == each * (6 * (2 * 100 + 128) + 2 * 1000)
    assert kv("mlx", 1000, chunk=16) == each * (6 * (2 * 100 + 16) + 2 * 1000)
    assert kv("mlx", 300) == each * 8 * 300
    assert kv("gguf", 1000) == each * (6 * 512 + 2 * 1024)  # 328 cells, a multiple of 256
    assert kv("gguf", 512) == each * 8 * 512
    assert kv("onnx", 1000) == each * 8 * 1000


@pytest.mark.parametrize("changes", [{"attention_softcap": 50.0}, {"pattern": (Positions(None, window=16),)}])
def test_onnx_keeps_the_scores_of_what_its_tiles_cannot_do(changes: dict[str, Any]) -> None:
    plain, kept = memory("onnx", 1024), memory("onnx", 1024, **changes)
    assert kept.overhead - plain.overhead == 4 * 128 * 4 * 1024


def test_onnx_keeps_the_scores_of_an_f16_cache() -> None:
    half, whole = memory("onnx", 1024, "f16"), memory("onnx", 1024)
    assert half.overhead - whole.overhead == 4 * 128 * 4 * 1024
    assert 2 * half.kv_cache == whole.kv_cache


def test_the_graph_of_an_exporter_keeps_scores_logits_and_another_cache() -> None:
    graph = Graph(ids="i", mask="m", positions=None, logits="l", cells=(Cell("a", "b"), Cell("c", "d")))
    foreign = Exported(exporter="program 1.0", n_parameters=1, graph=graph)
    plain, kept = memory("onnx", 1024), memory("onnx", 1024, exported=foreign)
    assert kept.kv_cache == plain.kv_cache
    more = 4 * 128 * (3 * 4 * 1024 + 260)
    assert kept.overhead - plain.overhead == more + plain.kv_cache


def test_a_chunk_is_never_more_than_the_context() -> None:
    assert memory(context=16).overhead == memory(context=16, chunk=16).overhead
    assert memory(context=128).overhead < memory(context=256, chunk=256).overhead


def test_llama_cpp_rounds_its_cells_up() -> None:
    assert memory("gguf", 1).kv_cache == memory("gguf", 256).kv_cache == 2 * memory("gguf", 256, "f16").kv_cache
    assert memory("gguf", 257).kv_cache == memory("gguf", 512).kv_cache
    assert memory("onnx", 257).kv_cache == 257 * 2 * 2 * 32 * 4


def test_a_value_in_q8_has_a_byte_and_in_llama_cpp_its_share_of_a_scale() -> None:
    values = 256 * 2 * 2 * 32
    assert memory("gguf", 256, "q8").kv_cache == values * 34 // 32
    assert memory("onnx", 256, "q8").kv_cache == values


@pytest.mark.parametrize(
    ("scheme", "repack", "bits"),
    [("q4_0", None, 4.5), ("q4_0", True, 4.5), ("q4_0", False, 0), ("q4_k_m", None, 0), ("q4_k_m", True, 3.8),
     ("q8_0", True, 0), ("f16", True, 0)],
)  # fmt: skip
def test_llama_cpp_may_keep_a_second_copy(scheme: str, repack: bool | None, bits: float) -> None:
    # 2 layers of q and o 256 x 256, k and v 128 x 256, and three of 256 x 512.
    wide = {"hidden_size": 256, "n_heads": 16, "n_kv_heads": 8, "intermediate_size": 512}
    copy = int(2 * (256 * 256 * 3 + 3 * 256 * 512) * bits / 8)
    for runtime, device, more in [("gguf", "cpu", copy), ("gguf", "metal", 0), ("onnx", "cpu", 0)]:
        found = memory(runtime, scheme=scheme, weights=500_000, repack=repack, device=device, **wide)
        assert found.weights == 500_000 + more


def test_what_q4_k_m_has_in_narrow_rows_is_not_rearranged() -> None:
    # Of rows of 64 and 256, only those of the down projections are whole blocks of 256.
    found = memory("gguf", scheme="q4_k_m", weights=500_000, repack=True, intermediate_size=256)
    assert found.weights == 500_000 + int(2 * 64 * 256 * 3.8 / 8)


def test_where_the_embedding_is_most_of_q4_0_no_copy_is_made() -> None:
    assert memory("gguf", scheme="q4_0", weights=500_000).weights == 500_000


def test_a_step_works_in_what_the_widest_mixer_does() -> None:
    hidden, size, vocabulary, chunk = 64, 128, 260, 32
    attention = Attention(n_heads=4, n_kv_heads=2, head_dim=16, rope=None, gated=True)  # 3 x 64 and 2 x 32
    delta = Delta(n_key_heads=2, n_value_heads=4, key_dim=16, value_dim=24, length=4)  # 2 x (64 + 96) and 2 x 96
    for mixers, widest in [((attention,), 256), ((attention, Convolution(length=3)), 320), ((attention, delta), 512)]:
        kinds = tuple(Layer(mixer=mixer, mlp=Mlp(size=size)) for mixer in mixers)
        mixed = with_fields(decoder(), n_layers=len(kinds), kinds=kinds, pattern=tuple(range(len(kinds))))
        found = needed(Payload(mixed, "onnx", "f32", 0, 0), Options(100, 1, "f32", chunk)).overhead
        assert found == 4 * (chunk * (4 * hidden + widest + 3 * size) + 2 * vocabulary)


@pytest.mark.parametrize("kv_cache", ["f32", "f16", "q8"])
@pytest.mark.parametrize(("runtime", "masks", "scores"), [("gguf", 2, 4), ("onnx", 4, 4), ("mlx", 0, 12)])
def test_a_text_at_once_takes_the_square_of_the_context(
    runtime: str, masks: int, scores: int, kv_cache: KvCache
) -> None:
    """Of no cache, whatever its type, and in no chunks: masks, and the scores of four heads."""
    sizes = [memory(runtime, n, kv_cache, bidirectional=True, headless=True) for n in (1024, 2048, 3072)]
    assert not any(each.kv_cache for each in sizes)
    first, second, third = (each.overhead for each in sizes)
    assert third - 2 * second + first == 4 * (masks + scores) * 2 * 1024**2
    assert memory(runtime, 2048, kv_cache, chunk=512, bidirectional=True, headless=True) == sizes[1]


@pytest.mark.parametrize(
    ("scheme", "kv_cache", "device", "more"),
    [("f32", "f32", "cpu", 0), ("f16", "f32", "cpu", 500_000), ("f16", "f32", "metal", 0), ("f16", "f16", "metal", 0),
     ("4bit", "f32", "cpu", 1 / 16), ("4bit", "f32", "metal", 1 / 16), ("4bit", "f16", "metal", 0),
     ("4bit_mixed", "f32", "cpu", 1 / 16), ("4bit_g32", "f32", "cpu", 1 / 8), ("3bit_g128", "f32", "cpu", 1 / 32)],
)  # fmt: skip
def test_mlx_widens_what_it_has_in_16_bits(scheme: str, kv_cache: KvCache, device: str, more: float) -> None:
    # An embedding of 260 rows; 2 layers of q and o 64 x 64, k and v 32 x 64, and three of 64 x 128.
    numbers = 260 * 64 + 2 * (64 * 64 * 3 + 3 * 64 * 128)
    found = memory("mlx", 100, kv_cache, scheme=scheme, weights=500_000, device=device, tied=True)
    assert found.weights == 500_000 + (more if more > 1 else int(numbers * more))


def test_the_tokenizer_counts() -> None:
    assert memory(rows=128_000).engine - memory(rows=0).engine == 60 * 128_000
    assert memory("gguf", rows=128_000).engine - memory("gguf", rows=0).engine == 300 * 128_000


# The largest context

EDGES = st.sampled_from([1, 127, 128, 129, 255, 256, 257, 512, 8191, 8192])


@given(
    runtime=st.sampled_from(["gguf", "onnx", "mlx"]),
    kv_cache=st.sampled_from(["f32", "f16", "q8"]),
    heads=st.sampled_from([(1, 1), (4, 2), (32, 8)]),
    inter=st.integers(32, 4096),
    chunk=st.sampled_from([1, 64, 128, 512]),
    context=EDGES | st.integers(1, 8192),
    spare=st.integers(0, 100_000),
)
def test_the_largest_context_fits_and_one_more_does_not(
    runtime: str,
    kv_cache: KvCache,
    heads: tuple[int, int],
    inter: int,
    chunk: int,
    context: int,
    spare: int,
) -> None:
    def total(tokens: int) -> int:
        shape: dict[str, Any] = {"n_heads": heads[0], "n_kv_heads": heads[1], "intermediate_size": inter}
        return memory(runtime, tokens, kv_cache, chunk=chunk, **shape).total

    available = total(context) + spare
    found = largest_context(total, 8192, available)
    assert context <= found <= 8192
    assert total(found) <= available
    assert found == 8192 or total(found + 1) > available
    assert largest_context(total, 8192, total(1) - 1) == 0


@given(runtime=st.sampled_from(["gguf", "onnx", "mlx"]), context=EDGES, spare=st.integers(0, 3000))
def test_the_refusal_names_a_context_that_can_be_loaded(runtime: str, context: int, spare: int) -> None:
    manifest = small_bundle.read(small_bundle.manifest([small_bundle.variant(f"{runtime}-q4")]))
    supports = {runtime: Support(("metal",), version="1.2", kv_caches=("f16", "f32"))}

    payload = Payload(manifest.decoder, runtime, "q4_0", 1_000_000, manifest.tokenizer.rows, "metal")
    available = needed(payload, Options(context, 1, "f16")).total + spare

    def plan(tokens: int) -> Plan:
        machine = Hardware("linux", "x86_64", 4, 8, 3.5, 16 << 30, available)
        return make_plan(manifest, machine, supports, context=tokens)

    largest = plan(8192).candidates[0].fits_context
    assert largest >= context
    assert plan(largest).choice.eligible
    if largest < 8192:
        with pytest.raises(ContextTooLargeError) as caught:
            _ = plan(largest + 1).choice
        assert caught.value.hint == f"The largest context that fits is {largest}."


def test_unknown_memory_limits_nothing() -> None:
    assert largest_context(lambda tokens: tokens * MIB, 100, None) == 100


# Several sequences


@pytest.mark.parametrize("runtime", ["gguf", "onnx", "mlx"])
def test_each_sequence_has_a_cache_of_its_own(runtime: str) -> None:
    one, four = memory(runtime), memory(runtime, sequences=4)
    assert four.kv_cache == 4 * one.kv_cache
    assert four.weights == one.weights
    token = (four.overhead - one.overhead - 4 * 3 * 2 * 260) / 4  # each adds a token to a step, and two rows of logits
    assert one.overhead / 128 * 0.9 < token < one.overhead / 128


def test_each_sequence_has_states_and_marks_of_its_own() -> None:
    fields = dict(decoders.LFM2)
    one, four = memory("gguf", **fields), memory("gguf", sequences=4, **fields)
    assert four.kv_cache == 4 * one.kv_cache


def test_llama_cpp_holds_all_of_what_layers_with_a_window_saw_of_several_sequences() -> None:
    windows = {"pattern": (Positions(None, window=64), Positions(None))}
    plain = memory("gguf", 4096, sequences=2)
    assert memory("gguf", 4096, **windows).kv_cache < memory("gguf", 4096).kv_cache
    assert memory("gguf", 4096, sequences=2, **windows).kv_cache == plain.kv_cache
    assert memory("mlx", 4096, sequences=2, **windows).kv_cache < memory("mlx", 4096, sequences=2).kv_cache


def test_attention_in_shared_cells_sees_those_of_all() -> None:
    fields = dict(decoders.LFM2)
    step = memory("gguf", 4096, sequences=4, **fields).overhead / memory("gguf", 4096, **fields).overhead
    assert 3 < step < 5
    assert memory("gguf", 4096, sequences=4).overhead < 1.2 * memory("gguf", 4096).overhead
