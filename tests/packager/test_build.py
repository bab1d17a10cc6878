"""The main job on real models: build, prove, open, generate; and that no wrong input leaves a bundle behind."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
from models import make_llama

import edgepack
from edgepack.errors import EngineError, EngineMissingError, OutputExistsError, SourceError, UsageError
from edgepack.isolation import probing
from edgepack.runtime import Support
from edgepack_packager import families
from edgepack_packager.build import Built, VariantsFailedError, build
from edgepack_packager.progress import Silent
from edgepack_packager.proof import child
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Model
from edgepack_packager.text import read_text

ALL = ("gguf", "mlx", "onnx")
EXACT = 1e-10


def gates(built: Built, variant: str) -> dict[str, float]:
    """The figures of a variant's proof, by name."""
    (found,) = (each for each in built.manifest.variants if each.id == variant)
    assert found.proof is not None
    return {gate.name: gate.value for gate in found.proof.gates}


@pytest.fixture(scope="module")
def stories(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("stories") / "stories.edgepack"
    return build(str(shared / "models" / "stories-260K"), Recipe(ALL, ("f32",)), out)


@pytest.fixture(scope="module")
def sharded(sharded_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("sharded") / "sharded.edgepack"
    return build(str(sharded_llama), Recipe(ALL, ("f32", "f16", "q8", "q4")), out)


@pytest.mark.parametrize("target", ALL)
def test_demo_is_the_same_model(target: str, demo_bundle: Built) -> None:
    figures = gates(demo_bundle, f"{target}-f32")
    assert figures["structure.nmse"] <= EXACT
    assert figures["engine.nmse"] <= EXACT


@pytest.mark.parametrize("target", ALL)
def test_a_sharded_untied_llama_is_the_same_model(target: str, sharded: Built) -> None:
    figures = gates(sharded, f"{target}-f32")
    assert figures["structure.nmse"] <= EXACT
    assert figures["engine.nmse"] <= EXACT


@pytest.mark.shared
@pytest.mark.parametrize("backend", ALL)
def test_stories_write_their_published_text(backend: str, stories: Built, shared: Path) -> None:
    assert gates(stories, f"{backend}-f32")["engine.nmse"] <= EXACT
    published = json.loads((shared / "models" / "stories-260K" / "expected_greedy.json").read_text())
    ids = published["greedy_ids_from_bos"]
    with edgepack.load(stories.path, backend=backend) as model:
        told = model.generate("", max_tokens=len(ids) - 1, temperature=0)
    assert list(told.token_ids) == ids[1:]
    assert told.text.strip() == published["text"].strip()


@pytest.mark.shared
def test_a_default_f16_cache_costs_1e_7_at_most(stories: Built) -> None:
    ids = list(range(1, 257))
    with edgepack.load(stories.path, backend="gguf") as model:
        exact = model.logits(ids)
    with edgepack.load(stories.path, backend="gguf", kv_cache="f16") as model:
        rounded = model.logits(ids)
    nmse = float(np.square(exact - rounded).sum() / np.square(exact).sum())
    assert 0 < nmse <= 1e-6


def test_every_backend_writes_the_same_greedy_text(demo_bundle: Built) -> None:
    texts = set()
    for backend in ALL:
        with edgepack.load(demo_bundle.path, variant=f"{backend}-f32") as model:
            texts.add(model.chat([{"role": "user", "content": "What is edgepack?"}], max_tokens=48).text)
    assert len(texts) == 1
    assert "edge" in texts.pop()


def test_a_rebuild_has_the_same_bytes(sharded: Built, sharded_llama: Path, tmp_path: Path) -> None:
    again = build(str(sharded_llama), Recipe(ALL, ("f32", "f16", "q8", "q4")), tmp_path / "again")
    assert again.id == sharded.id
    names = sorted(path.relative_to(sharded.path) for path in sharded.path.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again.path) for path in again.path.rglob("*") if path.is_file())
    _, mismatch, errors = filecmp.cmpfiles(sharded.path, again.path, [str(name) for name in names], shallow=False)
    assert (mismatch, errors) == ([], [])


def test_the_manifest_tells_the_whole_story(demo_bundle: Built) -> None:
    manifest = demo_bundle.manifest
    assert manifest.license.id == "MIT"
    assert "LICENSE" in {file.path for file in manifest.files}
    assert manifest.chat is not None
    assert manifest.chat.goldens
    assert {stop.text for stop in manifest.stops} >= {"<|im_end|>"}
    assert manifest.context.verified == manifest.context.trained == manifest.decoder.context
    assert str(demo_bundle.path.parent) not in (demo_bundle.path / "manifest.json").read_text()
    for variant in manifest.variants:
        assert (demo_bundle.path / "evidence" / f"{variant.id}.json").is_file()
        assert variant.self_test is not None
        assert any(token is not None for token in variant.self_test.top1)


def test_more_bits_lose_less(sharded: Built) -> None:
    lost = {each.id: each.proof.loss["text"] for each in sharded.manifest.variants if each.proof}
    for target, q8, q4 in (("gguf", "q8_0", "q4_k_m"), ("mlx", "8bit", "4bit_mixed"), ("onnx", "int8", "int4_mixed")):
        half, eight, four = (lost[f"{target}-{scheme}"] for scheme in ("f16", q8, q4))
        assert half.kl < eight.kl < four.kl
        assert 0 < four.kl_error < four.kl


def test_fallbacks_are_recorded(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "narrow", hidden=64, intermediate=176)
    built = build(str(source), Recipe(("gguf", "mlx"), ("q8",)), tmp_path / "out")
    for variant in built.manifest.variants:
        assert variant.quantization.fallbacks
        assert all("down" in fallback.tensor and fallback.reason for fallback in variant.quantization.fallbacks)


def test_an_f16_cache_is_built_in_where_a_target_can(sharded_llama: Path, tmp_path: Path) -> None:
    built = build(str(sharded_llama), Recipe(("gguf", "onnx"), ("f32", "q4"), kv_cache="f16"), tmp_path / "out")
    manifest = built.manifest
    assert manifest.schema.features == ["kv_cache", "loss"]
    assert manifest.producer.recipe["kv_cache"] == "f16"
    found = {variant.id: variant.kv_cache for variant in manifest.variants}
    assert found == {"gguf-f32": None, "gguf-q4_k_m": None, "onnx-f32-kv16": "f16", "onnx-int4_mixed-kv16": "f16"}
    figures = gates(built, "onnx-f32-kv16")
    assert figures["structure.nmse"] > 0
    assert 0 < figures["engine.nmse"] < 1e-5  # what the rounding of the cache costs
    assert gates(built, "onnx-int4_mixed-kv16")["structure.nmse"] == figures["structure.nmse"]
    with edgepack.load(built.path, variant="onnx-int4_mixed-kv16") as model:
        assert model.generate("hello", max_tokens=4).usage.completion_tokens
        assert model.setup.kv_cache == "f16"
    with pytest.raises(EngineMissingError, match="it offers a KV cache in f16, not in f32"):
        edgepack.load(built.path, variant="onnx-int4_mixed-kv16", kv_cache="f32")
    replayed = subprocess.run(
        [sys.executable, "-m", "edgepack", "verify", str(built.path), "--replay"], capture_output=True, text=True
    )
    assert replayed.returncode == 0, replayed.stdout


def test_a_q8_cache_is_built_in_and_older_readers_stop_at_it(sharded_llama: Path, tmp_path: Path) -> None:
    built = build(str(sharded_llama), Recipe(("gguf", "onnx"), ("f32", "q4"), kv_cache="q8"), tmp_path / "out")
    assert built.manifest.schema.features == ["kv_cache", "kv_cache_q8", "loss"]
    found = {variant.id: variant.kv_cache for variant in built.manifest.variants}
    assert found == {"gguf-f32": None, "gguf-q4_k_m": None, "onnx-f32-kv8": "q8", "onnx-int4_mixed-kv8": "q8"}
    figures = gates(built, "onnx-f32-kv8")
    assert 0 < figures["structure.nmse"] < 1e-6
    assert 1e-8 < figures["engine.nmse"] < 1e-2  # what the rounding of the cache costs
    with edgepack.load(built.path, variant="onnx-int4_mixed-kv8") as model:
        assert model.generate("hello", max_tokens=4).usage.completion_tokens
        assert model.setup.kv_cache == "q8"


# Wrong input


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_llama(tmp_path / "source")


def refuse(source: Path, error: type[Exception], match: str, recipe: Recipe | None = None) -> None:
    """A build must fail so, and leave nothing beside its source."""
    out = source.parent / "out"
    with pytest.raises(error, match=match):
        build(str(source), recipe or Recipe(("onnx",), ("q4",)), out)
    assert not out.exists()
    assert not list(source.parent.glob(".out*"))


def test_a_template_that_is_silent_is_sealed_without_alone(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}]{% endfor %}")
    refuse(source, SourceError, "does not print what a user says.*--no-chat")
    built = build(str(source), Recipe(("gguf",), ("f32",), no_chat=True), tmp_path / "plain.edgepack")
    assert built.manifest.chat is None
    assert built.manifest.producer.recipe["no_chat"] == 1
    assert not (built.path / "chat_template.jinja").exists()
    with edgepack.load(built.path, backend="gguf") as model:
        assert model.generate("Once", max_tokens=2).usage.completion_tokens == 2
        with pytest.raises(UsageError, match="no chat template"):
            model.chat([{"role": "user", "content": "Hi"}])


