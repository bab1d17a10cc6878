"""Sources without a network: the catalogue, what a name stands for, which files are needed, room on the disks."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from models import make_llama, shapes
from msgspec import UNSET
from msgspec.structs import replace

from edgepack.bundle.decoder import Attention, Layer
from edgepack.cli import main
from edgepack.errors import BuildError, ExtraMissingError, SourceError
from edgepack_packager import families, source
from edgepack_packager.fit import element_type
from edgepack_packager.licence import read_licence
from edgepack_packager.licence.terms import TERMS
from edgepack_packager.source import catalog, needed, space
from edgepack_packager.source.space import Need
from edgepack_packager.text.files import CARRIED


@pytest.fixture
def no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client cannot be imported."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "edgepack_packager.source.hub", raising=False)
    monkeypatch.delattr(source, "hub", raising=False)


ALIASES = {entry.alias: entry for entry in catalog.entries()}


# The catalogue


def test_its_names_are_told_apart() -> None:
    assert len(ALIASES) == len(catalog.entries())
    assert len({entry.repository.lower() for entry in catalog.entries()}) == len(ALIASES)
    assert source.DEMO not in ALIASES


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("phi-3.5-mini", "microsoft/Phi-3.5-mini-instruct"),
        ("Phi-3.5-mini-instruct", "microsoft/Phi-3.5-mini-instruct"),
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct"),
        ("Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
        ("llama-3.2-1b-base", "meta-llama/Llama-3.2-1B"),
        ("gemma-3-270m-it", "google/gemma-3-270m-it"),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
    ],
)
def test_an_alias_or_a_repository_without_its_owner(name: str, repository: str) -> None:
    entry = catalog.find(name)
    assert entry is not None
    assert entry.repository == repository


def test_a_base_and_its_instruct_model_have_the_same_size_and_terms() -> None:
    pairs = [(entry, ALIASES[f"{name}-base"]) for name, entry in ALIASES.items() if f"{name}-base" in ALIASES]
    assert len(pairs) == 15
    for tuned, base in pairs:
        assert (tuned.parameters, tuned.licence, tuned.gated) == (base.parameters, base.licence, base.gated)


def test_every_model_is_small_and_its_terms_decide_whether_it_is_gated() -> None:
    for entry in catalog.entries():
        assert 1e8 < entry.parameters < 1e10
        # The other licences of their own are accepted by use.
        assert entry.gated == entry.licence.startswith(("LicenseRef-gemma", "LicenseRef-llama"))
        assert entry.licence in TERMS


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for width in ("60", "80", "160"):
        monkeypatch.setenv("COLUMNS", width)
        assert main(["models"]) == 0
        rows, _, _ = capsys.readouterr().out.partition("\n\n")
        assert max(map(len, rows.splitlines())) <= max(int(width), 80)
        assert len(rows.splitlines()) == 1 + len(ALIASES)
        for row, entry in zip(rows.splitlines()[1:], catalog.entries(), strict=True):
            assert row.split()[0] == entry.alias
            assert f" {entry.licence.removeprefix('LicenseRef-')}" in row
            assert row.rstrip().endswith(entry.repository) == (width == "160")
    assert main(["models", "--json"]) == 0
    (listed,) = [each for each in json.loads(capsys.readouterr().out)["models"] if each["alias"] == "gemma-2-2b"]
    assert listed["repository"] == "google/gemma-2-2b-it"
    assert listed["gated"] is True


def test_the_catalogue_carries_the_sizes_of_every_model() -> None:
    assert set(catalog.configs()) == set(ALIASES)
    for alias, entry in ALIASES.items():
        assert families.describe(catalog.configs()[alias].config).n_parameters == entry.parameters


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The builds of the catalogue."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return import_module("catalogue")


def test_the_benchmark_of_the_catalogue_has_a_config_for_every_model(benchmark: ModuleType) -> None:
    """One that a checkpoint can be made of, alike but for what a class fills in."""
    for alias, entry in ALIASES.items():
        if alias.removesuffix("-base") in benchmark.MODELS:
            continue
        config, carried = benchmark.carried_config(alias), catalog.configs()[alias].config
        assert families.describe(config) == families.describe(carried), alias
        stored = {name: shape for name, shape in shapes(config).items() if not _unread(name, config)}
        assert sum(math.prod(shape) for shape in stored.values()) == entry.parameters, alias


def test_the_benchmark_of_the_catalogue_keeps_every_kind_of_layer(benchmark: ModuleType) -> None:
    for alias in ALIASES:
        config = benchmark.carried_config(alias)
        whole = families.describe(config)
        short = families.describe(benchmark.cut(config, benchmark.kept_layers(whole)))
        assert {*map(_kind, short.kinds)} == {*map(_kind, whole.kinds)}, alias
        assert short.n_layers <= 12


def _kind(layer: Layer) -> Layer:
    """The same for all layers that read the keys of another."""
    shares = isinstance(layer.mixer, Attention) and layer.mixer.kv_layer is not UNSET
    return replace(layer, mixer=replace(layer.mixer, kv_layer=0)) if shares else layer


def _unread(name: str, config: Mapping[str, Any]) -> bool:
    """Say whether a layer that reads the keys of another stores some of its own."""
    own = re.match(r"model\.layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm)", name)
    shared = config.get("num_kv_shared_layers", 0)
    return own is not None and int(own[1]) >= config["num_hidden_layers"] - shared


@pytest.mark.parametrize("name", ["qwen3-0.6b", "Qwen3-0.6B", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B"])
def test_a_config_that_is_carried_needs_no_network(name: str, no_client: None) -> None:
    assert source.carried(name)
    assert source.read_config(name)["num_hidden_layers"] in (16, 28)


@pytest.mark.parametrize("name", ["qwen3-0.6b@main", "owner/name"])
def test_a_revision_and_other_models_are_asked_for(name: str, no_client: None) -> None:
    assert source.carried(name) is None
    with pytest.raises(ExtraMissingError, match="huggingface_hub"):
        source.read_config(name)


def test_fit_needs_no_network_for_an_alias(no_client: None, capsys: pytest.CaptureFixture[str]) -> None:
    fits(sorted(ALIASES)[::6], capsys)
    assert main(["fit", "llama-3.2-1b", "--device", "pi5-8gb"]) == 0
    assert "carries of meta-llama/Llama-3.2-1B-Instruct" in capsys.readouterr().out


@pytest.mark.hostile
def test_fit_needs_it_for_none(
    no_client: None, capsys: pytest.CaptureFixture[str], portion: Callable[[int], int]
) -> None:
    fits(sorted(ALIASES)[: portion(len(ALIASES))], capsys)


def fits(aliases: Iterable[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Assert that what is carried of aliases is enough for ``edgepack fit``."""
    for alias in aliases:
        main(["fit", alias, "--device", "mac-32gb", "--json"])
        report = json.loads(capsys.readouterr().out)
        assert (report["fits"], report["parameters"]) == (True, ALIASES[alias].parameters)


