"""The gguf runtime on a tiny random Llama that the test writes and computes itself."""

from __future__ import annotations

import errno
import gc
import importlib.metadata
import importlib.util
import logging
import os
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import gguf
import numpy as np
import pytest
from decoders import Alike, changed, describe
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray
from variants import nmse

from edgepack import runtime
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import Rope
from edgepack.device.hardware import Hardware
from edgepack.errors import Cancelled, EngineError, EngineMissingError, PromptTooLongError, UsageError
from edgepack.runtime import KvCache, Options, Session
from edgepack_runtimes.gguf import GgufRuntime, abi, header, library, log, selfcheck
from edgepack_runtimes.gguf.check import check
from edgepack_runtimes.gguf.load import open_session
from edgepack_runtimes.threads import Watch

HARDWARE = Hardware(
    system="linux",
    machine="x86_64",
    physical_cores=2,
    affinity=2,
    quota=None,
    memory_total=1 << 33,
    memory_available=1 << 32,
)
DECODER = describe(
    family="llama",
    architecture="LlamaForCausalLM",
    n_layers=2,
    hidden_size=64,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    n_vocab=131,
    context=512,
    norm_eps=1e-5,
    rope=Rope(theta=10000.0, dim=16),
    tied=False,
)
IDS = np.random.default_rng(3).integers(0, DECODER.n_vocab, 150).tolist()
Weights = dict[str, NDArray[np.float32]]