NUMPYS = """
import numpy, threadpoolctl
print(*(each["filepath"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"), sep="\\n")
"""


class Stages(Silent):
    """The stages of a build, and how many threads numpy's BLAS has in each. Where scipy is installed, numba loads
    scipy's as well, which nothing here uses."""

    def __init__(self) -> None:
        self.blas: dict[str, set[int]] = {}
        self._paths = subprocess.check_output([sys.executable, "-c", NUMPYS], text=True).splitlines()

    def stage(self, title: str, total: int) -> None:
        libraries = threadpoolctl.threadpool_info()
        self.blas[title] = {each["num_threads"] for each in libraries if each["filepath"] in self._paths}


def test_no_stage_has_threads_of_blas_that_spin(source: Path, tmp_path: Path) -> None:
    heard = Stages()
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        build(str(source), Recipe(("gguf",), ("q8",)), tmp_path / "out", progress=heard)
    assert "Running gguf-q8_0" in heard.blas
    assert set.union(*heard.blas.values()) == {1}


class Heard(Silent):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def warn(self, sentence: str) -> None:
        self.sentences.append(sentence)


def test_a_template_for_tools_is_sealed_and_used(source: Path, tmp_path: Path) -> None:
    """Through the bundle and its first opening, which replays the goldens of both templates."""
    plain = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant"
    tools = '{% if tools %}<tool_call> {"arguments": }{% endif %}' + plain
    named = [{"name": name, "template": one} for name, one in (("default", plain), ("tool_use", tools), ("rag", plain))]
    (source / "chat_template.jinja").unlink()
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    heard = Heard()
    built = build(str(source), Recipe(("gguf", "mlx", "onnx"), ("f32",)), tmp_path / "two.edgepack", progress=heard)
    assert [sentence for sentence in heard.sentences if "'rag'" in sentence]
    assert "chat_tool_use" in built.manifest.schema.features
    file = "additional_chat_templates/tool_use.jinja"
    for folder in (built.path, *(built.path / "variants" / name for name in ("mlx-f32", "onnx-f32"))):
        assert (folder / file).read_text() == tools
    tool = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    with edgepack.load(built.path, backend="gguf") as model:
        said = [{"role": "user", "content": "Hi"}]
        without = model.chat(said, max_tokens=1).usage.prompt_tokens
        assert model.chat(said, tools=[tool], max_tokens=1).usage.prompt_tokens > without + 5


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="neither a folder nor"):
        build(str(tmp_path / "nothing"), Recipe(ALL, ("q4",)), tmp_path / "out")


