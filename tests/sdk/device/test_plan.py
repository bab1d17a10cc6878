"""The plan: ranking, memory arithmetic, and a reason for everything that cannot run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import small_bundle
from decoders import changed

from edgepack.bundle.manifest import Manifest
from edgepack.device.hardware import Hardware
from edgepack.device.memory import human
from edgepack.device.planning import DEFAULT_CONTEXT, Plan, make_plan
from edgepack.device.tuning import DRAFT_PAYS, Tuning
from edgepack.errors import ContextTooLargeError, EngineMissingError, UsageError
from edgepack.runtime import Support

MIB = 1024**2
CPU = Support(("cpu",), version="1.2", kv_caches=("f16", "f32"))
METAL = Support(("metal", "cpu"), version="1.2", kv_caches=("f16", "f32"))
CUDA = Support(("cuda", "cpu"), version="1.2", kv_caches=("f16", "f32"))
MISSING = Support((), reason="its engine is not installed.", install="pip install 'edgepack[gguf]'")


def machine(available: int = 8 * 1024 * MIB, total: int = 16 * 1024 * MIB) -> Hardware:
    return Hardware("linux", "x86_64", 4, 8, 3.5, total, available)


def quantized(scheme: str, bits: float) -> dict[str, Any]:
    return {"asked": scheme, "scheme": scheme, "bits": bits, "fallbacks": []}


def bundle(*ids: str, **changes: Any) -> Manifest:
    variants = [small_bundle.variant(id) for id in ids or ("gguf-q4", "onnx-q4", "mlx-q4")]
    return small_bundle.read(small_bundle.manifest(variants, **changes))


def order(plan: Plan) -> list[str]:
    return [candidate.variant for candidate in plan.candidates]


def everywhere(support: Support) -> dict[str, Support]:
    return {"gguf": support, "onnx": support, "mlx": support}


def test_on_apple_silicon_mlx_is_first_then_gguf() -> None:
    supports = {"mlx": METAL, "gguf": METAL, "onnx": CPU}
    assert order(make_plan(bundle(), machine(), supports)) == ["mlx-q4", "gguf-q4", "onnx-q4"]


def test_with_cuda_gguf_is_first_then_onnx() -> None:
    plan = make_plan(bundle(), machine(), {"gguf": CUDA, "onnx": CUDA, "mlx": MISSING})
    assert order(plan) == ["gguf-q4", "onnx-q4", "mlx-q4"]
    assert "GPU's own memory is not checked" in plan.choice.reason


def test_an_engine_on_an_accelerator_beats_one_on_the_cpu() -> None:
    assert order(make_plan(bundle(), machine(), {"gguf": CPU, "onnx": CUDA, "mlx": CPU}))[0] == "onnx-q4"


def test_on_a_cpu_gguf_is_first_and_mlx_is_never_chosen() -> None:
    plan = make_plan(bundle(), machine(), everywhere(CPU))
    assert order(plan) == ["gguf-q4", "onnx-q4", "mlx-q4"]
    assert not plan.candidates[2].eligible
    assert "oracle" in plan.candidates[2].reason


def test_on_a_cpu_onnx_is_before_a_gguf_engine_that_could_be_a_faster_one() -> None:
    supports = {**everywhere(CPU), "gguf": replace(CPU, better="edgepack engine build")}
    assert order(make_plan(bundle(), machine(), supports)) == ["onnx-q4", "gguf-q4", "mlx-q4"]


@pytest.mark.parametrize(("count", "first"), [(0.4, "gguf-q4"), (0.6, "onnx-q4")])
def test_on_a_cpu_onnx_is_before_a_gguf_most_of_whose_weights_are_not_of_its_scheme(count: float, first: str) -> None:
    left = sum(math.prod(shape) for _, shape in bundle().decoder.tensors()) * count
    others = []
    for name, shape in sorted(bundle().decoder.tensors(), key=lambda each: math.prod(each[1])):
        left -= math.prod(shape)
        if left > 0:
            others.append({"tensor": name, "scheme": "q5_0", "reason": "rows of 576"})
    odd = small_bundle.variant("gguf-q4", quantization=quantized("q4_k_m", 4.5) | {"fallbacks": others})
    manifest = small_bundle.read(small_bundle.manifest([odd, small_bundle.variant("onnx-q4")]))
    assert order(make_plan(manifest, machine(), everywhere(CPU)))[0] == first


def test_on_a_cpu_the_engine_counts_less_than_weights_of_16_bits() -> None:
    wide = small_bundle.variant("gguf-f16", quantization=quantized("f16", 16.0))
    manifest = small_bundle.read(small_bundle.manifest([wide, small_bundle.variant("onnx-q4")]))
    assert order(make_plan(manifest, machine(), everywhere(CPU))) == ["onnx-q4", "gguf-f16"]


@pytest.mark.parametrize("asked", [{"backend": "mlx"}, {"variant": "mlx-q4"}])
def test_mlx_on_a_cpu_runs_when_it_is_named(asked: dict[str, str]) -> None:
    plan = make_plan(bundle(), machine(), everywhere(CPU), **asked)  # type: ignore[arg-type]
    assert plan.choice.variant == "mlx-q4"


def test_a_bundle_of_mlx_alone_says_how_to_ask_on_a_cpu() -> None:
    with pytest.raises(EngineMissingError, match="oracle") as caught:
        _ = make_plan(bundle("mlx-q4"), machine(), everywhere(CPU)).choice
    assert caught.value.hint == "Ask for it by name: backend=mlx."


def test_a_runtime_that_the_table_does_not_know_comes_after_those_it_does() -> None:
    plan = make_plan(bundle("remote-x", "onnx-q4"), machine(), {"remote": CPU, "onnx": CPU})
    assert order(plan) == ["onnx-q4", "remote-x"]


def test_within_an_engine_fewer_bits_come_first() -> None:
    variants = [
        small_bundle.variant("gguf-f16", quantization=quantized("f16", 16.0)),
        small_bundle.variant("gguf-q8", quantization=quantized("q8_0", 8.5)),
        small_bundle.variant("gguf-q4", quantization=quantized("q4_0", 4.5)),
    ]
    plan = make_plan(small_bundle.read(small_bundle.manifest(variants)), machine(), everywhere(CPU))
    assert order(plan) == ["gguf-q4", "gguf-q8", "gguf-f16"]


def test_unproven_variants_rank_last_and_say_so() -> None:
    variants = [small_bundle.variant("gguf-q4", proof=None), small_bundle.variant("onnx-q4")]
    plan = make_plan(small_bundle.read(small_bundle.manifest(variants)), machine(), everywhere(CPU))
    assert order(plan) == ["onnx-q4", "gguf-q4"]
    assert plan.candidates[1].eligible
    assert "unproven" in plan.candidates[1].reason


def test_every_variant_is_in_the_plan_with_a_reason() -> None:
    plan = make_plan(bundle(), machine(), {"gguf": MISSING, "onnx": CPU}, backend="onnx")
    assert sorted(order(plan)) == ["gguf-q4", "mlx-q4", "onnx-q4"]
    assert all(candidate.reason for candidate in plan.candidates)
    assert plan.choice.variant == "onnx-q4"


def test_an_asked_backend_never_falls_back() -> None:
    plan = make_plan(bundle(), machine(), {"gguf": MISSING, "onnx": CPU, "mlx": CPU}, backend="gguf")
    with pytest.raises(EngineMissingError) as caught:
        _ = plan.choice
    assert "gguf: its engine is not installed" in caught.value.message
    assert "onnx" not in caught.value.message
    assert caught.value.hint == "Install it with: pip install 'edgepack[gguf]'"


def test_without_any_engine_every_reason_is_named() -> None:
    with pytest.raises(EngineMissingError, match=r"gguf: its engine.*onnx: no runtime called 'onnx'"):
        _ = make_plan(bundle("gguf-q4", "onnx-q4"), machine(), {"gguf": MISSING}).choice


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"backend": "tensorrt"}, "tensorrt"),
        ({"variant": "gguf-q2"}, "gguf-q2"),
        ({"backend": "onnx", "variant": "gguf-q4"}, "gguf-q4 runs on 'gguf', not on 'onnx'"),
        ({"kv_cache": "q4"}, "q4"),
        ({"context": 0}, "0"),
        ({"context": -5}, "-5"),
        ({"context": True}, "True"),
        ({"context": "4096"}, "'4096'"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(bundle(), machine(), everywhere(CPU), **arguments)
    assert named in caught.value.message
    assert caught.value.hint


def context_of(trained: int, profile: int, verified: int) -> dict[str, int]:
    return {"trained": trained, "profile": profile, "verified": verified, "kv_values_per_token": 128}


@pytest.mark.parametrize(
    ("profile", "verified", "planned", "limit", "proven"),
    [(8192, 8192, 4096, 8192, True), (512, 512, 512, 512, True), (8192, 2048, 2048, 2048, True),
     (8192, 0, 4096, 8192, False)],
)  # fmt: skip
def test_the_default_context_is_the_limit_up_to_4096(
    profile: int, verified: int, planned: int, limit: int, proven: bool
) -> None:
    plan = make_plan(bundle(context=context_of(8192, profile, verified)), machine(), everywhere(CPU))
    assert (plan.context, plan.limit, plan.proven) == (planned, limit, proven)
    assert plan.choice.options.context == planned


@pytest.mark.parametrize(("verified", "limit", "word"), [(2048, 2048, "verified"), (0, 4096, "unproven")])
def test_a_context_beyond_the_limit_is_refused_with_the_limit(verified: int, limit: int, word: str) -> None:
    manifest = bundle(context=context_of(8192, 4096, verified))
    assert make_plan(manifest, machine(), everywhere(CPU), context=limit).context == limit
    with pytest.raises(ContextTooLargeError, match=word) as caught:
        make_plan(manifest, machine(), everywhere(CPU), context=limit + 1)
    assert caught.value.hint == f"Ask for context={limit} or less."


def test_memory_is_that_of_the_variant_at_the_asked_context() -> None:
    # 2 layers x 2 x 32 values = 128 a token, four bytes each in f32.
    memory = make_plan(bundle("onnx-q4"), machine(), everywhere(CPU), context=1000, kv_cache="f32").choice.memory
    assert memory.weights == 1_000_000
    assert memory.kv_cache == 512_000
    assert memory.available == 8 * 1024 * MIB


def test_what_does_not_fit_says_what_it_needs_and_the_largest_that_does() -> None:
    manifest = bundle("onnx-q4")
    free = make_plan(manifest, machine(), everywhere(CPU), context=2000).choice.memory.total
    plan = make_plan(manifest, machine(available=free), everywhere(CPU), context=4000)
    assert plan.candidates[0].fits_context == 2000
    with pytest.raises(ContextTooLargeError) as caught:
        _ = plan.choice
    assert "4000" in caught.value.message
    assert human(free) in caught.value.message
    assert caught.value.hint == "The largest context that fits is 2000."
    assert make_plan(manifest, machine(available=free), everywhere(CPU), context=2000).choice.eligible
    assert not make_plan(manifest, machine(available=free), everywhere(CPU), context=2001).candidates[0].eligible


def test_a_default_context_that_does_not_fit_is_not_reduced() -> None:
    with pytest.raises(ContextTooLargeError, match="context of 4096"):
        _ = make_plan(bundle("gguf-q4"), machine(available=2 * MIB), everywhere(CPU)).choice


def test_where_nothing_fits_the_next_step_is_another_variant() -> None:
    with pytest.raises(ContextTooLargeError, match="smaller variant"):
        _ = make_plan(bundle("gguf-q4"), machine(available=1000), everywhere(CPU)).choice


def test_a_smaller_variant_is_chosen_where_the_better_ranked_does_not_fit() -> None:
    variants = [small_bundle.variant("gguf-q4", weights_bytes=10**12), small_bundle.variant("onnx-q4")]
    plan = make_plan(small_bundle.read(small_bundle.manifest(variants)), machine(), everywhere(CPU))
    assert order(plan) == ["onnx-q4", "gguf-q4"]
    assert plan.candidates[1].obstacle == "memory"


def test_unknown_memory_is_not_checked() -> None:
    plan = make_plan(bundle("gguf-q4"), machine(available=0, total=0), everywhere(CPU))
    assert plan.choice.memory.available is None
    assert plan.choice.fits_context == 8192


def test_threads_come_from_the_machine() -> None:
    assert make_plan(bundle(), machine(), everywhere(CPU)).choice.options.threads == 3


@pytest.mark.parametrize(
    ("scheme", "offered", "asked", "given"),
    [
        ("q4_0", ("f16", "f32"), None, "f16"),
        ("q4_0", ("f32",), None, "f32"),
        ("f16", ("f32", "f16"), None, "f16"),
        ("f32", ("f16", "f32"), None, "f32"),
        ("f32", ("f16",), None, "f16"),
        ("q4_0", ("f16", "f32"), "f32", "f32"),
        ("q4_0", ("f16", "f32", "q8"), None, "f16"),
    ],
)
def test_kv_cache(scheme: str, offered: tuple[Any, ...], asked: str | None, given: str) -> None:
    variant = small_bundle.variant("gguf-x", quantization=quantized(scheme, 8.0))
    manifest = small_bundle.read(small_bundle.manifest([variant]))
    support = Support(("cpu",), version="1.2", kv_caches=offered)
    assert make_plan(manifest, machine(), {"gguf": support}, kv_cache=asked).choice.options.kv_cache == given


def test_a_q8_cache_takes_heads_of_whole_blocks() -> None:
    offers = everywhere(Support(("cpu",), version="1.2", kv_caches=("f16", "f32", "q8")))
    manifest = bundle("gguf-q4")
    with pytest.raises(EngineMissingError, match="KV cache in f16 or f32, not in q8"):
        _ = make_plan(manifest, machine(), offers, kv_cache="q8").choice
    wide = msgspec.structs.replace(manifest, decoder=changed(manifest.decoder, head_dim=32))
    found = make_plan(wide, machine(), offers, kv_cache="q8").choice
    half = make_plan(wide, machine(), offers).choice
    assert (found.options.kv_cache, half.options.kv_cache) == ("q8", "f16")
    assert found.memory.kv_cache * 32 == half.memory.kv_cache * 17


def test_a_kv_cache_that_the_engine_does_not_offer_is_refused() -> None:
    only = Support(("cpu",), version="1.2", kv_caches=("f32",))
    with pytest.raises(EngineMissingError, match="KV cache in f32, not in f16") as caught:
        _ = make_plan(bundle("onnx-q4"), machine(), {"onnx": only}, kv_cache="f16").choice
    assert caught.value.hint == "Ask for kv_cache=f32."


def test_a_kv_cache_that_is_built_into_another_variant_is_a_matter_of_the_build() -> None:
    manifest = bundle("onnx-f32")
    fixed = msgspec.structs.replace(manifest.variants[0], kv_cache="f32")
    manifest = msgspec.structs.replace(manifest, variants=(fixed,))
    with pytest.raises(EngineMissingError, match="KV cache in f32, not in q8") as caught:
        _ = make_plan(manifest, machine(), {"onnx": Support(("cpu",), version="9")}, kv_cache="q8").choice
    assert caught.value.hint == "Ask for kv_cache=f32, or build such a variant with: --kv-cache q8"


@pytest.mark.parametrize(
    ("version", "floor", "runs"),
    [("1.2", "1.2", True), ("1.10", "1.9", True), ("1.2", "1.2.1", False), ("0.9", "1.0", False), (None, "1.0", True),
     ("1", "1.0", True), ("1.0", "1", True), ("1.0", "1.0.1", False),
     ("nightly", "1.0", True)],
)  # fmt: skip
def test_an_engine_below_the_floor_is_refused(version: str | None, floor: str, runs: bool) -> None:
    manifest = small_bundle.read(small_bundle.manifest([small_bundle.variant("gguf-q4", floor=floor)]))
    support = Support(("cpu",), version=version, kv_caches=("f16",))
    candidate = make_plan(manifest, machine(), {"gguf": support}).candidates[0]
    assert candidate.eligible == runs
    assert runs or floor in candidate.reason


def test_a_bundle_without_variants_has_an_empty_plan() -> None:
    manifest = small_bundle.read(small_bundle.manifest([]))
    with pytest.raises(EngineMissingError, match="no variant"):
        _ = make_plan(manifest, machine(), everywhere(CPU)).choice


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (44.2 * MIB, "44.2 MiB"), (3 * 1024 * MIB, "3.0 GiB")],
)
def test_sizes_as_people_read_them(count: int, text: str) -> None:
    assert human(int(count)) == text


# Tuned


def tuned(variant: str, decode_tps: float, **changes: Any) -> Tuning:
    measured = {"threads": 2, "chunk": 256, "repack": None, "prefill_tps": 100.0, "batch_cost": 1.5} | changes
    return Tuning(variant=variant, decode_tps=decode_tps, **measured)


def test_measured_candidates_rank_by_their_speed_before_the_others() -> None:
    tunings = {"onnx-q4": tuned("onnx-q4", 41.2), "gguf-q8": tuned("gguf-q8", 7.0)}
    plan = make_plan(bundle("gguf-q4", "gguf-q8", "onnx-q4"), machine(), everywhere(CPU), tunings=tunings)
    assert order(plan) == ["onnx-q4", "gguf-q8", "gguf-q4"]
    assert plan.tuned
    answers = "about 8.2 s to answer (512 + 128 tokens); measured 41.2 tok/s with 2 threads, chunk 256;"
    assert plan.choice.reason.startswith(answers)
    assert plan.candidates[2].tuning is None
    assert not make_plan(bundle(), machine(), everywhere(CPU)).tuned


def test_tuned_settings_are_the_options() -> None:
    tunings = {"gguf-q4": tuned("gguf-q4", 10.0, threads=1, chunk=64, repack=False)}
    options = make_plan(bundle("gguf-q4"), machine(), everywhere(CPU), tunings=tunings).choice.options
    assert (options.threads, options.chunk, options.repack) == (1, 64, False)
    options = make_plan(bundle("gguf-q4"), machine(), everywhere(CPU)).choice.options
    assert (options.threads, options.chunk, options.repack) == (3, 128, None)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"threads": 1, "repack": True}, "1 thread, chunk 256, weights repacked;"),
        ({"repack": False}, "2 threads, chunk 256, weights as stored;"),
    ],
)
def test_the_reason_names_the_settings(settings: dict[str, Any], text: str) -> None:
    tunings = {"gguf-q4": tuned("gguf-q4", 10.0, **settings)}
    assert text in make_plan(bundle("gguf-q4"), machine(), everywhere(CPU), tunings=tunings).choice.reason


def test_a_measured_candidate_that_cannot_run_ranks_after_those_that_can() -> None:
    tunings = {"gguf-q4": tuned("gguf-q4", 99.0), "onnx-q4": tuned("onnx-q4", 9.0)}
    plan = make_plan(bundle(), machine(), {"gguf": MISSING, "onnx": CPU, "mlx": CPU}, tunings=tunings)
    assert order(plan)[0] == "onnx-q4"


def test_an_unproven_variant_stays_last_however_fast() -> None:
    variants = [small_bundle.variant("gguf-q4", proof=None), small_bundle.variant("onnx-q4")]
    manifest = small_bundle.read(small_bundle.manifest(variants))
    plan = make_plan(manifest, machine(), everywhere(CPU), tunings={"gguf-q4": tuned("gguf-q4", 99.0)})
    assert order(plan) == ["onnx-q4", "gguf-q4"]


def test_tuned_settings_that_do_not_fit_the_memory_give_way_to_the_rule() -> None:
    manifest = bundle("gguf-q4")
    tunings = {"gguf-q4": tuned("gguf-q4", 10.0, chunk=512)}
    needed = make_plan(manifest, machine(), everywhere(CPU)).choice.memory.total
    tight = make_plan(manifest, machine(available=needed), everywhere(CPU), tunings=tunings).choice
    assert (tight.options.chunk, tight.tuning) == (128, None)
    roomy = make_plan(manifest, machine(), everywhere(CPU), tunings=tunings).choice
    assert roomy.options.chunk == 512
    assert roomy.memory.total > needed


# Weights as stored


def repacked(available: int, **arguments: Any) -> Plan:
    """Return the plan for a variant of which llama.cpp makes a copy, where there is room."""
    variant = small_bundle.variant("gguf-q4", quantization=quantized("q4_0", 4.5), weights_bytes=50_000)
    manifest = small_bundle.read(small_bundle.manifest([variant]))
    return make_plan(manifest, machine(available=available), {"gguf": CPU}, **arguments)


def test_weights_are_taken_as_stored_where_there_is_no_memory_for_a_copy() -> None:
    with_copy = repacked(8 * 1024 * MIB).choice
    roomy = repacked(with_copy.memory.total).choice
    tight = repacked(with_copy.memory.total - 1, strict=True).choice
    assert (roomy.options.repack, tight.options.repack) == (None, False)
    assert tight.memory.weights == 50_000 < roomy.memory.weights
    assert "the weights as stored, since there is no memory for a copy" in tight.reason
    assert "stored" not in roomy.reason
    with pytest.raises(ContextTooLargeError, match="needs"):
        _ = repacked(tight.memory.total - 1).choice


def test_the_largest_context_that_fits_is_that_of_weights_as_stored() -> None:
    tight = repacked(repacked(8 * 1024 * MIB).choice.memory.total - 1).choice
    exactly = tight.memory.total
    with pytest.raises(ContextTooLargeError) as caught:
        _ = repacked(exactly, context=tight.options.context + 1).choice
    assert caught.value.hint == f"The largest context that fits is {tight.options.context}."
    assert repacked(exactly, context=tight.options.context).choice.options.repack is False


@pytest.mark.parametrize("repack", [None, True])
def test_tuned_settings_give_way_to_weights_as_stored(repack: bool | None) -> None:
    tunings = {"gguf-q4": tuned("gguf-q4", 10.0, chunk=128, repack=repack)}
    needed = repacked(8 * 1024 * MIB, tunings=tunings).choice.memory.total
    tight = repacked(needed - 1, tunings=tunings).choice
    assert (tight.options.repack, tight.tuning) == (False, None)
    assert "measured" not in tight.reason


# A KV cache that is built in

PLAIN = Support(("cpu",), version="1.2", kv_caches=("f32",), needs={"cuda": "f16"})
GPU = replace(PLAIN, devices=("cuda", "cpu"))


def built_in(*, supports: Support, strict: bool = False, **arguments: Any) -> Plan:
    """The plan of an NVIDIA machine for two variants of one engine: with a cache of f16 built in, and without."""
    variants = [small_bundle.variant("onnx-int4-kv16", kv_cache="f16"), small_bundle.variant("onnx-int4")]
    manifest = small_bundle.read(small_bundle.manifest(variants))
    hardware = replace(machine(), accelerators=("cuda",))
    return make_plan(manifest, hardware, {"onnx": supports}, strict=strict, **arguments)


def test_a_built_in_cache_is_what_a_variant_runs_with() -> None:
    plan = built_in(supports=PLAIN)
    assert {each.variant: each.options.kv_cache for each in plan.candidates} == {
        "onnx-int4-kv16": "f16",
        "onnx-int4": "f32",
    }
    half, whole = sorted(plan.candidates, key=lambda each: each.memory.kv_cache)
    assert 2 * half.memory.kv_cache == whole.memory.kv_cache


def test_another_cache_than_the_one_that_is_built_in_is_refused() -> None:
    plan = built_in(supports=PLAIN, kv_cache="f32")
    assert plan.choice.variant == "onnx-int4"
    assert plan.candidates[1].obstacle == "kv cache"
    assert plan.candidates[1].reason == "it offers a KV cache in f16, not in f32"


def test_a_gpu_takes_the_variant_with_the_cache_that_it_needs() -> None:
    plan = built_in(supports=GPU, strict=True)
    assert (plan.choice.variant, plan.choice.device, plan.choice.idle) == ("onnx-int4-kv16", "cuda", None)
    other = plan.candidates[1]
    assert (other.variant, other.device, other.idle) == ("onnx-int4", "cpu", "cuda")
    assert "cuda stays idle: it takes variants with a KV cache in f16" in other.reason
    assert other.hint == "Build such a variant with: --kv-cache f16"


def test_a_variant_that_leaves_the_gpu_idle_is_a_substitute() -> None:
    plan = built_in(supports=GPU, variant="onnx-int4", strict=True)
    with pytest.raises(EngineMissingError, match=r"would run on the cpu, a substitute.*takes variants") as caught:
        _ = plan.choice
    assert caught.value.hint == "Build such a variant with: --kv-cache f16"


def test_an_engine_without_cuda_is_the_reason_only_for_the_variant_that_could_use_it() -> None:
    lacking = replace(PLAIN, reason="It is built without CUDA.", install="pip install gpu")
    half, whole = built_in(supports=lacking).candidates
    if half.variant != "onnx-int4-kv16":
        half, whole = whole, half
    assert "cuda stays idle: It is built without CUDA" in half.reason
    assert half.hint == "Install it with: pip install gpu"
    assert whole.hint == "Build such a variant with: --kv-cache f16"


# Strict


def strictly(supports: dict[str, Support], *accelerators: str, **arguments: Any) -> Plan:
    hardware = replace(machine(), accelerators=accelerators)
    return make_plan(bundle(), hardware, supports, strict=True, **arguments)


def test_strict_takes_the_first_choice() -> None:
    assert strictly(everywhere(CPU)).choice.variant == "gguf-q4"
    assert strictly({"mlx": METAL, "gguf": METAL, "onnx": CPU}, "metal").choice.variant == "mlx-q4"
    assert strictly({"mlx": CPU, "gguf": CUDA, "onnx": CPU}, "cuda").choice.variant == "gguf-q4"


def test_strict_refuses_what_stands_in_for_an_engine_that_cannot_run() -> None:
    supports = {"gguf": MISSING, "onnx": CPU, "mlx": CPU}
    assert make_plan(bundle(), machine(), supports).choice.variant == "onnx-q4"
    with pytest.raises(EngineMissingError, match="onnx-q4 would be a substitute for gguf-q4: its engine") as caught:
        _ = strictly(supports).choice
    assert caught.value.hint == "Install it with: pip install 'edgepack[gguf]'"


def test_strict_looks_only_at_what_was_asked_for() -> None:
    supports = {"gguf": MISSING, "onnx": CPU, "mlx": CPU}
    assert strictly(supports, backend="onnx").choice.variant == "onnx-q4"
    assert strictly(supports, variant="onnx-q4").choice.variant == "onnx-q4"


def test_strict_knows_that_metal_would_be_first() -> None:
    supports = {"mlx": MISSING, "gguf": METAL, "onnx": CPU}
    with pytest.raises(EngineMissingError, match="substitute for mlx-q4"):
        _ = strictly(supports, "metal").choice


def test_strict_does_not_miss_what_would_rank_after_the_choice() -> None:
    assert strictly({"gguf": CPU, "onnx": MISSING, "mlx": MISSING}).choice.variant == "gguf-q4"


def test_strict_refuses_what_stands_in_for_want_of_memory() -> None:
    variants = [small_bundle.variant("gguf-q4", weights_bytes=10**12), small_bundle.variant("onnx-q4")]
    manifest = small_bundle.read(small_bundle.manifest(variants))
    with pytest.raises(EngineMissingError, match=r"substitute for gguf-q4: needs 931\.\d GiB"):
        _ = make_plan(manifest, machine(), everywhere(CPU), strict=True).choice


def test_strict_refuses_a_cpu_where_an_accelerator_is_idle() -> None:
    reason = "llama-cpp-python is not installed."
    wheel = replace(CPU, reason=reason, install="pip install llama-cpp-python")
    plan = strictly({"gguf": wheel, "onnx": CPU, "mlx": CPU}, "cuda")
    assert plan.candidates[0].idle == "cuda"
    assert "cuda stays idle: llama-cpp-python is not installed" in plan.candidates[0].reason
    with pytest.raises(EngineMissingError, match=r"would run on the cpu, a substitute.*cuda stays idle") as caught:
        _ = plan.choice
    assert caught.value.hint == "Install it with: pip install llama-cpp-python"


def test_strict_goes_by_measurements_where_there_are_any() -> None:
    supports = everywhere(CPU)
    tunings = {"gguf-q4": tuned("gguf-q4", 5.0), "onnx-q4": tuned("onnx-q4", 9.0)}
    assert strictly(supports, tunings=tunings).choice.variant == "onnx-q4"
    with pytest.raises(EngineMissingError, match="substitute for onnx-q4"):
        _ = strictly(supports | {"onnx": MISSING}, tunings=tunings).choice
    # What was measured to be slower is nothing to wait for, what never was may be.
    assert strictly(supports | {"gguf": MISSING}, tunings=tunings).choice.variant == "onnx-q4"
    with pytest.raises(EngineMissingError, match="substitute for gguf-q4"):
        _ = strictly(supports | {"gguf": MISSING}, tunings={"onnx-q4": tunings["onnx-q4"]}).choice


def test_strict_takes_a_cpu_that_was_measured_to_be_faster() -> None:
    tunings = {"gguf-q4": tuned("gguf-q4", 5.0), "onnx-q4": tuned("onnx-q4", 9.0)}
    supports = {"gguf": CUDA, "onnx": CPU, "mlx": CPU}
    assert strictly(supports, "cuda", tunings=tunings).choice.variant == "onnx-q4"


def test_strict_without_any_engine_names_every_reason() -> None:
    with pytest.raises(EngineMissingError, match="No engine can run this bundle here: gguf"):
        _ = strictly(everywhere(MISSING)).choice


# A draft model


def test_a_draft_whose_cache_is_of_another_type_is_not_taken() -> None:
    variants = [small_bundle.variant("onnx-q4-kv16", kv_cache="f16"), small_bundle.variant("onnx-q8")]
    small = small_bundle.read(small_bundle.manifest(variants))
    plan = make_plan(bundle("onnx-q4"), machine(), everywhere(CPU), small=small, draft=True, kv_cache="f32")
    assert plan.choice.draft is not None
    assert plan.choice.draft.variant == "onnx-q8"


def test_a_draft_whose_heads_a_q8_cache_does_not_take_is_not_taken() -> None:
    offers = everywhere(Support(("cpu",), version="1.2", kv_caches=("f16", "f32", "q8")))
    small = bundle("gguf-q4")
    wide = msgspec.structs.replace(small, decoder=changed(small.decoder, head_dim=32))
    with pytest.raises(EngineMissingError, match=r"its draft model has no variant .* in q8"):
        _ = make_plan(wide, machine(), offers, small=small, draft=True, kv_cache="q8").choice
    found = make_plan(wide, machine(), offers, small=wide, draft=True, kv_cache="q8").choice.draft
    assert found is not None
    assert found.options.kv_cache == "q8"


def planned(draft: bool | None = None, gain: float | None = None, free: int = 8 * 1024 * MIB, **asked: Any) -> Plan:
    """A plan of a bundle whose draft model allows half of its context."""
    small = bundle("gguf-q8", "gguf-q4", context=context_of(8192, 2048, 2048))
    tunings = {"gguf-q4": Tuning("gguf-q4", 3, 64, None, 9.5, 90.0, 1.5, gain)}
    manifest = bundle("gguf-q4", "gguf-f32", "onnx-q4")
    supports = everywhere(CPU)
    return make_plan(manifest, machine(available=free), supports, tunings=tunings, small=small, draft=draft, **asked)


def test_a_draft_is_planned_where_it_was_found_to_pay_or_is_asked_for() -> None:
    assert planned(gain=None).choice.draft is None
    assert planned(gain=DRAFT_PAYS - 0.01).choice.draft is None
    paying = planned(gain=DRAFT_PAYS).choice
    assert paying.draft is not None
    assert planned(draft=True).choice.draft == paying.draft
    assert planned(draft=False, gain=2.0).choice.draft is None
    assert paying.draft.variant == "gguf-q4"
    assert paying.draft.options == replace(paying.options, context=2048)
    assert paying.options.context == DEFAULT_CONTEXT


def test_a_draft_is_the_variant_of_the_same_name_or_the_first_of_the_engine() -> None:
    found = {each.variant: each for each in planned(draft=True).candidates}
    assert [found[id].draft and found[id].draft.variant for id in ("gguf-q4", "gguf-f32")] == ["gguf-q4", "gguf-q8"]
    assert not found["onnx-q4"].eligible
    assert "has no variant for this engine" in found["onnx-q4"].reason


def test_the_memory_of_a_draft_counts() -> None:
    alone, both = planned(draft=False).choice.memory, planned(draft=True).choice.memory
    assert replace(both, draft=0) == alone
    assert both.total == alone.total + both.draft
    assert both.draft > 1_000_000  # its weights alone


def test_a_draft_that_does_not_fit_is_left_out_unless_it_is_asked_for() -> None:
    needs = planned(draft=True).choice.memory.total
    assert planned(gain=2.0, free=needs, variant="gguf-q4").choice.draft is not None
    less = planned(gain=2.0, free=needs - 1, variant="gguf-q4").choice
    assert less.draft is None
    assert less.tuning is not None
    with pytest.raises(ContextTooLargeError) as caught:
        _ = planned(draft=True, free=needs - 1, variant="gguf-q4").choice
    fits = next(
        each for each in planned(draft=True, free=needs - 1).candidates if each.variant == "gguf-q4"
    ).fits_context
    assert 0 < fits < DEFAULT_CONTEXT
    assert str(fits) in str(caught.value)
    assert planned(draft=True, free=needs - 1, variant="gguf-q4", context=fits).choice.draft is not None
