"""Fetching from a hub, through the real huggingface_hub client and a hub on localhost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import TOKEN, Hub
from models import make_llama

from edgepack.bundle.files import open_bundle
from edgepack.errors import BuildError, OutputExistsError, SourceError, UnsupportedModelError, UsageError
from edgepack_packager import source
from edgepack_packager.build import build
from edgepack_packager.progress import Silent
from edgepack_packager.recipe import Recipe
from edgepack_packager.source import Need, Source, catalog

NAME = "owner/name"
TEXT = ["LICENSE", "README.md", "additional_chat_templates/tool_use.jinja", "chat_template.jinja"]
TEXT += ["generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
USELESS = ["pytorch_model.bin", "model.gguf", "original/consolidated.00.pth", "onnx/model.onnx", "modeling_x.py"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model with everything beside it that a repository may have."""
    folder = make_llama(tmp_path_factory.mktemp("hub") / "llama", seed=5, shards=2)
    (folder / "LICENSE").write_text("MIT License\n")
    tools = folder / "additional_chat_templates/tool_use.jinja"
    tools.parent.mkdir()
    tools.write_text("{{ tools }}" + (folder / "chat_template.jinja").read_text())
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "model-00003-of-00002.safetensors").write_bytes(b"a shard that the index does not name")
    for name in USELESS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0" * 1000)
    return folder


@pytest.fixture
def hub(llama: Path) -> Iterator[Hub]:
    with Hub({NAME: llama}) as hub:
        yield hub