def test_a_truncated_weight_file(source: Path) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuse(source, SourceError, "model.safetensors")


def test_an_unknown_architecture(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))
    refuse(source, SourceError, "MambaForCausalLM")


def test_a_tokenizer_that_does_not_match(source: Path, tmp_path: Path) -> None:
    small = make_llama(tmp_path / "small", n_vocab=300)
    shutil.copy(source / "tokenizer.json", small / "tokenizer.json")
    refuse(small, SourceError, "300 rows")


def test_no_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    refuse(source, SourceError, "tokenizer.json")


@pytest.mark.parametrize(("targets", "quants"), [(("tflite",), ("q4",)), (("onnx",), ("q3",)), ((), ("q4",))])
def test_an_unknown_target_or_quantisation(targets: tuple[str, ...], quants: tuple[str, ...], source: Path) -> None:
    refuse(source, UsageError, "tflite|q3|nothing to build", Recipe(targets, quants))


@pytest.mark.parametrize(
    ("targets", "quants", "built"),
    [
        (ALL, ("Q8",), {"gguf-q8_0", "mlx-8bit", "onnx-int8"}),
        (("GGUF", "mlx"), ("gguf:Q5_K_M", "MLX:8bit"), {"gguf-q5_k_m", "mlx-8bit"}),
        (("gguf", "mlx"), ("q8", "gguf:f32"), {"gguf-q8_0", "gguf-f32", "mlx-8bit"}),
    ],
)
def test_a_quantisation_is_for_all_targets_or_for_one(
    targets: tuple[str, ...], quants: tuple[str, ...], built: set[str], source: Path
) -> None:
    config = json.loads((source / "config.json").read_text())
    decoder = families.describe(config)
    model = Model("model", decoder, "bf16", config, read_text(source, config, decoder))
    assert {request.id for request in Recipe(targets, quants).requests(model)} == built