def random_weights(decoder: Decoder, seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    d = Alike(decoder)
    shapes = {"token_embd": (d.n_vocab, d.hidden_size), "output_norm": (d.hidden_size,)}
    shapes["output"] = (d.n_vocab, d.hidden_size)
    for layer in range(d.n_layers):
        shapes |= {f"blk.{layer}.{name}_norm": (d.hidden_size,) for name in ("attn", "ffn")}
        shapes |= {
            f"blk.{layer}.attn_q": (d.q_size, d.hidden_size),
            f"blk.{layer}.attn_output": (d.hidden_size, d.q_size),
        }
        shapes |= {f"blk.{layer}.attn_{name}": (d.kv_size, d.hidden_size) for name in ("k", "v")}
        shapes |= {f"blk.{layer}.ffn_{name}": (d.intermediate_size, d.hidden_size) for name in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down"] = (d.hidden_size, d.intermediate_size)
    return {name: (rng.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}


def write_model(folder: Path, decoder: Decoder, weights: Weights) -> Path:
    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_context_length(decoder.context)
    writer.add_embedding_length(decoder.hidden_size)
    writer.add_block_count(decoder.n_layers)
    writer.add_feed_forward_length(decoder.layer(0).mlp.size)
    writer.add_head_count(decoder.attentions[0].n_heads)
    writer.add_head_count_kv(decoder.attentions[0].n_kv_heads)
    writer.add_layer_norm_rms_eps(decoder.norm_eps)
    writer.add_rope_dimension_count(decoder.ropes[0].dim)
    writer.add_rope_freq_base(decoder.ropes[0].theta)
    # A tokenizer that llama.cpp refuses, with tokens of every length: the runtime must not care.
    writer.add_tokenizer_model("nobody-knows-this")
    writer.add_token_list(["t" * (index % 9) + str(index) for index in range(decoder.n_vocab)])
    for name, values in weights.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def rms_norm(x: NDArray[np.float64], weight: NDArray[np.float32]) -> NDArray[np.float64]:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + DECODER.norm_eps) * weight


def rotate(x: NDArray[np.float64], rope: Rope) -> NDArray[np.float64]:
    """GGUF's layout for Llama: neighbours rotate together. x is [positions, heads, head_dim]."""
    angle = np.arange(len(x))[:, None, None] * rope.theta ** (-np.arange(0, rope.dim, 2) / rope.dim)
    cos, sin, even, odd = np.cos(angle), np.sin(angle), x[..., ::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def expected_logits(decoder: Decoder, weights: Weights, ids: list[int]) -> NDArray[np.float64]:
    d, n = Alike(decoder), len(ids)
    x = weights["token_embd"][ids].astype(np.float64)
    future = np.triu(np.full((n, n), -np.inf), 1)
    for layer in range(d.n_layers):
        w = {
            name: weights[f"blk.{layer}.{name}"] for name in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
        }
        w |= {name: weights[f"blk.{layer}.{name}"] for name in ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")}
        h = rms_norm(x, w["attn_norm"])
        q = rotate((h @ w["attn_q"].T).reshape(n, d.n_heads, d.head_dim), d.ropes[0])
        k = rotate((h @ w["attn_k"].T).reshape(n, d.n_kv_heads, d.head_dim), d.ropes[0])
        v = (h @ w["attn_v"].T).reshape(n, d.n_kv_heads, d.head_dim)
        k, v = (np.repeat(part, d.n_heads // d.n_kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d.head_dim) + future
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(n, -1)
        x = x + mixed @ w["attn_output"].T
        h = rms_norm(x, w["ffn_norm"])
        gate = h @ w["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
    logits: NDArray[np.float64] = rms_norm(x, weights["output_norm"]) @ weights["output"].T
    return logits


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(DECODER, seed=1)


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "f32", DECODER, weights)


@pytest.fixture(scope="module")
def expected(weights: Weights) -> NDArray[np.float64]:
    return expected_logits(DECODER, weights, IDS)


def opened(variant: Path, context: int = 200, kv_cache: KvCache = "f32", chunk: int = 128) -> Session:
    return GgufRuntime().open(variant, DECODER, Options(context=context, threads=1, kv_cache=kv_cache, chunk=chunk))


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, check=False)


class TestProbe:
    def test_it_is_registered_and_finds_the_installed_engine(self) -> None:
        engine = runtime.find("gguf")
        support = engine.probe(HARDWARE)
        assert isinstance(engine, GgufRuntime)
        assert support.devices[-1] == "cpu"
        assert support.reason is None
        assert support.kv_caches == ("f16", "f32", "q8")
        assert support.version is not None
        assert support.version in GgufRuntime().engine_version()

    def test_a_missing_engine_is_a_reason_and_a_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(selfcheck, "_verdicts", {})
        support = GgufRuntime().probe(HARDWARE)
        assert support.devices == ()
        assert support.reason == " ".join(f"{engine.distribution} is not installed." for engine in library.ENGINES)
        assert support.install == "pip install 'edgepack[gguf]'"

    def test_another_version_is_not_bound(self, monkeypatch: pytest.MonkeyPatch, variant: Path) -> None:
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "2026.1.1")
        monkeypatch.setattr(library, "ENGINES", [engine for engine in library.ENGINES if engine.package == "xllamacpp"])
        monkeypatch.setattr(selfcheck, "_verdicts", {})
        with pytest.raises(EngineMissingError, match=r"xllamacpp 2026\.1\.1 is installed, but only 2026\.10\.11549"):
            opened(variant)

    def test_a_library_that_reports_another_version_is_not_used(self) -> None:
        engine = next(engine for engine in library.ENGINES if engine.distribution == "xllamacpp")
        with pytest.raises(EngineMissingError, match=r"reports llama\.cpp .* has 9\.9\.9"):
            library.load(replace(engine, llama="9.9.9"))

    def test_a_native_build_that_fails_is_passed_over_and_said_so(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "llama_cpp" / "lib").mkdir(parents=True)
        (tmp_path / "llama_cpp" / "__init__.py").touch()
        (tmp_path / "llama_cpp" / "lib" / "libllama.so").write_bytes(b"not a library")
        (tmp_path / "llama_cpp_python-0.3.36.dist-info").mkdir()
        metadata = tmp_path / "llama_cpp_python-0.3.36.dist-info" / "METADATA"
        metadata.write_text("Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(selfcheck, "_verdicts", {})
        monkeypatch.setattr(library, "ENGINES", [engine for engine in library.ENGINES if not engine.own])
        with caplog.at_level(logging.WARNING, logger="edgepack.gguf"):
            support = GgufRuntime().probe(HARDWARE)
        assert support.devices[-1] == "cpu"
        assert "xllamacpp" in GgufRuntime().engine_version()
        assert [record.getMessage() for record in caplog.records] == [
            f"llama-cpp-python 0.3.36 cannot be used: {tmp_path}/llama_cpp/lib/libllama.so: file too short."
        ]

    def test_a_wrong_struct_layout_is_noticed_before_it_is_used(self) -> None:
        script = """
            from dataclasses import replace
            from edgepack_runtimes.gguf import abi, library, selfcheck
            engine = next(engine for engine in library.ENGINES if engine.distribution == "xllamacpp")
            print(selfcheck.examine(replace(engine, context_params=abi.ContextParams)))
        """
        child = run_script(script)
        assert child.returncode != 0
        assert b"The layout of ContextParams does not fit this library" in child.stderr

    def test_a_crash_of_the_selfcheck_is_a_reason(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        crash = tmp_path / "python"
        crash.write_text("#!/bin/sh\nkill -ILL $$\n")
        crash.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(crash))
        monkeypatch.setattr(selfcheck, "_verdicts", {})
        support = GgufRuntime().probe(HARDWARE)
        assert support.devices == ()
        assert "instructions that this processor lacks (SIGILL)" in str(support.reason)


class TestForward:
    def test_logits_are_those_of_the_same_model_in_numpy(self, variant: Path, expected: NDArray[np.float64]) -> None:
        session = opened(variant)
        logits = session.forward_all(IDS)
        assert logits.dtype == np.float32
        assert logits.shape == (150, DECODER.n_vocab)
        assert nmse(logits, expected) <= 1e-12
        session.close()

    def test_an_f16_cache_rounds_and_an_f32_cache_does_not(self, variant: Path, expected: NDArray[np.float64]) -> None:
        session = opened(variant, kv_cache="f16")
        assert 1e-12 < nmse(session.forward_all(IDS), expected) <= 1e-6
        session.close()

    def test_a_q8_cache_refuses_heads_that_are_no_whole_blocks(self, variant: Path) -> None:
        with pytest.raises(UsageError, match="blocks of 32 values") as caught:
            opened(variant, kv_cache="q8")
        assert "f16" in str(caught.value.hint)

    @pytest.mark.parametrize("chunk", [1, 7, 32, 128, 1000])
    def test_chunks_change_nothing(self, variant: Path, expected: NDArray[np.float64], chunk: int) -> None:
        session = opened(variant, chunk=chunk)
        assert nmse(session.forward(IDS), expected[-1]) <= 1e-12
        assert session.length == 150
        session.rewind(0)
        assert nmse(session.forward_all(IDS), expected) <= 1e-12
        session.close()

    def test_token_by_token_is_the_same_as_at_once(self, variant: Path, expected: NDArray[np.float64]) -> None:
        session = opened(variant)
        session.forward(IDS[:100])
        steps = np.stack([session.forward([token]) for token in IDS[100:]])
        assert nmse(steps, expected[100:]) <= 1e-12
        session.close()

    def test_a_rewind_forgets_and_the_repeat_is_bit_identical(self, variant: Path) -> None:
        session = opened(variant)
        session.forward(IDS[:40])
        first = session.forward(IDS[40:60])
        session.rewind(40)
        session.forward(IDS[100:150])
        session.rewind(40)
        assert session.length == 40
        assert np.array_equal(session.forward(IDS[40:60]), first)
        session.close()

    def test_returned_logits_are_the_callers_own(self, variant: Path) -> None:
        session = opened(variant)
        first = session.forward(IDS[:5])
        kept = first.copy()
        session.forward(IDS[5:9])
        assert np.array_equal(first, kept)
        first[:] = 0
        session.close()
        assert not first.any()

    def test_numpy_ids_and_ranges_are_taken(self, variant: Path) -> None:
        session = opened(variant)
        one = session.forward(range(5))
        session.rewind(0)
        assert np.array_equal(session.forward([np.int64(i) for i in range(5)]), one)
        session.close()


class TestThreads:
    def test_they_follow_what_a_step_costs_and_the_logits_stay(
        self, variant: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free, now = 1.0, [0.0, 0.0]

        def step(native: object, *arguments: object) -> int:
            code: int = decode(native, *arguments)
            counts.append(own.native.llama_n_threads(own.context))
            now[0] += 0.03
            now[1] += 0.03 * min(free, counts[-1])
            return code

        monkeypatch.setattr(Watch, "free", lambda watch: None)  # whatever else this machine does
        session = GgufRuntime().open(variant, DECODER, Options(context=200, threads=2, kv_cache="f32", chunk=128))
        own = session._native  # type: ignore[attr-defined]
        decode, counts = own.native.llama_decode, list[int]()
        monkeypatch.setattr(own.native, "llama_decode", step)
        monkeypatch.setattr("edgepack_runtimes.gguf.stepping.perf_counter", lambda: now[0])
        monkeypatch.setattr("edgepack_runtimes.gguf.stepping.process_time", lambda: now[1])
        said = [session.forward([token]) for token in IDS[:40]]
        assert (set(counts[:4]), set(counts[4:16])) == ({2}, {1})
        free = 2.0
        said += [session.forward([token]) for token in IDS[40:]]
        assert counts[-1] == 2
        alone = opened(variant)
        assert all(np.array_equal(alone.forward([token]), row) for token, row in zip(IDS, said, strict=True))

    def test_the_first_step_is_taken_with_as_many_as_the_cores_that_are_free(
        self, variant: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (wheel,) = [engine for engine in library.ENGINES if engine.package == "xllamacpp"]
        monkeypatch.setattr(Watch, "free", lambda watch: 1.2)
        session = open_session(
            library.load(wheel), variant / "model.gguf", DECODER, Options(context=200, threads=4, kv_cache="f32")
        )
        session.forward([1, 2, 3])
        native = session._native
        assert native.native.llama_n_threads(native.context) == 1


class TestRefusals:
    @pytest.mark.parametrize("ids", [[], [-1], [0, 131], [1 << 40], [1 << 70], [1.5], [[1, 2]], [True]])
    def test_bad_ids_are_refused_before_anything_runs(self, variant: Path, ids: list[int]) -> None:
        session = opened(variant)
        session.forward([1, 2])
        for call in (session.forward, session.forward_all):
            with pytest.raises(ValueError, match="token id"):
                call(ids)
        assert session.length == 2
        session.close()

    def test_the_context_is_what_was_asked_for_and_not_what_the_engine_pads_it_to(self, variant: Path) -> None:
        session = opened(variant, context=10)
        session.forward(IDS[:8])
        with pytest.raises(PromptTooLongError, match="3 tokens after the 8 in the cache exceed the context of 10"):
            session.forward(IDS[:3])
        assert session.length == 8
        session.forward(IDS[:2])
        with pytest.raises(PromptTooLongError):
            session.forward_all([1])
        session.close()

    @pytest.mark.parametrize("length", [-1, 4])
    def test_a_rewind_to_nowhere(self, variant: Path, length: int) -> None:
        session = opened(variant)
        session.forward([1, 2, 3])
        with pytest.raises(ValueError, match="the cache holds 3 tokens"):
            session.rewind(length)
        session.close()

    @pytest.mark.parametrize("field", ["context", "threads", "chunk"])
    def test_options_that_are_not_positive(self, variant: Path, field: str) -> None:
        options = replace(Options(context=8, threads=1, kv_cache="f32"), **{field: 0})
        with pytest.raises(UsageError, match=f"{field} is 0"):
            GgufRuntime().open(variant, DECODER, options)

    def test_after_close_only_close_is_left(self, variant: Path) -> None:
        session = opened(variant)
        session.forward([1])
        session.close()
        session.close()
        session.cancel()
        for call in (lambda: session.forward([1]), lambda: session.rewind(0), lambda: session.length):
            with pytest.raises(EngineError, match="is closed"):
                call()

    def test_a_second_thread_is_refused_and_cancel_is_not(self, variant: Path) -> None:
        session = opened(variant)
        session.forward([1])
        with ThreadPoolExecutor(1) as other:
            for call in (lambda: session.forward([1]), lambda: session.rewind(0), session.close):
                with pytest.raises(EngineError, match="belongs to another thread"):
                    other.submit(call).result()
            other.submit(session.cancel).result()
        assert session.forward([1]).shape == (DECODER.n_vocab,)
        session.close()


class TestCancel:
    def test_a_long_prefill_stops_and_leaves_the_cache_as_it_was(self, tmp_path: Path) -> None:
        # Big enough that a prefill outlasts the canceller's start by far, whatever the machine.
        heavy = describe(
            family="llama",
            architecture="LlamaForCausalLM",
            n_layers=4,
            hidden_size=256,
            n_heads=4,
            n_kv_heads=4,
            head_dim=64,
            intermediate_size=1024,
            n_vocab=64,
            context=4096,
            norm_eps=1e-5,
            rope=Rope(theta=10000.0, dim=64),
            tied=False,
        )
        variant = write_model(tmp_path / "heavy", heavy, random_weights(heavy, seed=2))
        session = GgufRuntime().open(variant, heavy, Options(context=4096, threads=1, kv_cache="f16", chunk=2000))
        session.forward([1, 2, 3])
        expected = session.forward([4])
        session.rewind(3)
        done = threading.Event()

        def cancel_until_done() -> None:
            while not done.is_set():
                session.cancel()

        canceller = threading.Thread(target=cancel_until_done)
        canceller.start()
        try:
            with pytest.raises(Cancelled):
                session.forward([5] * 4000)
        finally:
            done.set()
            canceller.join()
        assert session.length == 3
        assert np.array_equal(session.forward([4]), expected)
        session.close()

    def test_the_engine_itself_stops_inside_a_chunk(self, variant: Path, expected: NDArray[np.float64]) -> None:
        session = opened(variant)
        native = session._native  # type: ignore[attr-defined]
        native.tokens[:2], native.positions[:2], native.outputs[:2] = [1, 1], [0, 1], [1, 1]
        native.batch.n_tokens = 2
        native.flag[0] = b"\1"
        assert native.native.llama_decode(native.context, native.batch) == abi.ABORTED
        assert nmse(session.forward_all(IDS), expected) <= 1e-12
        session.close()

    def test_a_cancel_between_two_forwards_does_nothing(self, variant: Path) -> None:
        session = opened(variant)
        session.cancel()
        assert session.forward([1]).shape == (DECODER.n_vocab,)
        session.cancel()
        session.cancel()
        assert session.forward([1]).shape == (DECODER.n_vocab,)
        session.close()

    def test_storms_of_cancels_never_corrupt_the_cache(self, variant: Path, expected: NDArray[np.float64]) -> None:
        session = opened(variant, chunk=16)
        done = threading.Event()

        def storm() -> None:
            while not done.is_set():
                session.cancel()

        canceller = threading.Thread(target=storm)
        canceller.start()
        cancelled = 0
        for _ in range(200):
            try:
                session.forward(IDS[:50])
            except Cancelled:
                cancelled += 1
                assert session.length == 0
            else:
                session.rewind(0)
        done.set()
        canceller.join()
        assert cancelled
        assert nmse(session.forward_all(IDS), expected) <= 1e-12
        session.close()


class TestFile:
    def test_a_missing_file_names_itself(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match=r"model\.gguf cannot be read"):
            opened(tmp_path)

    def test_every_truncation_is_refused_by_the_header_check(self, variant: Path, tmp_path: Path) -> None:
        whole = (variant / "model.gguf").read_bytes()
        short = tmp_path / "model.gguf"
        table_end = header.read(variant / "model.gguf").tensors[0].offset
        for size in [*range(0, table_end, 100), table_end, len(whole) - 64 * 4, len(whole) - 1]:
            short.write_bytes(whole[:size])
            with pytest.raises(EngineError):
                opened(tmp_path)

    @pytest.mark.parametrize(
        ("offset", "code", "value", "complaint"),
        [
            (0, "4s", b"GGML", "does not begin with GGUF"),
            (4, "<I", 2, "version 2 is not 3"),
            (4, ">I", 3, "is not 3"),
            (8, "<Q", 1 << 40, "tensors do not fit"),
            (8, "<Q", 23, "tensor 21: its name is empty"),
            (16, "<Q", 1 << 63, "metadata entries do not fit"),
            (16, "<Q", 3, "tensor"),
            (24, "<Q", (1 << 64) - 1, "the file ends inside it"),
        ],
    )
    def test_a_mutated_count_is_named(
        self, variant: Path, tmp_path: Path, offset: int, code: str, value: bytes | int, complaint: str
    ) -> None:
        data = bytearray((variant / "model.gguf").read_bytes())
        struct.pack_into(code, data, offset, value)
        (tmp_path / "model.gguf").write_bytes(data)
        with pytest.raises(EngineError, match=complaint):
            opened(tmp_path)

    def test_mutated_headers_give_a_header_or_an_error(self, variant: Path, tmp_path: Path) -> None:
        whole = (variant / "model.gguf").read_bytes()
        head = header.read(variant / "model.gguf").tensors[0].offset
        path, rng, refused = tmp_path / "model.gguf", np.random.default_rng(7), 0
        for _ in range(1000):
            data = bytearray(whole)
            for at in rng.integers(0, head, rng.integers(1, 4)):
                data[at] = rng.integers(256)
            path.write_bytes(data)
            try:
                check(header.read(path), DECODER, path)
            except EngineError:
                refused += 1
        assert refused > 500

    @pytest.mark.parametrize(
        ("field", "value", "complaint"),
        [
            ("n_layers", 3, "llama.block_count is 2, the model's is 3"),
            ("n_kv_heads", 4, "llama.attention.head_count_kv is 2"),
            ("n_vocab", 130, "tokenizer.ggml.tokens has 131 entries"),
            ("intermediate_size", 97, "llama.feed_forward_length is 96"),
            ("head_dim", 32, "the rotation of parts of heads"),
        ],
    )
    def test_a_file_of_another_model(self, variant: Path, field: str, value: int, complaint: str) -> None:

        other = changed(DECODER, **{field: value})
        with pytest.raises(EngineError, match=complaint):
            GgufRuntime().open(variant, other, Options(context=8, threads=1, kv_cache="f32"))

    def test_a_tensor_that_is_missing_is_the_engines_own_reason(self, tmp_path: Path, weights: Weights) -> None:
        partial = {name: values for name, values in weights.items() if name != "blk.1.ffn_up"}
        with pytest.raises(EngineError, match=r"tensor 'blk\.1\.ffn_up\.weight' not found\. "):
            opened(write_model(tmp_path / "partial", DECODER, partial))

    def test_a_header_of_a_large_vocabulary_reads_without_a_loop_over_its_numbers(self, tmp_path: Path) -> None:
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        writer.add_token_list([f"token {index}" for index in range(128_256)])
        writer.add_token_types([1] * 128_256)
        writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found = header.read(tmp_path / "model.gguf")
        assert found.metadata["tokenizer.ggml.tokens"] == header.Array(8, 128_256)
        assert found.metadata["tokenizer.ggml.token_type"] == header.Array(5, 128_256)
        assert found.tensors[0].nbytes == 128


class TestSilence:
    SCRIPT = """
        import logging, sys
        from pathlib import Path
        import msgspec
        from edgepack.bundle.decoder import Decoder
        from edgepack.errors import EngineError
        from edgepack.runtime import Options
        from edgepack_runtimes.gguf import GgufRuntime

        decoder = msgspec.json.decode(sys.argv[2], type=Decoder)
        options = Options(context=64, threads=2, kv_cache="f16")
        session = GgufRuntime().open(Path(sys.argv[1]), decoder, options)
        session.forward(range(10))
        try:
            GgufRuntime().open(Path(sys.argv[3]), decoder, options)
        except EngineError as error:
            assert "not found" in str(error)
        else:
            raise AssertionError
    """

    def check(self, variant: Path, tmp_path: Path, weights: Weights, script: str) -> None:
        import msgspec

        partial = write_model(tmp_path / "partial", DECODER, {k: v for k, v in weights.items() if k != "blk.0.ffn_up"})
        body = textwrap.dedent(self.SCRIPT) + textwrap.dedent(script)
        child = run_script(body, str(variant), msgspec.json.encode(DECODER).decode(), str(partial))
        assert (child.returncode, child.stdout, child.stderr) == (0, b"", b"")

    def test_nothing_is_printed_by_loads_failures_and_a_close(
        self, variant: Path, tmp_path: Path, weights: Weights
    ) -> None:
        self.check(variant, tmp_path, weights, "session.close()")

    @pytest.mark.parametrize(
        "ending",
        [
            "",
            "del session",
            "keep = [session]; keep.append(keep); del session, GgufRuntime",
            "import edgepack_runtimes.gguf.stepping as module; module.kept = session; module.__dict__.pop('abi')",
            "sys.modules.pop('edgepack_runtimes.gguf.log'); sys.modules.pop('edgepack_runtimes.gguf.library')",
            "sys.exit(0)",
        ],
    )
    def test_an_exit_with_an_open_session_is_quiet_whatever_dies_first(
        self, variant: Path, tmp_path: Path, weights: Weights, ending: str
    ) -> None:
        self.check(variant, tmp_path, weights, ending)

    def test_an_exit_while_a_daemon_thread_decodes(self, variant: Path, tmp_path: Path, weights: Weights) -> None:
        script = """
            import threading
            started = threading.Event()
            def work():
                mine = GgufRuntime().open(Path(sys.argv[1]), decoder, Options(context=500, threads=1, kv_cache="f32"))
                while True:
                    mine.forward([1] * 400)
                    mine.rewind(0)
                    started.set()
            def quietly():
                try:
                    work()
                except EngineError:
                    pass
            threading.Thread(target=quietly, daemon=True).start()
            started.wait()
        """
        self.check(variant, tmp_path, weights, script)

    def test_native_lines_arrive_in_pythons_logging(self, variant: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG, logger="edgepack.gguf"):
            opened(variant).close()
        lines = [record.getMessage() for record in caplog.records if record.name == "edgepack.gguf"]
        assert any("n_ctx_seq" in line for line in lines)
        assert not any("\n" in line or line != line.strip() for line in lines)

    def test_what_a_file_says_of_itself_moves_no_cursor(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG, logger="edgepack.gguf"):
            log._receive(2, b"general.name = \x1b[2Jx\n", None)
        assert [record.getMessage() for record in caplog.records] == ["general.name = \\u001b[2Jx"]

    def test_a_line_in_pieces_is_one_record(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG, logger="edgepack.gguf"), log.errors() as errors:
            for level, text in [(4, b"half of"), (5, b" a line\n"), (3, b"careful\n"), (2, b"...."), (5, b"..\n")]:
                log._receive(level, text, None)
        assert errors == ["half of a line"]
        assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
            ("ERROR", "half of a line"),
            ("WARNING", "careful"),
        ]


class TestLifetime:
    def test_a_session_that_is_dropped_frees_its_memory(self, variant: Path) -> None:
        session = opened(variant)
        native = session._native  # type: ignore[attr-defined]
        assert native.context is not None
        del session
        gc.collect()
        assert native.context is None
        assert native.model is None

    def test_two_sessions_do_not_share_a_cache(self, variant: Path) -> None:
        one, two = opened(variant), opened(variant)
        first = one.forward(IDS[:20])
        two.forward(IDS[50:90])
        two.close()
        one.rewind(0)
        assert np.array_equal(one.forward(IDS[:20]), first)
        one.close()


class TestQuantize:
    ROWS = np.random.default_rng(5).standard_normal((6, 512)).astype(np.float32)

    @pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16"])
    def test_bytes_are_those_of_the_gguf_package(self, name: str) -> None:
        expected = quants.quantize(self.ROWS, GGMLQuantizationType[name.upper()])
        assert np.array_equal(GgufRuntime().quantize(name, self.ROWS), expected.view(np.uint8))

    @pytest.mark.parametrize(
        ("name", "bound"), [("q2_K", 0.4), ("q3_K", 0.2), ("q4_K", 0.1), ("q5_K", 0.05), ("q6_k", 0.03)]
    )
    def test_k_quants_read_back_close(self, name: str, bound: float) -> None:
        kind = GGMLQuantizationType[name.upper()]
        encoded = GgufRuntime().quantize(name, self.ROWS)
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        assert encoded.shape == (6, 512 // block * nbytes)
        back = quants.dequantize(encoded, kind)
        assert np.linalg.norm(back - self.ROWS) <= bound * np.linalg.norm(self.ROWS)

    def test_threads_and_strides_change_no_byte(self) -> None:
        wide = np.random.default_rng(6).standard_normal((64, 1024)).astype(np.float32)
        rows = wide[:, ::2]
        expected = GgufRuntime().quantize("q4_k", rows.copy())
        assert np.array_equal(GgufRuntime().quantize("q4_k", rows), expected)
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(lambda part: GgufRuntime().quantize("q4_k", part), np.split(rows, 16)))
        assert np.array_equal(np.concatenate(parts), expected)

    def test_no_rows_give_no_rows(self) -> None:
        assert GgufRuntime().quantize("q8_0", np.empty((0, 64), np.float32)).shape == (0, 68)

    @pytest.mark.parametrize(
        ("name", "rows", "complaint"),
        [
            ("q4_k", np.zeros((2, 128), np.float32), "whole blocks of 256"),
            ("q8_0", np.zeros((2, 0), np.float32), "whole blocks of 32"),
            ("q8_0", np.zeros(64, np.float32), "of shape"),
            ("q8_0", np.zeros((2, 64), np.float64), "not float64"),
            ("iq2_xxs", np.zeros((2, 256), np.float32), "is not lent"),
        ],
    )
    def test_rows_that_do_not_fit(self, name: str, rows: NDArray[np.float32], complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            GgufRuntime().quantize(name, rows)


def no_place(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("memory", [True, False])
def test_the_selfcheck_needs_no_folder_that_can_be_written(monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    monkeypatch.setattr(tempfile, "TemporaryDirectory", no_place)
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    assert "cpu" in selfcheck.examine(library.ENGINES[-1]).devices
