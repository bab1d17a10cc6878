"""From a bundle to a model: the fake engine stands in for an engine, everything else is real."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bundle

import edgepack
from edgepack import FakeRuntime
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.files import listed
from edgepack.device.hardware import Hardware, detect, most_threads
from edgepack.device.unchanged import SETTLED_S, Unchanged
from edgepack.engines import probe_all
from edgepack.errors import (
    BundleDamagedError,
    BundleError,
    BundleNotFoundError,
    BundleTooNewError,
    ContextTooLargeError,
    EngineError,
    EngineMissingError,
    PromptTooLongError,
    UsageError,
)
from edgepack.measuring.replay import replay_variant
from edgepack.runtime import Options, Runtime, Support
from edgepack.text.opening import special_tokens
from edgepack.text.tokenizer import Tokenizer

ALPHABET = Tokenizer.from_json(small_bundle.tokenizer_json(), None, False)
STOP = 257
WEIGHTS = "variants/fake-q4/model.bin"


def says(text: str) -> dict[str, Runtime]:
    return {"fake": FakeRuntime([*ALPHABET.encode(text), STOP])}


class Elsewhere:
    """A runtime that is not installed."""

    name = "gguf"

    def probe(self, hardware: Hardware) -> Support:
        return Support((), reason="Its engine is not installed.", install="pip install 'edgepack[gguf]'")

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Any:
        raise EngineMissingError("Its engine is not installed.")


class Broken(Elsewhere):
    """A runtime whose probe breaks its promise."""

    def probe(self, hardware: Hardware) -> Support:
        raise ImportError("libengine.so: undefined symbol")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_bundle.write(tmp_path / "small")


def test_a_model_answers(folder: Path) -> None:
    with edgepack.load(folder, runtimes=says("Hello!")) as model:
        assert model.variant.id == "fake-q4"
        assert model.backend == "fake"
        assert model.context == 4096
        assert model.bundle_id == edgepack.open_bundle(folder).id
        assert model.generate("Hi").text == "Hello!"
        assert model.chat([{"role": "user", "content": "Hi"}]).text == "Hello!"
        assert model.generate("Hi").timings.load_s is not None


def test_arguments_reach_the_engine(folder: Path) -> None:
    opened: list[Options] = []

    class Recording(FakeRuntime):
        def open(self, variant: Path, decoder: Decoder, options: Options) -> Any:
            assert (variant / "model.bin").read_bytes() == b"weights"
            opened.append(options)
            return super().open(variant, decoder, options)

    edgepack.load(folder, "fake", 100, "f32", threads=1, runtimes={"fake": Recording()}).close()
    edgepack.load(folder, runtimes={"fake": Recording()}).close()
    assert opened[0] == Options(context=100, threads=1, kv_cache="f32")
    assert opened[1] == Options(context=4096, threads=detect().threads, kv_cache="f16")


def test_the_plan_is_what_load_does(folder: Path) -> None:
    plan = edgepack.plan(folder, context=64, runtimes=says(""))
    assert plan.choice.variant == "fake-q4"
    assert plan.choice.options.context == 64


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", WEIGHTS])
def test_a_flipped_byte_is_found_before_the_engine_opens(folder: Path, name: str) -> None:
    class Untouched(FakeRuntime):
        def open(self, variant: Path, decoder: Decoder, options: Options) -> Any:
            pytest.fail("the engine saw a damaged file")

    data = bytearray((folder / name).read_bytes())
    data[0] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleDamagedError, match=name):
        edgepack.load(folder, runtimes={"fake": Untouched()})


def test_a_damaged_variant_does_not_hinder_another(tmp_path: Path) -> None:
    variants = [small_bundle.variant("fake-q4"), small_bundle.variant("fake-q8")]
    folder = small_bundle.write(tmp_path / "two", variants, {"fake-q8": b"WEIGHTS"})
    edgepack.load(folder, variant="fake-q4", runtimes=says("")).close()
    with pytest.raises(BundleDamagedError, match="fake-q8"):
        edgepack.load(folder, variant="fake-q8", runtimes=says(""))


def test_a_newer_schema_is_refused(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_bytes())
    document["schema"]["version"] = 9
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleTooNewError, match="Upgrade"):
        edgepack.load(folder, runtimes=says(""))


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        edgepack.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"backend": "tensorrt"}, UsageError),
        ({"variant": "fake-q2"}, UsageError),
        ({"kv_cache": "f64"}, UsageError),
        ({"threads": 0}, UsageError),
        ({"threads": "2"}, UsageError),
        ({"threads": 100_000}, UsageError),
        ({"id": "latest"}, UsageError),
        ({"id": "sha256:" + "a" * 64}, BundleError),
        ({"context": 0}, UsageError),
        ({"context": 8193}, ContextTooLargeError),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused(
    folder: Path, arguments: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        edgepack.load(folder, **arguments, runtimes=says(""))
    assert str(next(iter(arguments.values()))) in str(caught.value)


def test_too_many_threads_are_refused_with_the_bound(folder: Path) -> None:
    with pytest.raises(UsageError, match=f"{os.cpu_count()} cores.*at most {most_threads()}"):
        edgepack.load(folder, threads=most_threads() + 1, runtimes=says(""))
    edgepack.load(folder, threads=most_threads(), runtimes=says("")).close()


def test_a_pinned_bundle_is_that_one_alone(folder: Path, tmp_path: Path) -> None:
    bundle = edgepack.open_bundle(folder)
    for asked in (bundle.id, f"sha256:{bundle.id}"):
        edgepack.load(folder, id=asked, runtimes=says("")).close()
        edgepack.load(bundle, id=asked, runtimes=says("")).close()
    other = small_bundle.write(tmp_path / "other", [small_bundle.variant("fake-q8")])
    for given in (other, edgepack.open_bundle(other)):
        with pytest.raises(BundleError, match=f"other is another bundle: .*, not sha256:{bundle.id}"):
            edgepack.load(given, id=bundle.id, runtimes=says(""))


def torn(mark: Path) -> None:
    mark.write_bytes(b"\xff")


def piped(mark: Path) -> None:
    mark.unlink()
    os.mkfifo(mark)


@pytest.mark.parametrize("damage", [torn, piped])
def test_a_damaged_mark_of_the_first_opening_is_written_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    edgepack.load(folder, runtimes=says("")).close()
    (mark,) = (tmp_path / "state" / "replayed").iterdir()
    whole = mark.read_bytes()
    damage(mark)
    edgepack.load(folder, runtimes=says("")).close()
    assert mark.is_file()
    assert mark.read_bytes() == whole


def test_an_unknown_keyword_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="contxt"):
        edgepack.load(folder, contxt=100)  # type: ignore[call-arg]


def test_more_than_the_memory_is_refused(tmp_path: Path) -> None:
    folder = small_bundle.write(tmp_path / "huge", [small_bundle.variant("fake-q4", weights_bytes=10**15)])
    with pytest.raises(ContextTooLargeError, match=r"needs 931322\.6 GiB"):
        edgepack.load(folder, runtimes=says(""))


def test_a_prompt_longer_than_the_context_is_refused(folder: Path) -> None:
    with (
        edgepack.load(folder, context=10, runtimes=says("")) as model,
        pytest.raises(PromptTooLongError, match="11 tokens, the context 10"),
    ):
        model.generate("12345678901")


def test_a_missing_engine_names_its_installation(tmp_path: Path) -> None:
    folder = small_bundle.write(tmp_path / "gguf", [small_bundle.variant("gguf-q4")])
    with pytest.raises(EngineMissingError, match=r"pip install 'edgepack\[gguf\]'"):
        edgepack.load(folder, runtimes={"gguf": Elsewhere()})


def test_an_asked_backend_that_is_missing_does_not_fall_back(tmp_path: Path) -> None:
    variants = [small_bundle.variant("gguf-q4"), small_bundle.variant("fake-q4")]
    folder = small_bundle.write(tmp_path / "two", variants)
    runtimes = {"gguf": Elsewhere(), **says("")}
    with pytest.raises(EngineMissingError, match="not installed"):
        edgepack.load(folder, "gguf", runtimes=runtimes)
    edgepack.load(folder, runtimes=runtimes).close()


def test_a_broken_runtime_does_not_hide_the_others(tmp_path: Path) -> None:
    variants = [small_bundle.variant("gguf-q4"), small_bundle.variant("fake-q4")]
    folder = small_bundle.write(tmp_path / "two", variants)
    plan = edgepack.plan(folder, runtimes={"gguf": Broken(), **says("")})
    assert plan.choice.variant == "fake-q4"
    assert "undefined symbol" in plan.candidates[1].reason


def test_only_engines_that_were_asked_for_are_probed(tmp_path: Path) -> None:
    class Untouched(Elsewhere):
        def probe(self, hardware: Hardware) -> Support:
            pytest.fail("an engine was probed that nobody asked for")

    variants = [small_bundle.variant("gguf-q4"), small_bundle.variant("fake-q4")]
    folder = small_bundle.write(tmp_path / "two", variants)
    edgepack.plan(folder, backend="fake", runtimes={"gguf": Untouched(), "other": Untouched(), **says("")})


def test_the_registered_runtimes_are_all_reported() -> None:
    supports = probe_all(detect())
    assert {"gguf", "onnx", "mlx"} <= set(supports)
    for support in supports.values():
        assert support.devices or support.reason


@pytest.mark.parametrize(
    ("configs", "texts"),
    [
        ([], ("", "")),
        ([b'{"bos_token": "<s>"}'], ("<s>", "")),
        ([b'{"eos_token": {"content": "</s>", "lstrip": false}}'], ("", "</s>")),
        ([b'{"bos_token": null, "eos_token": 5}'], ("", "")),
        ([b"{}", b'{"bos_token": "<s>"}'], ("<s>", "")),
        ([b'{"bos_token": null}', b'{"bos_token": "<s>"}'], ("", "")),
    ],
)
def test_special_tokens_in_every_spelling(configs: list[bytes], texts: tuple[str, str]) -> None:
    assert special_tokens(configs) == texts


@pytest.mark.parametrize("config", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_tokenizer_config_that_is_no_object_is_damaged(config: bytes) -> None:
    with pytest.raises(BundleDamagedError, match="tokenizer is not a JSON object"):
        special_tokens([config])


# Replaying a bundle's own vectors


def with_self_test(ids: list[int], top1: list[int | None]) -> dict[str, Any]:
    return small_bundle.variant("fake-q4", self_test={"ids": ids, "top1": top1})


def answers(ids: list[int]) -> list[int | None]:
    session = FakeRuntime().open(Path(), small_bundle.read(small_bundle.manifest([])).decoder, Options(64, 1, "f16"))
    return [int(token) for token in np.argmax(session.forward_all(ids), axis=1)]


def replay(tmp_path: Path, variant: dict[str, Any], runtimes: dict[str, Runtime] | None = None) -> Any:
    bundle = edgepack.open_bundle(small_bundle.write(tmp_path / "tested", [variant]))
    return replay_variant(bundle, bundle.manifest.variants[0], detect(), runtimes or {"fake": FakeRuntime()})


def test_a_self_test_gives_the_same(tmp_path: Path) -> None:
    top1 = answers([1, 2, 3, 4])
    top1[1] = None
    outcome = replay(tmp_path, with_self_test([1, 2, 3, 4], top1))
    assert (outcome.verdict, outcome.checked) == ("same", 3)


def test_a_self_test_that_differs_names_the_position(tmp_path: Path) -> None:
    top1 = answers([1, 2, 3, 4])
    right = top1[2]
    assert right is not None
    top1[2] = right + 1
    outcome = replay(tmp_path, with_self_test([1, 2, 3, 4], top1))
    assert outcome.verdict == "differs"
    assert outcome.reason == f"token {right} instead of {right + 1} after position 2"


@pytest.mark.parametrize(
    ("variant", "verdict", "reason"),
    [
        (small_bundle.variant("fake-q4"), "skipped", "unproven"),
        (with_self_test([1, 2], [1]), "differs", "one answer for each"),
        (with_self_test([], []), "differs", "no ids"),
        (with_self_test([9999], [1]), "differs", "9999"),
        (small_bundle.variant("gguf-q4", self_test={"ids": [1], "top1": [1]}), "skipped", "not registered"),
    ],
)
def test_a_self_test_that_cannot_run_says_why(
    tmp_path: Path, variant: dict[str, Any], verdict: str, reason: str
) -> None:
    outcome = replay(tmp_path, variant)
    assert outcome.verdict == verdict
    assert reason in outcome.reason or "no runtime called 'gguf'" in outcome.reason


def test_an_engine_that_fails_its_self_test_differs(tmp_path: Path) -> None:
    outcome = replay(tmp_path, with_self_test([1], [1]), {"fake": FakeRuntime(fail_at=1)})
    assert outcome.verdict == "differs"
    assert "failed at forward 1" in outcome.reason


def test_an_engine_that_fails_while_opening_is_not_hidden(folder: Path) -> None:
    class Failing(FakeRuntime):
        def open(self, variant: Path, decoder: Decoder, options: Options) -> Any:
            raise EngineError("model.bin: bad magic.")

    with pytest.raises(EngineError, match="bad magic"):
        edgepack.load(folder, runtimes={"fake": Failing()})


def believe(folder: Path, damaged: str) -> None:
    """Damage a file of a bundle, and let this device believe that it was found whole."""
    bundle = edgepack.open_bundle(folder)
    (folder / damaged).write_bytes(b"Weights")
    memory = Unchanged(folder, clock=lambda: time.time_ns() + (SETTLED_S + 1) * 10**9)
    for name, file in listed(bundle.manifest).items():
        with (folder / name).open("rb") as opened:
            memory.holds(name, file.sha256, opened.fileno())
            memory.found(name, file.sha256)
            memory.save()
            if not Unchanged(folder).holds(name, file.sha256, opened.fileno()):
                pytest.skip("nothing is remembered of files on the temporary folder's file system")


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A damaged bundle of which this device believes that it was found whole."""
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    folder = small_bundle.write(tmp_path / "small")
    believe(folder, WEIGHTS)
    return folder