@pytest.mark.parametrize(
    ("targets", "quants", "message"),
    [
        (("onnx",), ("gguf:q4",), "A quantisation is for gguf, which is not built"),
        (("gguf", "onnx"), ("gguf:q4",), "No quantisation is for onnx: gguf:q4"),
        (("gguf",), ("tflite:q4",), "No target is called 'tflite'"),
        (("gguf",), ("gguf:",), "gguf target has no quantization"),
        (("gguf",), ("gguf:8bit",), "8bit"),
    ],
)
def test_a_quantisation_of_a_target_that_gets_none(
    targets: tuple[str, ...], quants: tuple[str, ...], message: str, source: Path
) -> None:
    refuse(source, UsageError, message, Recipe(targets, quants))


def test_what_would_be_ignored_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-kl was given with --unproven"):
        Recipe(ALL, ("q4",), max_kl=1, unproven=True)
    with pytest.raises(UsageError, match="--date was given with --no-chat"):
        Recipe(ALL, ("q4",), date="passed", no_chat=True)


def test_what_a_chat_template_has_no_use_for_is_refused(source: Path) -> None:
    dated = Recipe(ALL, ("q4",), date="passed")
    refuse(source, UsageError, "--date was given, and the model has a chat template that prints no day", dated)
    (source / "chat_template.jinja").unlink()
    for recipe in (Recipe(ALL, ("q4",), date="2026-02-03"), Recipe(ALL, ("q4",), thinks=True)):
        refuse(source, UsageError, "was given, and the model has no chat template", recipe)


def test_a_kv_cache_that_no_target_has_built_in(source: Path) -> None:
    refuse(source, UsageError, "None of the targets gguf, mlx has", Recipe(("gguf", "mlx"), ("q4",), kv_cache="f16"))