@pytest.mark.parametrize("down", [500, 401, None])
def test_no_error_shows_a_password_or_a_token(
    down: int | None, online: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    secret, written = "pa@ss/word", "pa%40ss%2Fword"
    monkeypatch.setattr(constants, "ENDPOINT", online.endpoint.replace("://", f"://user:{written}@"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    online.down = down
    online.says = f"No\x1b[2J: {TOKEN} {secret} {written} Authorization: Basic dXNlcjpwYUBzcy93b3Jk ?sig=abcdefgh"
    if down is None:
        online.stop()
    with pytest.raises(SourceError) as raised:
        source.find(NAME)
    said = "".join(traceback.format_exception(raised.value))
    for hidden in (secret, written, TOKEN, "dXNlcjpwYUBzcy93b3Jk", "abcdefgh", "user:", "\x1b"):
        assert hidden not in said.replace(TOKEN + "_", "")
        assert hidden not in caplog.text
    assert "127.0.0.1" in raised.value.message


@pytest.fixture
def online(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The hub, which the client in this process uses with an empty cache."""
    hub.use(monkeypatch, tmp_path / "home")
    return hub


class Watched(Silent):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.warned: list[str] = []
        self.done = 0

    def stage(self, title: str, total: int) -> None:
        self.stages.append((title, total))

    def advance(self, steps: int = 1) -> None:
        self.done += steps

    def warn(self, sentence: str) -> None:
        self.warned.append(sentence)


def fetch(name: str = NAME, watched: Watched | None = None, *others: Need) -> Source:
    """Fetch a source whole."""
    found = source.find(name)
    source.fetch_text(found)
    source.fetch_weights(found, watched or Watched(), *others)
    return found


def refused(name: str, match: str) -> None:
    with pytest.raises(SourceError, match=match) as caught:
        fetch(name)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


# What is fetched


def test_a_config_is_fetched_alone(online: Hub, llama: Path) -> None:
    assert source.read_config(NAME) == json.loads((llama / "config.json").read_text())
    assert online.fetched() == ["config.json"]


def test_only_what_is_needed_is_fetched_and_only_once(online: Hub, llama: Path) -> None:
    watched = Watched()
    found = fetch(NAME, watched)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert online.fetched() == ["config.json", *TEXT, "model.safetensors.index.json", *shards]
    files = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    assert files == set(online.fetched())
    for name in online.fetched():
        assert (found.folder / name).read_bytes() == (llama / name).read_bytes()
    total = sum((llama / shard).stat().st_size for shard in shards)
    assert watched.stages == [(f"Fetching {NAME}", total)]
    assert watched.done == total

    before = len(online.calls)
    assert fetch(NAME, again := Watched()) == found
    assert all(call.path.startswith("/api/") for call in online.calls[before:])
    assert again.stages == []


def test_the_revision_is_the_commit_of_what_was_asked(online: Hub, llama: Path, tmp_path: Path) -> None:
    old = make_llama(tmp_path / "old", seed=6)
    online.tags = {NAME: {"v1": old, "refs/pr/2": old}}
    commit = online.commit(NAME, "v1")
    assert commit != online.commit(NAME)
    for revision in ("v1", "refs/pr/2", commit):
        found = fetch(f"{NAME}@{revision}")
        assert found == Source(found.folder, "name", NAME, commit)
        assert (found.folder / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes()
    assert fetch().revision == online.commit(NAME)


def test_an_alias_is_its_repository(online: Hub, llama: Path) -> None:
    online.repositories = {"microsoft/Phi-3.5-mini-instruct": llama}
    found = source.find("phi-3.5-mini")
    assert (found.name, found.repository) == ("phi-3.5-mini", "microsoft/Phi-3.5-mini-instruct")
    assert found.revision == online.commit("microsoft/Phi-3.5-mini-instruct")
    assert source.find("Phi-3.5-mini-instruct@main") == found


def test_an_alias_can_be_pinned(online: Hub, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    online.tags = {NAME: {"v1": make_llama(tmp_path / "old", seed=6)}}
    pinned = catalog.Entry("pinned", NAME, 1, "MIT", "2025-01", revision=online.commit(NAME, "v1"))
    monkeypatch.setattr(catalog, "entries", lambda: (pinned,))
    assert source.find("pinned").revision == online.commit(NAME, "v1")
    assert source.find("pinned@main").revision == online.commit(NAME)


def test_a_moved_branch_is_fetched_anew_and_what_it_kept_is_not(online: Hub, llama: Path, tmp_path: Path) -> None:
    fetch()
    moved = shutil.copytree(llama, tmp_path / "moved")
    (moved / "README.md").write_text("---\nlicense: mit\n---\nNew words.\n")
    online.repositories, online.calls = {NAME: moved}, []
    watched = Watched()
    assert fetch(NAME, watched).revision == online.commit(NAME)
    assert online.fetched() == ["README.md"]
    assert watched.stages == []


def test_a_lost_connection_is_taken_up_where_it_broke(online: Hub, tmp_path: Path) -> None:
    # The client writes in pieces of 10 MiB: what is lost before the first one begins anew.
    folder = make_llama(tmp_path / "large", hidden=512, intermediate=4096, layers=1, dtype="f32")
    weights = folder / "model.safetensors"
    assert weights.stat().st_size > 24 * 2**20
    online.repositories, online.cut = {NAME: folder}, {weights.name: 21 * 2**20}
    watched = Watched()
    found = fetch(NAME, watched)
    assert (found.folder / weights.name).read_bytes() == weights.read_bytes()
    assert [call.range for call in online.calls if call.method == "GET" and weights.name in call.path] == [
        None,
        f"bytes={20 * 2**20}-",
    ]
    assert watched.done == weights.stat().st_size


def test_no_telemetry(hub: Hub, tmp_path: Path) -> None:
    code = f"from edgepack_packager.source import read_config; read_config({NAME!r})"
    env = hub.env(tmp_path / "home", AI_AGENT="someone", DO_NOT_TRACK="0", DISABLE_TELEMETRY="0")
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert [call.path.partition(NAME)[0] for call in hub.calls] == ["/api/models/", "/", "/"]


# What is refused


def test_a_repository_that_is_not_there(online: Hub) -> None:
    refused("owner/nothing", r"owner/nothing is no model of the hub that you can see, and no folder.*hf auth login")
    refused("microsoft/Phi-3.5-mini", r"Did you mean microsoft/Phi-3.5-mini-instruct")
    refused("owner/a--b", r"'owner/a--b' is no name of a repository\..*--")


def test_a_revision_that_is_not_there(online: Hub) -> None:
    refused(f"{NAME}@v9", r"owner/name has no revision 'v9'.*/owner/name/commits")
    refused(f"{NAME}@{'0' * 40}", r"owner/name has no revision '0{40}'")


def test_a_gated_repository(online: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    online.gated = [NAME]
    refused(NAME, r"gated.*Agree at https://huggingface\.co/owner/name, then log in with: hf auth login")
    assert online.fetched() == []
    online.use(monkeypatch, tmp_path / "home", token=TOKEN)
    assert fetch().repository == NAME


def test_the_login_of_the_client_is_used(online: Hub, tmp_path: Path) -> None:
    online.gated = [NAME]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    assert fetch().repository == NAME


def test_a_token_that_is_not_accepted(online: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    online.use(monkeypatch, tmp_path / "home", token="hf_old")
    refused(NAME, r"answered 401 for owner/name.*token is not accepted; log in with: hf auth login")


@pytest.mark.parametrize(
    ("missing", "match"),
    [
        ("config.json", r"owner/name has no config\.json"),
        ("tokenizer.json", r"owner/name has no tokenizer\.json.*save_pretrained"),
        ("model.safetensors.index.json", r"owner/name has shards of more than one set, such as model-00003-of-00002"),
        ("model-00002-of-00002.safetensors", r"owner/name has no model-00002-of-00002\.safetensors"),
    ],
)
def test_a_repository_that_lacks_a_file(missing: str, match: str, online: Hub, llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "lacking")
    (folder / missing).unlink()
    online.repositories = {NAME: folder}
    refused(NAME, match)
    assert not set(online.fetched()) & set(USELESS)


def test_an_adapter_is_told_from_a_model(online: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "acme/Base"}')
    (folder / "adapter_model.safetensors").touch()
    online.repositories = {NAME: folder}
    refused(NAME, r"owner/name is an adapter of acme/Base, not a model.*--adapter FOLDER")
    assert online.fetched() == ["adapter_config.json"]


@pytest.mark.parametrize("shard", ["../../../../etc/passwd", "pytorch_model.bin"])
def test_an_index_that_names_something_else(shard: str, online: Hub, llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "hostile")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    online.repositories = {NAME: folder}
    with pytest.raises(SourceError, match=r"is not a plain file name that ends with \.safetensors"):
        fetch()
    assert shard not in online.fetched()


def test_a_disk_that_is_too_small(online: Hub, tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    online.sizes = {first: 2**60}
    with pytest.raises(
        BuildError, match=r"not enough room: owner/name takes 1073741824\.0 GiB in .*home/hub.*are free"
    ):
        fetch()
    online.sizes = {}
    with pytest.raises(BuildError, match=r"owner/name takes .* KiB in .* and the bundle takes .*B in .*out"):
        fetch(NAME, Watched(), Need("the bundle takes", tmp_path / "out", 2**60))
    assert not {first, second} & set(online.fetched())


# Without a network


def test_the_cache_is_used_without_a_network(online: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = fetch()
    online.stop()
    assert fetch() == found
    assert fetch(f"{NAME}@{found.revision}") == found
    online.use(monkeypatch, tmp_path / "home", offline=True)
    assert fetch() == found
    assert source.read_config(NAME)["model_type"] == "llama"


def test_a_hub_that_is_down_is_like_no_network(online: Hub) -> None:
    found = fetch()
    online.down = 503
    assert fetch() == found


def test_without_a_network_and_a_cache(online: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    online.down = 503
    refused(NAME, r"http://127\.0\.0\.1:\d+ answered 503 for owner/name.*Try again later")
    online.stop()
    refused(NAME, r"cannot be reached \(.*refused\), and .*home/hub lacks files of owner/name.*HF_ENDPOINT")
    online.use(monkeypatch, tmp_path / "home", offline=True)
    refused(NAME, r"switched off by HF_HUB_OFFLINE, and .*home/hub lacks files of owner/name")
    refused(f"{NAME}@{'0' * 40}", r"HF_HUB_OFFLINE")


def test_a_cache_without_the_index_has_all_shards(online: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (fetch().folder / "model.safetensors.index.json").unlink()
    online.use(monkeypatch, tmp_path / "home", offline=True)
    assert (fetch().folder / "model-00002-of-00002.safetensors").exists()


@pytest.mark.parametrize("lost", ["model-00002-of-00002.safetensors", "tokenizer.json"])
def test_a_cache_that_lacks_a_file(lost: str, online: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (fetch().folder / lost).unlink()
    online.use(monkeypatch, tmp_path / "home", offline=True)
    refused(NAME, r"HF_HUB_OFFLINE, and .* lacks files of owner/name")


# The command


def edgepack(*arguments: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgepack", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd)


def test_a_repository_is_built_from_the_command_line(hub: Hub, tmp_path: Path) -> None:
    command = ("build", NAME, "--target", "onnx", "--quant", "f32")
    done = edgepack(*command, env=hub.env(tmp_path / "home"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(tmp_path / "name.edgepack").manifest
    assert (manifest.name, manifest.license.id) == ("name", "MIT")
    assert (manifest.source.repository, manifest.source.revision) == (NAME, hub.commit(NAME))
    assert [file.path for file in manifest.source.files] == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    ]  # fmt: skip
    assert str(tmp_path) not in (tmp_path / "name.edgepack" / "manifest.json").read_text()

    hub.calls.clear()
    again = edgepack(*command, "--out", "again", env=hub.env(tmp_path / "home", HF_HUB_OFFLINE="1"), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert hub.calls == []
    assert open_bundle(tmp_path / "again").id == open_bundle(tmp_path / "name.edgepack").id


# What a build refuses before the weights are fetched


def nearly(hub: Hub, out: Path, error: type[Exception], match: str, recipe: Recipe) -> None:
    """A build must fail so, with no weights fetched and nothing left beside its output."""
    with pytest.raises(error, match=match):
        build(NAME, recipe, out)
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    assert not list(out.parent.glob(f".{out.name}*"))


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        (Recipe(("tflite",), ("q4",)), "tflite"),
        (Recipe(("onnx",), ("q3",)), "q3"),
        (Recipe(("onnx",), ("q4",), context=1024), "context"),
    ],
)
def test_a_recipe_that_makes_no_sense(recipe: Recipe, match: str, online: Hub, tmp_path: Path) -> None:
    nearly(online, tmp_path / "out", UsageError, match, recipe)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"hidden_act": "relu", "auto_map": {"AutoModel": "modeling_x.Model"}}, "relu"),
    ],
)
def test_a_model_that_is_not_built(
    fields: dict[str, object], match: str, online: Hub, llama: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    online.repositories = {NAME: folder}
    nearly(online, tmp_path / "out", UnsupportedModelError, match, Recipe(("onnx",), ("q4",)))
    assert online.fetched() == ["config.json"]


def changed(online: Hub, llama: Path, folder: Path, file: str, **fields: object) -> None:
    """Offer a copy of the model with other fields in one of its files."""
    shutil.copytree(llama, folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))
    online.repositories = {NAME: folder}


def test_a_tokenizer_that_a_target_cannot_carry(online: Hub, llama: Path, tmp_path: Path) -> None:
    odd = {"type": "Split", "pattern": {"Regex": "[0-9][0-9]"}, "behavior": "Isolated", "invert": False}
    changed(online, llama, tmp_path / "model", "tokenizer.json", pre_tokenizer=odd)
    nearly(online, tmp_path / "out", UnsupportedModelError, "pre_tokenizer", Recipe(("gguf",), ("f32",)))


def test_a_default_of_generation_that_is_none(online: Hub, llama: Path, tmp_path: Path) -> None:
    changed(online, llama, tmp_path / "model", "generation_config.json", do_sample=True, top_p=2)
    nearly(online, tmp_path / "out", SourceError, "top_p", Recipe(("gguf",), ("f32",)))


def test_weights_that_are_quantised_by_their_size(online: Hub, llama: Path, tmp_path: Path) -> None:
    left = {"quant_method": "awq", "bits": 4}
    changed(online, llama, tmp_path / "model", "config.json", quantization_config=left)
    online.sizes = {f"model-0000{each}-of-00002.safetensors": 1000 for each in (1, 2)}
    nearly(
        online,
        tmp_path / "out",
        UnsupportedModelError,
        "by awq: its weight files take 2000",
        Recipe(("gguf",), ("f32",)),
    )


def test_what_cannot_run_here_is_said_before_anything_is_fetched(
    online: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("edgepack_packager.foresight.obstacle", lambda *asked: "No engine can run this bundle here.")
    online.sizes = {"model-00001-of-00002.safetensors": 2**60}
    watched = Watched()
    with pytest.raises(BuildError, match="not enough room"):
        build(NAME, Recipe(("gguf",), ("f32",)), tmp_path / "out", progress=watched)
    assert watched.warned == ["No engine can run this bundle here."]


def test_an_output_that_exists(online: Hub, tmp_path: Path) -> None:
    nearly(online, tmp_path, OutputExistsError, "exists already", Recipe(("onnx",), ("q4",)))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs a small file system of its own")
def test_a_bundle_that_its_disk_cannot_take(online: Hub, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this system allows no mount")
    try:
        nearly(online, disk / "out", BuildError, r"the bundle takes .* KiB in .*disk,", Recipe(("gguf",), ("f32",)))
    finally:
        subprocess.run(["umount", disk], check=True)
