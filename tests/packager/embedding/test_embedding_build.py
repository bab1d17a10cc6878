"""A checkpoint that embeds becomes a bundle that embeds, the same on every engine, and says so where it does not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import golden_models
import msgspec
import numpy as np
import pytest
from embedding_models import LIMITS, MODELS, PROMPTS, QWEN3, TEXTS, WITH_GELU, hidden_size, make_embedding
from text_side import write_json
from variants import nmse

import edgepack
from edgepack import runtime
from edgepack.bundle.decoder import Attention, arranged
from edgepack.bundle.embedding import Embedding
from edgepack.bundle.files import Bundle
from edgepack.device.hardware import detect
from edgepack.errors import (
    BundleDamagedError,
    EngineError,
    ProofError,
    ReplayError,
    SourceError,
    UnsupportedModelError,
    UsageError,
)
from edgepack.measuring.replay import replay_variant
from edgepack.pooling import matrices, pooled
from edgepack.runtime import Options
from edgepack.text.opening import text_side
from edgepack.text.replay import replay_text
from edgepack_packager import embedding, families, reference
from edgepack_packager.build import Built, build
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.recipe import Recipe
from edgepack_packager.source import Source, needed
from edgepack_packager.text import embedded, sentence_transformers

GOLDEN = Path(__file__).parents[2] / "golden" / "embeddings.npz"
BACKENDS = ("gguf", "mlx", "onnx")


@pytest.fixture(scope="module")
def golden() -> Iterator[Mapping[str, Any]]:
    with np.load(GOLDEN) as found:
        yield dict(found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_transformers(
    name: str,
    backend: str,
    sources: Mapping[str, Path],
    bundles: Mapping[str, Built],
    golden: Mapping[str, Any],
) -> None:
    assert golden[f"{name}.weights"] == golden_models.digest(sources[name]), "run tests/golden/make_embeddings.py"
    limit = (WITH_GELU if name == "gemma" else LIMITS)[backend]
    with edgepack.load(bundles[name].path, backend, variant=f"{backend}-f32", kv_cache="f32") as model:
        for prompt in ("", *(bundles[name].manifest.embedding or none()).prompts):
            found = model.embed(TEXTS, prompt)
            assert found.dtype == np.float32
            assert nmse(found, golden[f"{name}.{prompt}"]) <= limit, prompt


def none() -> Embedding:
    raise AssertionError("it does not embed")


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_transformers(name: str, sources: Mapping[str, Path], golden: Mapping[str, Any]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(sources[name] / "tokenizer.json"))
    said, dense = sentence_transformers.read(sources[name], hidden_size(sources[name]), ())
    with open_checkpoint(sources[name]) as checkpoint:
        weights = families.open_model(checkpoint, headless=True)
        vectors = [pooled(said, reference.hidden(weights, tokenizer.encode(text).ids)[0], dense) for text in TEXTS]
    assert nmse(np.stack(vectors), golden[f"{name}."]) <= 1e-10


def test_the_manifest_says_what_is_made_of_a_text(bundles: Mapping[str, Built]) -> None:
    manifest = bundles["last"].manifest
    assert "embedding" in manifest.schema.features
    assert manifest.decoder.headless
    assert manifest.chat is None
    found = manifest.embedding or none()
    assert (found.pooling, found.size, found.normalized, found.ends) == ("last", 64, True, [0])
    assert (found.prompts, found.default_prompt, found.similarity) == (PROMPTS, None, "cosine")
    assert {probe.prompt for probe in found.probes} == {"", *PROMPTS}
    assert all(probe.ids[-1] == 0 for probe in found.probes)
    for variant in manifest.variants:
        assert variant.self_test is None
        assert variant.proof is not None
        assert not variant.proof.loss
        near = variant.proof.vectors
        assert near
        assert near.texts == 8
        assert near.least <= near.cosine
        least = {"f32": 0.999999, "q8": 0.999}.get(variant.quantization.asked, 0.9)
        assert near.cosine > least, variant.id


def test_payloads_have_no_head(bundles: Mapping[str, Built]) -> None:
    import onnx

    variants = bundles["last"].path / "variants"
    graph = onnx.load(variants / "onnx-f32" / "model.onnx", load_external_data=False).graph
    assert [output.name for output in graph.output][:1] == ["states"]
    assert not any(tensor.name.startswith("head") for tensor in graph.initializer)
    assert not (variants / "onnx-f32" / "genai_config.json").exists()
    from gguf import GGUFReader

    found = GGUFReader(variants / "gguf-f32" / "model.gguf")
    assert not any(tensor.name == "output.weight" for tensor in found.tensors)
    fields = {name: found.fields[name].contents() for name in ("qwen3.pooling_type", "tokenizer.ggml.add_eos_token")}
    assert fields == {"qwen3.pooling_type": 3, "tokenizer.ggml.add_eos_token": True}
    assert found.fields["tokenizer.ggml.eos_token_id"].contents() == 0


@pytest.mark.parametrize("name", ["last", "gemma"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_device_repeats_its_vector(backend: str, name: str, bundles: Mapping[str, Built]) -> None:
    bundle = bundles[name].open()
    for variant in bundle.manifest.variants:
        if variant.runtime == backend:
            found = replay_variant(bundle, variant, detect())
            assert (found.verdict, found.checked) == ("same", 1), found.reason
    texts = {each.name: each for each in replay_text(bundle.manifest, *text_side(bundle))}
    assert texts["texts"].verdict == "same"
    assert texts["texts"].checked == len((bundle.manifest.embedding or none()).probes)


def planted(bundle: Bundle, **changes: Any) -> Bundle:
    """Return the bundle with another embedding in its manifest."""
    embedding = msgspec.structs.replace(bundle.manifest.embedding or none(), **changes)
    return dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, embedding=embedding))


@pytest.mark.parametrize("changes", [{"pooling": "mean"}, {"pooling": "first"}])
def test_another_pooling_is_heard(changes: dict[str, Any], bundles: Mapping[str, Built]) -> None:
    bundle = planted(bundles["last"].open(), **changes)
    for variant in bundle.manifest.variants:
        assert replay_variant(bundle, variant, detect()).verdict == "differs", variant.id


@pytest.mark.parametrize("changes", [{"ends": []}, {"ends": [0, 0]}, {"prompts": {"query": "", "document": ""}}])
def test_another_end_or_prompt_is_heard(changes: dict[str, Any], bundles: Mapping[str, Built]) -> None:
    bundle = planted(bundles["last"].open(), **changes)
    found = {each.name: each.verdict for each in replay_text(bundle.manifest, *text_side(bundle))}
    assert found == {"tokenizer": "same", "texts": "differs"}


def test_faults_move_a_vector(bundles: Mapping[str, Built], golden: Mapping[str, Any]) -> None:
    """What the golden vectors would hear: each fault is far beyond any limit that they are held to."""
    with edgepack.load(bundles["last"].path, "mlx", variant="mlx-f32", kv_cache="f32") as model:
        right = model.embed(TEXTS, "query")
        embedding = model.manifest.embedding or none()
        for fault in ({"ends": []}, {"pooling": "mean"}, {"normalized": False}, {"prompts": {"query": ""}}):
            model._manifest = msgspec.structs.replace(
                model.manifest, embedding=msgspec.structs.replace(embedding, **fault)
            )
            assert nmse(model.embed(TEXTS, "query"), golden["last.query"]) > 1e-3, fault
    assert nmse(right, golden["last.query"]) <= 1e-10


def test_a_probe_with_other_ids_than_the_library_ends_the_build(
    sources: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgets = lambda tokenizer, embedding, text, prompt: tokenizer.encode(prompt + text)  # noqa: E731
    monkeypatch.setattr(embedded, "ids_of", forgets)
    with pytest.raises(ProofError, match="at its end in the place of"):
        build(str(sources["last"]), Recipe(("mlx",), ("f32",)), tmp_path / "out.edgepack")


def test_an_isolated_engine_gives_the_same_vectors(bundles: Mapping[str, Built]) -> None:
    long = " ".join(TEXTS) * 3  # more than a step's tokens
    for backend, name in product(BACKENDS, ("mean", "gemma")):
        found = []
        for isolate in (False, True):
            with edgepack.load(bundles[name].path, backend, isolate=isolate, variant=f"{backend}-f32") as model:
                found.append(model.embed([*TEXTS, long]))
        assert np.array_equal(*found), (backend, name)


def test_texts_do_not_depend_on_each_other(bundles: Mapping[str, Built]) -> None:
    with edgepack.load(bundles["last"].path, "onnx", variant="onnx-int4_mixed") as model:
        together, alone = model.embed(TEXTS), [model.embed(text)[0] for text in reversed(TEXTS)]
    assert np.array_equal(together, np.stack(alone[::-1]))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"calibrate": "built-in"}, "--calibrate"),
    ({"quality": "calibrated"}, "--quality calibrated"),
    ({"draft": "demo"}, "--draft"),
    ({"max_kl": 0.1}, "--max-kl"),
    ({"receipt": "built-in"}, "--receipt"),
    ({"thinks": True}, "--thinks"),
    ({"quants": ("4.5bits",)}, "a goal for the bits"),
]


@pytest.mark.parametrize(("asked", "said"), REFUSED)
def test_what_measures_next_tokens_is_refused(
    asked: dict[str, Any], said: str, sources: Mapping[str, Path], tmp_path: Path
) -> None:
    recipe = Recipe(**{"targets": ("mlx",), "quants": ("q4",), **asked})
    with pytest.raises(UsageError, match=f"^{said} was given for a model that embeds"):
        build(str(sources["last"]), recipe, tmp_path / "out.edgepack")


def without_modules(folder: Path) -> None:
    (folder / "modules.json").unlink()


def own_code(folder: Path) -> None:
    write_json(folder / "config.json", {**QWEN3, "auto_map": {"AutoModel": "modeling.Model"}})


def not_causal(folder: Path) -> None:
    write_json(folder / "config.json", {**QWEN3, "is_causal": False})


def named_prompt(folder: Path) -> None:
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "<|im_start|>"}})


SOURCES: list[tuple[Callable[[Path], None], str]] = [
    (without_modules, "Qwen3Model, which has no head, and modules.json is not there"),
    (own_code, "auto_map"),
    (not_causal, "is_causal is False"),
    (named_prompt, "names the token '<|im_start|>'"),
]


@pytest.mark.parametrize(("change", "said"), SOURCES)
def test_sources_that_are_not_built(change: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    change(make_embedding(tmp_path / "source"))
    with pytest.raises(UnsupportedModelError) as raised:
        build(str(tmp_path / "source"), Recipe(("mlx",), ("f32",)), tmp_path / "out.edgepack")
    assert said in str(raised.value)


def test_no_more_tokens_than_the_source_allows(tmp_path: Path) -> None:
    folder = make_embedding(tmp_path / "source")
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False})
    with pytest.raises(UsageError, match="allows 40 tokens"):
        build(str(folder), Recipe(("mlx",), ("f32",), context=41), tmp_path / "out.edgepack")
    built = build(str(folder), Recipe(("mlx",), ("f32",)), tmp_path / "out.edgepack")
    assert built.manifest.context.profile == 40


def test_a_first_opening_hears_another_end(bundles: Mapping[str, Built], tmp_path: Path) -> None:
    from shutil import copytree

    copy = copytree(bundles["last"].path, tmp_path / "copy.edgepack")
    said = json.loads((copy / "manifest.json").read_text())
    said["embedding"]["ends"] = [2]
    (copy / "manifest.json").write_text(json.dumps(said, indent=2) + "\n")
    with pytest.raises(ReplayError, match="The texts of"):
        edgepack.load(copy)


def test_a_damaged_manifest_is_refused(bundles: Mapping[str, Built]) -> None:
    from edgepack.bundle import manifest as manifests

    whole = bundles["last"].manifest
    embedding = whole.embedding or none()
    replace = msgspec.structs.replace
    for damaged, said in (
        (replace(whole, embedding=None), "embeds where it has no head"),
        (replace(whole, decoder=replace(whole.decoder, headless=msgspec.UNSET)), "embeds where it has no head"),
        (replace(whole, embedding=replace(embedding, size=32)), "32 elements are made of 64"),
        (replace(whole, embedding=replace(embedding, default_prompt="no")), "none of the prompts"),
        (replace(whole, decoder=replace(whole.decoder, tied=False)), "one that is not the embedding"),
    ):
        with pytest.raises(BundleDamagedError, match=said):
            manifests.decode(manifests.encode(damaged))


def test_the_tokenizer_is_the_bundles(bundles: Mapping[str, Built], sources: Mapping[str, Path]) -> None:
    """A text of a user is text: a name of a token in it is none, where the library would make a token of it."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(sources["last"] / "tokenizer.json"))
    with edgepack.load(bundles["last"].path, "mlx", variant="mlx-f32") as model:
        forged, plain = "The day<|endoftext|>", "The day"
        assert library.encode(forged).ids == [*library.encode(plain).ids, 0]
        assert not np.array_equal(model.embed(forged), model.embed(plain))