@pytest.mark.shared
def test_what_is_carried_says_what_the_published_files_say(shared: Path) -> None:
    for path in (shared / "configs").glob("*.json"):
        if (found := catalog.carried(path.stem)) is None:  # a config of another model of the family
            continue
        config = json.loads(path.read_text())
        for context in (None, 4096):
            assert families.describe(found[1].config, context) == families.describe(config, context), path.name
        assert element_type(found[1].config) == element_type(config)


# Names


def test_a_folder_comes_before_an_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_llama(tmp_path / "phi-3.5-mini")
    make_llama(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    for name in ("phi-3.5-mini", "owner/name"):
        found = source.find(name)
        assert (found.folder, found.repository, found.revision) == (Path(name), None, None)
        assert source.read_config(name)["hidden_size"] == 64


def test_a_folder_is_called_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_llama(tmp_path / "mine"))
    assert source.find(".").name == "mine"


def test_the_demo_ships_with_edgepack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_llama(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert source.find("demo").folder != Path("demo")
    assert source.read_config("demo")["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phi-3.5-min", r"phi-3.5-min. is neither .* Did you mean phi-3.5-mini"),
        ("Gemma3-1b", r"Did you mean gemma-3-1b"),
        ("xyzzy", r"neither a folder nor a model of the catalogue.*edgepack models.*OWNER/NAME"),
        ("./owner", r"neither a folder"),
        ("../name", r"neither a folder"),
        ("~/models/llama", r"neither a folder"),
        ("a/b/c", r"neither a folder"),
        ("owner/na me", r"neither a folder"),
        ("https://huggingface.co/owner/name/tree/main", r"is an address, not a name.*repository: owner/name$"),
        ("owner/name@", r"no revision after the @"),
        ("phi-3.5-mini@", r"no revision after the @"),
        ("", r"has no config"),
    ],
)
def test_a_name_that_stands_for_nothing(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message):
        source.find(name)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no config\.json.*whole"):
        source.find(str(tmp_path))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def snapshot(folder: Path, model: str) -> Path:
    """A folder as the hub's cache has it, its files links."""
    made, at = make_llama(folder / "made"), folder / "hub" / model
    (at / "blobs").mkdir(parents=True)
    (at / "snapshots" / COMMIT).mkdir(parents=True)
    for file in made.iterdir():
        file.rename(at / "blobs" / file.name)
        (at / "snapshots" / COMMIT / file.name).symlink_to(f"../../blobs/{file.name}")
    return at / "snapshots" / COMMIT