def test_a_file_that_was_found_whole_is_not_read_again(remembered: Path) -> None:
    with edgepack.load(remembered, runtimes=says("whole")) as model:
        assert model.generate("x", max_tokens=9).text == "whole"


def test_every_file_is_read_where_that_is_asked_for(remembered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleDamagedError, match="sha256"):
        edgepack.load(remembered, runtimes=says(""), verify="always")
    monkeypatch.setenv("EDGEPACK_VERIFY", "always")
    with pytest.raises(BundleDamagedError, match="sha256"):
        edgepack.load(remembered, runtimes=says(""))
    edgepack.load(remembered, runtimes=says(""), verify="remembered").close()
    with pytest.raises(BundleDamagedError, match="sha256"):
        edgepack.open_bundle(remembered)


def test_the_files_of_a_draft_are_remembered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    folder = small_bundle.write_with_draft(tmp_path / "two")
    believe(folder / "draft", WEIGHTS)
    edgepack.load(folder, draft=True, runtimes=says("")).close()
    with pytest.raises(BundleDamagedError, match="sha256"):
        edgepack.load(folder, draft=True, runtimes=says(""), verify="always")


def test_another_word_for_verify_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^verify cannot be 'never'") as caught:
        edgepack.load("nowhere", verify="never")
    assert caught.value.hint == "Choose 'always' or 'remembered'."
    monkeypatch.setenv("EDGEPACK_VERIFY", "sizes")
    with pytest.raises(UsageError, match=r"^EDGEPACK_VERIFY cannot be 'sizes'"):
        edgepack.load("nowhere")