def test_names_are_read_either_way(tmp_path: Path) -> None:
    """A checkpoint of the body alone names its tensors without ``model.``; both are the same weights."""
    whole = {**QWEN3, "architectures": ["Qwen3ForCausalLM"]}
    folders = make_embedding(tmp_path / "bare"), make_embedding(tmp_path / "whole", fields=whole)
    found = []
    for folder in folders:
        with open_checkpoint(folder) as checkpoint:
            weights = families.open_model(checkpoint, headless=True)
            found.append(reference.hidden(weights, [5, 6, 7]))
    assert np.array_equal(*found)


def test_a_model_that_writes_does_not_embed(demo_bundle: Built) -> None:
    with edgepack.load(demo_bundle.path) as model, pytest.raises(UsageError, match="writes texts"):
        model.embed("text")


def test_a_model_that_embeds_does_not_draft(sources: Mapping[str, Path], tmp_path: Path) -> None:
    from models import make_llama

    big = make_llama(tmp_path / "big")
    with pytest.raises(SourceError, match="cannot draft: it embeds"):
        build(str(big), Recipe(("mlx",), ("f32",), draft=str(sources["last"])), tmp_path / "out.edgepack")


def test_what_is_fetched_from_a_repository() -> None:
    names = {
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "onnx/model.onnx",
        "2_Normalize/config.json",
        "a/b.md",
    }
    names |= {"config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/deep/config.json"}
    fetched = needed.text(needed.seen(names))
    assert set(fetched) == names - {"onnx/model.onnx", "a/b.md", "1_Pooling/deep/config.json"}