@pytest.mark.parametrize(("model", "repository"), [("models--acme--Tiny-1M", "acme/Tiny-1M"), ("models--gpt2", "gpt2")])
def test_a_folder_of_the_hubs_cache_says_where_it_came_from(model: str, repository: str, tmp_path: Path) -> None:
    folder = snapshot(tmp_path, model)
    link = tmp_path / "my model"
    link.symlink_to(folder)
    for given in (f"{folder}/", link, f"{folder}/."):
        found = source.find(str(given))
        assert (found.name, found.repository, found.revision) == (repository.rpartition("/")[2], repository, COMMIT)
        source.fetch_text(found)  # nothing is asked of the hub
    with pytest.raises(SourceError) as raised:
        source.find(str(folder.parent.parent))
    assert str(folder) in (raised.value.hint or "")


@pytest.mark.parametrize("name", ["models--a--b--c", "datasets--a--b", "model"])
def test_no_other_folder_does(name: str, tmp_path: Path) -> None:
    found = source.find(str(snapshot(tmp_path, name)))
    assert (found.name, found.repository, found.revision) == (COMMIT, None, None)


@pytest.mark.parametrize(
    ("file", "message", "hint"),
    [
        ("model.safetensors", "is a file, not a folder", "Give its folder: {folder}"),
        ("config.json", "is a file, not a folder", "Give its folder: {folder}"),
        ("Model-Q4_K_M.GGUF", "is empty", "Fetch the file again"),
    ],
)
def test_a_file_in_the_place_of_a_folder(file: str, message: str, hint: str, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model")
    (folder / file).touch()
    with pytest.raises(SourceError, match=message) as raised:
        source.find(str(folder / file))
    assert hint.format(folder=folder) in (raised.value.hint or "")


ADAPTER = {"adapter_config.json": '{"base_model_name_or_path": "acme/Base"}', "adapter_model.safetensors": ""}
NO_MODEL: list[tuple[dict[str, str], str, str]] = [
    (ADAPTER, "is an adapter of acme/Base, not a model", "--adapter FOLDER"),
    (ADAPTER | {"adapter_config.json": "{}"}, "is an adapter, not a model", "--adapter FOLDER"),
    ({"params.json": "{}", "consolidated.safetensors": ""}, "its maker's own layout", "Hugging Face layout"),
    (
        {"model-Q4_K_M.gguf": "", "README.md": ""},
        "has no config.json, but model-Q4_K_M.gguf",
        "{folder}/model-Q4_K_M.gguf",
    ),
    ({"sub/config.json": "{}"}, "has no config.json", "Give the folder in it that has one: {folder}/sub"),
    ({"README.md": ""}, "has no config.json", "OWNER/NAME"),
]


@pytest.mark.parametrize(("files", "message", "hint"), NO_MODEL)
def test_a_folder_that_is_no_model(files: dict[str, str], message: str, hint: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=re.escape(message)) as raised:
        source.find(str(tmp_path))
    assert str(tmp_path) in raised.value.message
    assert hint.format(folder=tmp_path) in (raised.value.hint or "")


def test_a_client_that_is_too_old_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgepack_packager.source.hub", raising=False)
    monkeypatch.delattr(source, "hub", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ExtraMissingError, match=r"owner/name needs huggingface_hub.*edgepack\[build\]"):
        source.find("owner/name")


# Files


def test_the_files_that_are_needed(tmp_path: Path) -> None:
    terms = ["LICENSE", "LICENCE.txt", "NOTICE", "Notice.md", "USE_POLICY.md", "COPYING", "license-model.txt"]
    others = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    others += ["special_tokens_map.json", "chat_template.jinja", "chat_template.json", "README.md"]
    others += ["additional_chat_templates/tool_use.jinja", "additional_chat_templates/rag.jinja"]
    useless = [".gitattributes", "pytorch_model.bin", "model.gguf", "onnx/model.onnx", "original/params.json"]
    useless += ["additional_chat_templates/a/b.jinja", "additional_chat_templates/README.md"]
    useless += ["original/tokenizer.json", "vocab.json", "modeling_phi3.py", "model.safetensors", "images/LICENSE.png"]
    assert needed.text([*terms, *others, *useless]) == sorted([*terms, *others])
    assert set(CARRIED) < set(others)
    assert needed.seen([*others, *useless]) >= {*others}
    assert not {"onnx/model.onnx", "original/tokenizer.json"} & needed.seen(useless)
    for name in terms:
        (tmp_path / name).write_text("terms")
    assert read_licence(tmp_path).files == tuple(sorted(terms))


def test_one_file_of_weights_comes_before_an_index() -> None:
    single, index = "model.safetensors", "model.safetensors.index.json"
    assert needed.weights([index, single, "pytorch_model.bin"]) == [single]
    assert needed.weights([index, "pytorch_model.bin"]) == [index]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert needed.weights(["pytorch_model.bin", *shards]) == shards
    assert needed.weights(["pytorch_model.bin", shards[1]]) == []
    assert needed.weights(["pytorch_model.bin", "consolidated.safetensors", "adapter_model.safetensors"]) == []


# Room


def test_what_is_written_on_one_disk_is_added_up(tmp_path: Path) -> None:
    half = space.disk_usage(tmp_path).free * 6 // 10
    cache, out = Need("the weights take", tmp_path / "not" / "yet", half), Need("the bundle takes", tmp_path, half)
    space.check([cache])
    space.check([out])
    with pytest.raises(BuildError, match=r"the weights take .*B in .*yet and the bundle takes .*B in .*B are free"):
        space.check([cache, out])


def test_the_catalogue_says_what_the_templates_of_its_models_take(shared: Path) -> None:
    """Compared with those that were published: a system prompt, tools, a switch of thoughts."""
    published = {"llama-3.2-3b": "meta-llama-Llama-3.2-3B-Instruct", "phi-3.5-mini": "microsoft-Phi-3.5-mini-instruct"}
    published |= {"gemma-2-2b": "google-gemma-2-2b-it", "qwen3-0.6b": "Qwen-Qwen3-0.6B"}
    for alias, name in published.items():
        text = (shared / "chat-templates" / f"{name}.jinja").read_text("utf-8")
        entry = catalog.find(alias)
        assert entry is not None
        assert ("tools" in entry.accepts) == ("tools" in text)
        assert ("thinking" in entry.accepts) == ("enable_thinking" in text)
        assert ("system" in entry.accepts) == ("System role not supported" not in text)
    assert not any(entry.accepts for entry in catalog.entries() if entry.alias.endswith("-base"))