def test_an_existing_output(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        build(str(source), Recipe(ALL, ("q4",)), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def fails(source: Path, recipe: Recipe, out: Path) -> VariantsFailedError:
    """Return what a build says in which variants fail."""
    with pytest.raises(VariantsFailedError) as raised:
        build(str(source), recipe, out)
    assert not list(out.parent.glob(f".{out.name}.*"))
    return raised.value


def test_a_failed_variant_costs_only_itself(source: Path, tmp_path: Path) -> None:
    error = fails(source, Recipe(ALL, ("f32", "q8"), max_kl=1e-6), tmp_path / "one.edgepack")
    assert list(error.missed) == ["gguf-q8_0", "mlx-8bit", "onnx-int8"]
    for variant, gates in error.missed.items():
        (gate,) = gates
        assert re.fullmatch(r"loss\.kl is [0-9.e-]+, the limit is <= 1e-06", gate)
        assert f"{variant} failed the proof: {gate}." in error.message
    assert error.built is not None
    assert [variant.id for variant in error.built.manifest.variants] == ["gguf-f32", "mlx-f32", "onnx-f32"]
    assert error.built.manifest.producer.recipe["max_kl"] == "1e-06"
    edgepack.open_bundle(error.built.path)
    assert not list(error.built.path.rglob("*int8*"))

    assert error.evidence == tmp_path / "one.failed"
    kept = {path.name: json.loads(path.read_text()) for path in error.evidence.iterdir()}
    assert sorted(kept) == ["gguf-q8_0.json", "mlx-8bit.json", "onnx-int8.json"]
    for evidence in kept.values():
        assert evidence["missed"] == list(error.missed[evidence["variant"]])
        assert {gate["name"] for gate in evidence["gates"]} >= {"structure.nmse", "engine.nmse", "loss.kl"}
        assert evidence["tensors"]


def test_where_nothing_holds_there_is_evidence_and_no_bundle(source: Path, tmp_path: Path) -> None:
    error = fails(source, Recipe(("onnx",), ("q4",), max_kl=0), tmp_path / "out")
    assert error.built is None
    assert "Nothing is sealed." in error.message
    assert [path.name for path in tmp_path.iterdir() if path != source] == ["out.failed"]


def test_the_evidence_of_failures_is_that_of_the_last_build(source: Path, tmp_path: Path) -> None:
    fails(source, Recipe(("onnx", "mlx"), ("q4",), max_kl=0), tmp_path / "out")
    fails(source, Recipe(("onnx",), ("q8",), max_kl=0), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out.failed").iterdir()] == ["onnx-int8.json"]
    build(str(source), Recipe(("onnx",), ("q8",)), tmp_path / "out")
    assert not (tmp_path / "out.failed").exists()


def test_a_folder_that_is_no_evidence_is_not_touched(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out.failed" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"out\.failed exists already"):
        build(str(source), Recipe(("onnx",), ("q8",)), tmp_path / "out")
    assert mine.read_text() == "mine"


def test_an_engine_that_crashes_costs_only_its_variants(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = child.run

    def crash(job: child.Job) -> str:
        if job.runtime == "mlx":
            raise EngineError("The engine of mlx died of SIGSEGV.")
        return run(job)

    monkeypatch.setattr(child, "run", crash)
    error = fails(source, Recipe(ALL, ("q8",)), tmp_path / "out")
    assert error.missed == {"mlx-8bit": ("The engine of mlx died of SIGSEGV",) * 2}  # for the slice and for the whole
    assert error.built is not None
    assert [variant.id for variant in error.built.manifest.variants] == ["gguf-q8_0", "onnx-int8"]


def test_a_command_shows_what_it_sealed_and_ends_with_one(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgepack", "build", str(source), "-t", "onnx", "-q", "f32", "-q", "q4"]
    command += ["--max-kl", "0.000001", "-o", str(tmp_path / "out")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "onnx-f32" in said.stdout
    assert "error: onnx-int4_mixed failed the proof: loss.kl is" in said.stderr
    assert str(tmp_path / "out.failed") in said.stderr


def test_a_command_reports_what_it_sealed_and_what_failed_in_one_document(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgepack", "build", str(source), "-q", "ONNX:f32", "-q", "onnx:q4", "--json"]
    command += ["--max-kl", "0.000001", "-o", str(tmp_path / "out")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(said.stdout)
    assert said.returncode == report["error"]["exit_code"] == 1
    assert report["error"]["type"] == "VariantsFailedError"
    assert [variant["id"] for variant in report["variants"]] == ["onnx-f32"]
    again = [*command, "--force"]
    assert json.loads(subprocess.run(again, capture_output=True, text=True, check=False).stdout)["id"] == report["id"]
    refused = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert refused["error"]["type"] == "OutputExistsError"
    assert "--force" in refused["error"]["hint"]


@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_a_limit_of_the_loss_is_a_number_of_nats(limit: float) -> None:
    with pytest.raises(UsageError, match="nats"):
        Recipe(ALL, ("q4",), max_kl=limit)


def test_a_missing_engine_needs_the_word_unproven(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Support((), reason="onnxruntime is not installed.", install="pip install 'edgepack[onnx]'")
    probe = probing.probe
    monkeypatch.setattr(
        probing, "probe", lambda name, machine, **asked: absent if name == "onnx" else probe(name, machine)
    )
    refuse(source, EngineMissingError, r"onnxruntime is not installed.*edgepack\[onnx\].*--unproven")
    heard, runs = Stages(), []
    monkeypatch.setattr(child, "run", lambda job: runs.append(job))
    recipe = Recipe(("gguf", "onnx"), ("q8",), unproven=True)
    built = build(str(source), recipe, tmp_path / "unproven", progress=heard)
    assert [variant.proof for variant in built.manifest.variants] == [None, None]
    assert [variant.self_test for variant in built.manifest.variants] == [None, None]
    assert (built.manifest.context.verified, built.manifest.producer.recipe["unproven"]) == (0, 1)
    assert not runs
    assert list(heard.blas) == ["Writing gguf-q8_0, onnx-int8"]
    evidence = json.loads((built.path / "evidence" / "onnx-int8.json").read_text())
    assert (evidence["gates"], "tensors" in evidence) == ([], False)
    shown = subprocess.run(
        [sys.executable, "-m", "edgepack", "inspect", str(built.path)], capture_output=True, text=True, check=True
    )
    assert "UNPROVEN" in shown.stdout


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_build_that_is_stopped_leaves_no_bundle(number: signal.Signals, tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source", hidden=512, layers=8, intermediate=2048)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edgepack", "build", str(source), "--out", str(out)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not list(tmp_path.glob(".out.*")):
        time.sleep(0.01)  # until the build has made its folder
    child.send_signal(number)
    _, said = child.communicate()
    assert child.returncode == {signal.SIGKILL: -9}.get(number, 130), said
    assert not out.exists()
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert not list(tmp_path.glob(".out.*"))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs a small file system of its own")
def test_a_full_disk_is_a_sentence(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this system allows no mount")
    try:
        command = [sys.executable, "-m", "edgepack", "build", str(source), "-t", "gguf", "--out", str(disk / "out")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert "error:" in done.stderr
        assert "Traceback" not in done.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