def test_a_model_that_embeds_is_not_exported(sources: Mapping[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"^--exporter was given for a model that embeds"):
        embedding.refuse_export(Source(sources["last"], "last"))


Sees = Callable[[Attention], dict[str, Any]]


@pytest.mark.parametrize(
    "sees",
    [
        lambda mixer: {"bidirectional": msgspec.UNSET},
        lambda mixer: {"window": None},
        lambda mixer: {"window": mixer.window and mixer.window - 1},
        lambda mixer: {"window": mixer.window and mixer.window + 1},
    ],
)
def test_another_sight_to_both_sides_moves_a_vector(
    sees: Sees, sources: Mapping[str, Path], golden: Mapping[str, Any]
) -> None:
    from tokenizers import Tokenizer

    folder, replace = sources["gemma"], msgspec.structs.replace
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    said, dense = sentence_transformers.read(folder, hidden_size(folder), ())
    with open_checkpoint(folder) as checkpoint:
        weights = families.open_model(checkpoint, headless=True)
        right = weights.decoder
        kinds = [replace(kind, mixer=replace(kind.mixer, **sees(kind.mixer))) for kind in right.layers]
        found = []
        for decoder in (right, replace(right, **arranged(kinds))):
            weights.decoder = decoder
            states = [reference.hidden(weights, tokenizer.encode(text).ids)[0] for text in TEXTS]
            found.append(np.stack([pooled(said, one, dense) for one in states]))
    assert nmse(found[0], golden["gemma."]) <= 1e-10
    assert nmse(found[1], golden["gemma."]) > 1e-6


def test_an_engine_with_causal_attention_does_not_open_another(bundles: Mapping[str, Built]) -> None:
    bundle, replace = bundles["last"].open(), msgspec.structs.replace
    decoder = bundle.manifest.decoder
    layers = [replace(kind, mixer=replace(kind.mixer, bidirectional=True)) for kind in decoder.layers]
    both = replace(decoder, **arranged(layers))
    for name, said in (("gguf", "attention to what comes after"), ("onnx", "asks for the operators of")):
        with pytest.raises(EngineError, match=said):
            runtime.find(name).open(bundle.variant_path(f"{name}-f32"), both, Options(64, 1, "f32"))


def test_what_quantisation_costs_of_a_model_that_sees_both_sides(bundles: Mapping[str, Built]) -> None:
    least = {"f32": 0.999999, "q8": 0.99, "q4": 0.8}
    found = {variant.id: variant for variant in bundles["gemma"].manifest.variants}
    assert found.keys() >= {"gguf-q8_0", "gguf-q4_k_m", "onnx-int8", "onnx-int4_mixed", "mlx-8bit", "mlx-4bit_mixed"}
    for name, variant in found.items():
        assert variant.proof is not None
        assert variant.proof.vectors is not None
        assert variant.proof.vectors.cosine > least[variant.quantization.asked], name


def test_payloads_keep_no_keys(bundles: Mapping[str, Built], sources: Mapping[str, Path], tmp_path: Path) -> None:
    import onnx
    from gguf import GGUFReader

    manifest, variants = bundles["gemma"].manifest, bundles["gemma"].path / "variants"
    assert manifest.context.kv_values_per_token == 0
    graph = onnx.load(variants / "onnx-f32" / "model.onnx", load_external_data=False)
    assert {each.domain: each.version for each in graph.opset_import} == {"": 23, "com.microsoft": 1}
    assert [each.name for each in graph.graph.input] == ["input_ids", "attention_mask", "states_start"]
    assert [each.name for each in graph.graph.output] == ["states"]
    fields = GGUFReader(variants / "gguf-f32" / "model.gguf").fields
    prefix = "gemma-embedding"
    assert fields["general.architecture"].contents() == prefix
    # What llama.cpp's converter writes: the window of config.json, and the pooling.
    said = {name: fields[f"{prefix}.{name}"].contents() for name in ("attention.sliding_window", "pooling_type")}
    assert said == {"attention.sliding_window": 24, "pooling_type": 1}
    with pytest.raises(UsageError, match=r"A KV cache of f16 was asked for, and this model keeps none"):
        build(str(sources["gemma"]), Recipe(("onnx",), ("f32",), kv_cache="f16"), tmp_path / "out.edgepack")


def test_padded_texts_of_a_batch_do_not_see_each_other(bundles: Mapping[str, Built]) -> None:
    """What an application that runs the graph by itself relies on: the mask hides what pads a shorter text."""
    import onnxruntime

    path = bundles["gemma"].path / "variants" / "onnx-f32" / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(1, 384, (3, 60))
    lengths = (60, 31, 7)
    for padded in (slice(None), slice(None, None, -1)):  # on the right, on the left
        mask = np.array([[place < length for place in range(60)] for length in lengths])[:, padded].astype(np.int64)
        (together,) = session.run(["states"], {"input_ids": ids, "attention_mask": mask})
        for row, length in enumerate(lengths):
            kept = mask[row].astype(bool)
            alone = {"input_ids": ids[row : row + 1, kept], "attention_mask": np.ones((1, length), np.int64)}
            assert nmse(together[row, kept], session.run(["states"], alone)[0][0]) <= 1e-10


def test_damaged_matrices_are_refused(bundles: Mapping[str, Built]) -> None:
    bundle = bundles["gemma"].open()
    said = bundle.manifest.embedding or none()
    whole = bundle.read("dense.f32")
    assert [each.shape for each in matrices(said, whole)] == [(160, 96), (64, 160)]
    with pytest.raises(BundleDamagedError, match=r"dense.f32 of the bundle has"):
        matrices(said, whole[:-4])
