"""The MLX runtime: exact against the reference, true to the seam's contract, and unharmed by damaged files."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
import variants
from cancelling import cancelling
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import LINEAR, LLAMA3, make_llama
from numpy.typing import NDArray
from variants import nmse, token_ids

from edgepack.bundle.decoder import Decoder
from edgepack.device.hardware import Hardware
from edgepack.errors import Cancelled, EngineError, PromptTooLongError, UsageError
from edgepack.runtime import Session, find
from edgepack_packager import families, reference
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import blocks
from edgepack_packager.proof.execution import ReadBack
from edgepack_packager.targets import Model
from edgepack_packager.targets import find as find_target

POSITIONS = 300


pack = partial(variants.pack, "mlx")
start = partial(variants.start, "mlx")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decoder]:
    """An f32 variant of a small untied llama3-rope model."""
    folder = tmp_path_factory.mktemp("tiny")
    source = make_llama(folder / "source", tied=False, rope=LLAMA3)
    return folder / "variant", pack(source, folder / "variant", "f32")


@pytest.fixture
def session(tiny: tuple[Path, Decoder]) -> Iterator[Session]:
    opened = start(*tiny, context=40, chunk=8)
    yield opened
    opened.close()


# The same model --------------------------------------------------------------------------------------------------

MODELS: dict[str, dict[str, Any]] = {
    "default": {"dtype": "bf16"},
    "linear, untied": {"rope": LINEAR, "tied": False, "dtype": "f16"},
    "llama3, head_dim": {"rope": LLAMA3, "head_dim": 24, "theta": 500000.0, "spelling": "v5"},
    "llama3, biases, untied": {"rope": LLAMA3, "attention_bias": True, "mlp_bias": True, "tied": False},
    "one KV head": {"kv_heads": 1, "layers": 3, "norm_eps": 1e-6, "dtype": "f32"},
}


@pytest.mark.parametrize("name", MODELS)
def test_f32_variant_is_the_reference(name: str, tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source", seed=7, **MODELS[name])
    decoder = pack(source, tmp_path / "f32", "f32")
    ids = token_ids(decoder, POSITIONS)
    with open_checkpoint(source) as checkpoint:
        expected = reference.logits(families.open_model(checkpoint), ids)
    session = start(tmp_path / "f32", decoder)
    assert nmse(session.forward_all(ids), expected) <= 1e-10
    assert session.length == POSITIONS
    session.close()


@pytest.mark.parametrize("scheme", ["f32", "f16", "bf16", "8bit", "4bit", "4bit_mixed", "2bit_g32", "5bit_g128"])
def test_mlx_lm_loads_the_folder_and_says_the_same(scheme: str, tmp_path: Path) -> None:
    import mlx_lm

    source = make_llama(tmp_path / "source", hidden=256, intermediate=512, rope=LLAMA3)
    decoder = pack(source, tmp_path / scheme, scheme)
    ids = token_ids(decoder, 24)
    session = start(tmp_path / scheme, decoder, kv_cache="f32" if scheme == "f32" else "f16")
    ours = session.forward_all(ids)
    session.close()
    shutil.copy(source / "tokenizer.json", tmp_path / scheme)
    model, tokenizer = mlx_lm.load(str(tmp_path / scheme))
    theirs = np.array(model(mx.array([ids]))[0].astype(mx.float32))
    # The frequencies of their rope are off by 1e-7, which may round a 16-bit activation the other way.
    assert nmse(ours, theirs) <= {"f32": 1e-11, "bf16": 1e-3, "4bit": 1e-3, "4bit_mixed": 1e-3}.get(scheme, 1e-5)
    assert tokenizer.eos_token_ids == {0, 2}
    assert tokenizer.decode(tokenizer.encode("a box of apples")) == "a box of apples"


@pytest.mark.shared
def test_trained_model_writes_its_published_text(shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "stories-260K"
    decoder = pack(source, tmp_path / "f32", "f32")
    expected = json.loads((source / "expected_greedy.json").read_text())["greedy_ids_from_bos"]
    session = start(tmp_path / "f32", decoder)
    ids = expected[:1]
    while len(ids) < len(expected):
        ids.append(int(session.forward(ids[-1:]).argmax()))
    session.close()
    assert ids == expected


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("scheme", ["8bit", "4bit", "4bit_mixed", "3bit_g32", "6bit_g128"])
def test_quantised_variant_is_the_reference_of_its_own_weights(scheme: str, dtype: Any, tmp_path: Path) -> None:
    """In float32 only the quantiser stands between the engine and exactness."""
    source = make_llama(tmp_path / "source", dtype=dtype, rope=LLAMA3, tied=False)
    decoder = pack(source, tmp_path / scheme, scheme)
    ids = token_ids(decoder, 100)
    reader = find_target("mlx").read(tmp_path / scheme, decoder)
    expected = reference.logits(ReadBack(decoder, reader), ids)
    reader.close()
    session = start(tmp_path / scheme, decoder)
    assert nmse(session.forward_all(ids), expected) <= 1e-10
    session.close()


# The contract ----------------------------------------------------------------------------------------------------


def test_forward_forward_all_and_chunks_agree(tiny: tuple[Path, Decoder]) -> None:
    ids = token_ids(tiny[1], POSITIONS)
    whole = start(*tiny, chunk=512)
    expected = whole.forward_all(ids)
    whole.close()
    assert expected.dtype == np.float32
    assert expected.shape == (POSITIONS, tiny[1].n_vocab)
    parts = start(*tiny, chunk=7)
    assert nmse(parts.forward_all(ids[:100]), expected[:100]) <= 1e-10
    last = parts.forward(ids[100:250])
    assert last.shape == (tiny[1].n_vocab,)
    assert nmse(last, expected[249]) <= 1e-10
    steps = np.stack([parts.forward([token]) for token in ids[250:]])
    assert nmse(steps, expected[250:]) <= 1e-10
    parts.close()


def test_rewind_forgets(session: Session, tiny: tuple[Path, Decoder]) -> None:
    ids = token_ids(tiny[1], 30)
    first = session.forward_all(ids)
    session.rewind(11)
    assert session.length == 11
    session.forward(ids[:9])
    session.rewind(11)
    assert np.array_equal(session.forward_all(ids[11:]), start_and_run(tiny, ids[:11], ids[11:]))
    session.rewind(0)
    assert np.array_equal(session.forward_all(ids), first)
    for length in (-1, 31):
        with pytest.raises(ValueError, match=f"cannot rewind to {length}: the cache holds 30"):
            session.rewind(length)


def start_and_run(tiny: tuple[Path, Decoder], before: list[int], ids: list[int]) -> NDArray[np.float32]:
    fresh = start(*tiny, context=40, chunk=8)
    fresh.forward_all(before)
    found = fresh.forward_all(ids)
    fresh.close()
    return found


def test_returned_arrays_are_the_callers_own(session: Session) -> None:
    one = session.forward_all([3, 4])
    copy = one.copy()
    one[:] = 0
    session.rewind(0)
    assert np.array_equal(session.forward_all([3, 4]), copy)


def test_prompt_beyond_the_context_is_refused_whole(session: Session) -> None:
    session.forward([1] * 33)
    with pytest.raises(PromptTooLongError, match="8 tokens after the 33 in the cache exceed the context of 40"):
        session.forward_all([1] * 8)
    assert session.length == 33
    session.forward([1] * 7)
    assert session.length == 40


@pytest.mark.parametrize("tokens", [[], [-1], [1, 384]])
def test_bad_ids_are_refused_before_anything_runs(session: Session, tokens: list[int]) -> None:
    for call in (session.forward, session.forward_all):
        with pytest.raises(ValueError, match=r"no token|outside the vocabulary of 384"):
            call(tokens)
    assert session.length == 0


def test_cancel_stops_a_forward_and_restores_the_length(tiny: tuple[Path, Decoder]) -> None:
    session = start(*tiny, chunk=1)
    session.forward([1, 2, 3])
    expected = session.forward([4])
    session.rewind(3)
    with cancelling(session), pytest.raises(Cancelled):
        session.forward([5] * 400)
    assert session.length == 3
    assert np.array_equal(session.forward([4]), expected)
    session.close()


def test_cancel_without_a_forward_does_nothing(session: Session) -> None:
    session.cancel()
    session.cancel()
    assert session.forward([1]).shape == (384,)


def test_closed_session_says_so(tiny: tuple[Path, Decoder]) -> None:
    session = start(*tiny)
    session.close()
    session.close()
    session.cancel()
    calls = (lambda: session.forward([1]), lambda: session.forward_all([1]), lambda: session.rewind(0))
    for call in (*calls, lambda: session.length):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_session_belongs_to_the_thread_that_opened_it(session: Session, tiny: tuple[Path, Decoder]) -> None:
    caught: list[str] = []
    found: list[NDArray[np.float32]] = []

    def visit() -> None:
        for call in (lambda: session.forward([1]), lambda: session.rewind(0), session.close):
            try:
                call()
            except EngineError as error:
                caught.append(str(error))
        own = start(*tiny, context=40)
        found.append(own.forward([1]))
        own.close()

    thread = threading.Thread(target=visit, name="visitor")
    thread.start()
    thread.join()
    assert len(caught) == 3
    assert all(
        "belongs to the thread that opened it, MainThread, and was called from visitor" in text for text in caught
    )
    assert np.array_equal(found[0], session.forward([1]))


def test_kv_cache_types(tiny: tuple[Path, Decoder]) -> None:
    ids = token_ids(tiny[1], 100)
    found = {}
    for kv_cache in ("f32", "f16"):
        session = start(*tiny, kv_cache=kv_cache)
        found[kv_cache] = session.forward_all(ids)
        session.close()
    assert 1e-12 < nmse(found["f16"], found["f32"]) < 1e-5
    with pytest.raises(UsageError, match="no KV cache of q8"):
        start(*tiny, kv_cache="q8")


def test_shards_load(tmp_path: Path) -> None:
    from edgepack_packager.targets.mlx import MlxTarget

    source = make_llama(tmp_path / "source", hidden=128)
    decoder = pack(source, tmp_path / "one", "4bit")
    (tmp_path / "many").mkdir()
    with open_checkpoint(source) as checkpoint:
        weights = families.open_model(checkpoint)
        writer = MlxTarget(shard_bytes=30_000).open(tmp_path / "many", Model("m", decoder, weights.dtype), "4bit")
        for name, begin, stop in blocks(decoder):
            writer.write(name, begin, weights.rows(name, begin, stop))
        writer.finish()
    assert not (tmp_path / "many" / "model.safetensors").exists()
    found = []
    for folder in ("one", "many"):
        session = start(tmp_path / folder, decoder, kv_cache="f16")
        found.append(session.forward([1, 2, 3]))
        session.close()
    assert np.array_equal(*found)


# Hardware --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("system", "machine", "accelerators", "devices"), [
    ("linux", "x86_64", (), ("cpu",)),
    ("linux", "x86_64", ("cuda",), ("cpu",)),
    ("darwin", "arm64", ("metal",), ("metal",)),
    ("darwin", "x86_64", (), ()),
    ("windows", "x86_64", (), ()),
])  # fmt: skip
def test_probe(system: str, machine: str, accelerators: tuple[str, ...], devices: tuple[str, ...]) -> None:
    support = find("mlx").probe(Hardware(system, machine, 2, 2, None, 1 << 30, 1 << 30, accelerators))
    assert support.devices == devices
    assert (support.reason is None) == bool(devices)
    assert (support.version is not None) == bool(devices)


def test_probe_without_the_packages_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx", None)
    runtime = find("mlx")
    support = runtime.probe(Hardware("linux", "x86_64", 2, 2, None, 1 << 30, 1 << 30))
    assert (support.devices, support.reason) == ((), "mlx is not installed.")
    assert support.install == "pip install 'edgepack[mlx]'"
    with pytest.raises(EngineError, match=r"mlx is not installed.*edgepack\[mlx\]"):
        runtime.open(Path("/nowhere"), None, None)  # type: ignore[arg-type]


def test_nothing_is_imported_that_is_not_needed(tiny: tuple[Path, Decoder]) -> None:
    folder, decoder = tiny
    script = (
        "import sys, pathlib, msgspec\n"
        "from edgepack.bundle.decoder import Decoder\n"
        "from edgepack.device.hardware import Hardware\n"
        "from edgepack.runtime import Options, find\n"
        "runtime = find('mlx')\n"
        "runtime.probe(Hardware('linux', 'x86_64', 2, 2, None, 1, 1))\n"
        "before = 'mlx.core' in sys.modules\n"
        f"decoder = msgspec.json.decode({msgspec.json.encode(decoder).decode()!r}, type=Decoder)\n"
        f"session = runtime.open(pathlib.Path({str(folder)!r}), decoder, Options(8, 1, 'f32'))\n"
        "session.forward([1])\n"
        "print(before, [name for name in sys.modules if name.startswith(('transformers', 'mlx_lm'))])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "False []\n"


# Damaged files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tiny: tuple[Path, Decoder], tmp_path: Path) -> Path:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((tiny[0] / file).read_bytes())
    return tmp_path


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_header(file: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


NAME = "model.layers.0.mlp.up_proj.weight"

HEADERS: dict[str, tuple[Any, str]] = {
    "no JSON": (lambda h: b"\xff{", "not valid JSON"),
    "nested without end": (lambda h: b"[" * 100_000, "not valid JSON"),
    "no object": (lambda h: [], "no JSON object"),
    "a key twice": (lambda h: b'{"a":1,"a":2}', "a key occurs twice"),
    "unknown dtype": (lambda h: h | {NAME: h[NAME] | {"dtype": "F8"}}, f"{NAME} has the dtype 'F8'"),
    "dtype no text": (lambda h: h | {NAME: h[NAME] | {"dtype": []}}, f"{NAME} has the dtype"),
    "other dtype": (lambda h: h | {NAME: h[NAME] | {"dtype": "U32"}}, f"{NAME} is U32 .*expected F32"),
    "two types": (
        lambda h: h | {"model.norm.weight": h["model.norm.weight"] | {"dtype": "F16", "shape": [128]}},
        "mix the types F16, F32",
    ),
    "transposed": (
        lambda h: h | {NAME: h[NAME] | {"shape": [64, 160]}},
        f"{NAME} is F32 .64, 160., expected F32 .160, 64",
    ),
    "negative": (lambda h: h | {NAME: h[NAME] | {"shape": [-160, -64]}}, f"{NAME} has the shape"),
    "huge": (lambda h: h | {NAME: h[NAME] | {"shape": [1 << 62, 4]}}, f"{NAME} has the shape"),
    "true as a size": (lambda h: h | {NAME: h[NAME] | {"shape": [True, 64]}}, f"{NAME} has the shape"),
    "entry no object": (lambda h: h | {NAME: 3}, f"the entry of {NAME}"),
    "extra field": (lambda h: h | {NAME: h[NAME] | {"x": 1}}, f"the entry of {NAME}"),
    "overlap": (
        lambda h: h | {NAME: h[NAME] | {"data_offsets": [0, 160 * 64 * 4]}},
        "begins at byte|has the shape",
    ),
    "missing": (lambda h: {k: v for k, v in h.items() if k != NAME}, "begins at byte|tensors take"),
    "renamed": (
        lambda h: {k.replace("0.mlp.up", "0.mlp.out"): v for k, v in h.items()},
        "out_proj.weight is F32 .*expected none",
    ),
    "empty": (lambda h: {}, "its tensors take 0 bytes"),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_malformed_header_is_an_error(fault: str, copy: Path, tiny: tuple[Path, Decoder]) -> None:
    change, words = HEADERS[fault]
    header, data = header_of(copy / "model.safetensors")
    put_header(copy / "model.safetensors", change(header), data)
    with pytest.raises(EngineError, match=words) as caught:
        start(copy, tiny[1])
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_truncated_file_is_an_error(size: int, copy: Path, tiny: tuple[Path, Decoder]) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:size])
    with pytest.raises(EngineError, match=r"model\.safetensors: (its header|its tensors)"):
        start(copy, tiny[1])


def test_missing_files_are_errors(copy: Path, tiny: tuple[Path, Decoder]) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"neither model\.safetensors nor its index"):
        start(copy, tiny[1])
    for weight_map in ({}, [], {"a": "../evil.safetensors"}, {"a": 3}, {"a": "gone.safetensors"}):
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(EngineError, match=r"weight_map|plain name|gone\.safetensors: it cannot be read"):
            start(copy, tiny[1])
    (copy / "config.json").unlink()
    with pytest.raises(EngineError, match=r"config\.json: it cannot be read: No such file"):
        start(copy, tiny[1])


CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "unknown type": ({"model_type": "gemma"}, "model_type is 'gemma', expected one of llama, smollm3, qwen2"),
    "type as a list": ({"model_type": ["llama"]}, r"model_type is \['llama'\], expected one of"),
    "fused type": ({"model_type": "phi3"}, r"mlp\.down_proj|gate_proj\.weight is F32 .*expected none"),
    "another size": ({"hidden_size": 1 << 40}, "hidden_size is 1099511627776, the manifest says 64"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', the manifest says 'silu'"),
    "epsilon as text": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5', the manifest says 1e-05"),
    "infinite theta": ({"rope_theta": float("inf")}, r"rope_theta is inf, the manifest says 10000\.0"),
    "no rope scaling": ({"rope_scaling": None}, "rope_scaling is None, the manifest says {'rope_type': 'llama3'"),
    "true as a number": ({"num_hidden_layers": True}, "num_hidden_layers is True, the manifest says 2"),
    "a softcap": ({"final_logit_softcapping": 30.0}, r"final_logit_softcapping is 30\.0, the manifest says None"),
    "odd bits": ({"quantization": {"bits": 7, "group_size": 64}}, "is not of 2 to 6 or 8 bits"),
    "bits as text": ({"quantization": "4bit"}, "'4bit' is not an object"),
    "true as bits": ({"quantization": {"bits": True, "group_size": 64}}, "is not of 2 to 6 or 8 bits"),
    "another mode": ({"quantization": {"bits": 4, "group_size": 64, "mode": "mxfp4"}}, "is not of .*, affine"),
    "no bits for the rest": (
        {"quantization": {"model.embed_tokens": {"bits": 4, "group_size": 64}}},
        "is not of 2 to 6 or 8",
    ),
    "a layer apart": (
        {"quantization": {"bits": 4, "group_size": 64, "model.norm": {"bits": 4, "group_size": 64}}},
        r"names model\.norm, which is no quantised module",
    ),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_config_that_contradicts_is_an_error(fault: str, copy: Path, tiny: tuple[Path, Decoder]) -> None:
    fields, words = CONFIGS[fault]
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(EngineError, match=words):
        start(copy, tiny[1])


def test_custom_code_is_not_run(copy: Path, tiny: tuple[Path, Decoder]) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_file": "evil.py", "auto_map": {"x": "evil.y"}}))
    (copy / "evil.py").write_text("raise SystemExit(3)")
    session = start(copy, tiny[1])
    assert session.forward([1]).shape == (384,)
    session.close()


def test_scales_without_quantisation_are_an_error(tmp_path: Path) -> None:
    decoder = pack(make_llama(tmp_path / "source"), tmp_path / "v", "4bit")
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    whole = {"bits": 4, "group_size": 64}
    for change in (
        {"quantization": None},
        {"quantization": whole | {"bits": 8}},
        {"quantization": whole | {"model.embed_tokens": whole | {"bits": 8}}},
        {"quantization": whole | {"model.embed_tokens": whole | {"group_size": 32}}},
    ):
        (tmp_path / "v" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(EngineError, match=r"the tensor .* is .*, expected"):
            start(tmp_path / "v", decoder)


@pytest.mark.parametrize("own", [False, {}, {"bits": 4}, {"bits": 6, "group_size": 16}, {"bits": 6, "path": "x"}])
def test_a_module_that_is_not_quantised_plainly_is_an_error(own: object, tmp_path: Path) -> None:
    decoder = pack(make_llama(tmp_path / "source"), tmp_path / "v", "4bit_mixed")
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    config["quantization"]["model.embed_tokens"] = own
    (tmp_path / "v" / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match=r"is not of 2 to 6 or 8 bits, affine, in groups of 32 or 64 or 128"):
        start(tmp_path / "v", decoder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_header_never_kills(copy: Path, tiny: tuple[Path, Decoder], data: st.DataObject) -> None:
    original = (tiny[0] / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(original[:8], "little")
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    (copy / "model.safetensors").write_bytes(mutated)
    # Anything but an EngineError fails here; a mutation of a name in the metadata may go unnoticed.
    with contextlib.suppress(EngineError):
        start(copy, tiny[1], context=4).close()
