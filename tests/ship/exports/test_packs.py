"""What LM Studio, Docker Model Runner, Apple and Google take: each folder by what is published of its form."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported_bundles import WEIGHTS, names, small

from edgepack.device.engine import Options
from edgepack.device.memory import Payload, needed
from edgepack.errors import BundleDamagedError
from edgepack_ship.exports import android
from edgepack_ship.exports.export import export


def _object(path: Path) -> Any:
    return json.loads(path.read_bytes())


def test_lm_studio_gets_the_weights_under_their_publisher(tmp_path: Path) -> None:
    made = export(small(tmp_path / "b"), "lmstudio", tmp_path / "out")
    place = "edgepack/small-gguf-q4_0"
    assert names(tmp_path / "out") == {
        "edgepack-export.json", "model.yaml", f"{place}/LICENSE", f"{place}/small-gguf-q4_0.gguf"
    }  # fmt: skip
    assert made.variant == "gguf-q4_0"


def test_lm_studio_gets_a_folder_of_mlx(tmp_path: Path) -> None:
    export(small(tmp_path / "b"), "lmstudio", tmp_path / "out", variant="mlx-4bit")
    here = names(tmp_path / "out/edgepack/small-mlx-4bit")
    assert here == {"LICENSE", "chat_template.jinja", "tokenizer.json", *WEIGHTS["mlx-4bit"]}
    said = yaml.safe_load((tmp_path / "out/model.yaml").read_text())
    assert said["metadataOverrides"]["compatibilityTypes"] == ["safetensors"]


def test_a_model_yaml_has_the_defaults_and_the_switch_of_the_bundle(tmp_path: Path) -> None:
    thinking = {
        "opening": "<think>", "closing": "</think>", "ending": "</think>\n\n", "default": True,
        "switch": {"on": True, "off": False, "variable": "enable_thinking"},
    }  # fmt: skip
    bundle = small(
        tmp_path / "b",
        schema={"version": 2, "features": ["chat_thinking"]},
        chat={"roles": ["user", "assistant"], "date": None, "goldens": [], "thinking": thinking},
        generation={"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    )
    export(bundle, "lmstudio", tmp_path / "out")
    said = yaml.safe_load((tmp_path / "out/model.yaml").read_text())
    assert said["model"] == "edgepack/small"
    assert said["base"] == "edgepack/small-gguf-q4_0"
    fields = {field["key"]: field["value"] for field in said["config"]["operation"]["fields"]}
    assert fields == {
        "llm.prediction.temperature": 0.6,
        "llm.prediction.topKSampling": 20,
        "llm.prediction.topPSampling": {"checked": True, "value": 0.95},
        "llm.prediction.minPSampling": {"checked": False, "value": 0.0},
        "llm.prediction.repeatPenalty": {"checked": False, "value": 1.0},
        "llm.prediction.maxPredictedTokens": {"checked": True, "value": 256},
        "llm.prediction.stopStrings": ["</s>"],
    }
    assert said["config"]["load"]["fields"] == [{"key": "llm.load.contextLength", "value": 4096}]
    assert said["customFields"][0]["effects"] == [{"type": "setJinjaVariable", "variable": "enable_thinking"}]
    assert said["metadataOverrides"]["reasoning"] is True


def test_a_layout_for_docker_has_blobs_that_are_what_they_are_called(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(small(tmp_path / "b"), "docker-model", out)
    assert _object(out / "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    for blob in (out / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name

    def blob(descriptor: dict[str, Any]) -> bytes:
        data = (out / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
        assert len(data) == descriptor["size"]
        return data

    (root,) = _object(out / "index.json")["manifests"]
    assert root["annotations"] == {"org.opencontainers.image.ref.name": "latest"}
    manifest = json.loads(blob(root))
    assert manifest["mediaType"] == root["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert {layer["mediaType"]: blob(layer) for layer in manifest["layers"]} == {
        "application/vnd.docker.ai.gguf.v3": WEIGHTS["gguf-q4_0"]["model.gguf"],
        "application/vnd.docker.ai.license": b"MIT\n",
        "application/vnd.docker.ai.chat.template.jinja": (tmp_path / "b/chat_template.jinja").read_bytes(),
    }
    assert manifest["config"]["mediaType"] == "application/vnd.docker.ai.model.config.v0.1+json"
    config = json.loads(blob(manifest["config"]))
    digests = [layer["digest"] for layer in manifest["layers"]]
    assert config["rootfs"] == {"type": "rootfs", "diff_ids": digests}
    assert [file["diffID"] for file in config["files"]] == digests
    assert (config["config"]["format"], config["config"]["context_size"]) == ("gguf", 4096)


@pytest.mark.oracle
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
def test_skopeo_copies_the_layout(tmp_path: Path) -> None:
    export(small(tmp_path / "b"), "docker-model", tmp_path / "out")
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", f"oci:{tmp_path / 'out'}:latest", f"dir:{tmp_path / 'copy'}"],
        check=True,
    )
    copied = {path.name for path in (tmp_path / "copy").iterdir()}
    assert {path.name for path in (tmp_path / "out/blobs/sha256").iterdir()} - copied == {
        _object(tmp_path / "out/index.json")["manifests"][0]["digest"].removeprefix("sha256:")
    }


def test_a_pack_for_apple_names_the_folder_of_mlx(tmp_path: Path) -> None:
    made = export(small(tmp_path / "b"), "apple", tmp_path / "out")
    assert made.variant == "mlx-4bit"
    pack = _object(tmp_path / "out/Manifest.json")
    assert pack == {
        "assetPackID": "small",
        "downloadPolicy": {"onDemand": {}},
        "fileSelectors": [{"directory": "small"}],
        "platforms": ["iOS", "macOS", "visionOS"],
    }
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names(tmp_path / "out/small")


def test_a_pack_for_apple_may_be_a_gguf_file(tmp_path: Path) -> None:
    export(small(tmp_path / "b"), "apple", tmp_path / "out", variant="gguf-q4_0")
    assert names(tmp_path / "out/small") == {"LICENSE", "chat_template.jinja", "model.gguf"}


def test_a_pack_for_android_is_a_module_of_gradle(tmp_path: Path) -> None:
    made = export(small(tmp_path / "b", name="Small-2.5"), "android", tmp_path / "out")
    assert "build.gradle" in names(tmp_path / "out/small_2_5")
    assert 'packName = "small_2_5"' in (tmp_path / "out/small_2_5/build.gradle").read_text()
    assert names(tmp_path / "out/small_2_5/src/main/assets/Small-2.5") == {
        "LICENSE", "chat_template.jinja", "model.gguf"
    }  # fmt: skip
    assert "include ':small_2_5'" in made.use[1]


@pytest.mark.parametrize("name", ["SmolLM2-135M", "7b model", "_", "ünï"])
def test_a_pack_has_a_name_that_play_takes(name: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", android.pack_name(name))


def test_a_pack_that_play_does_not_take_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(android, "LIMIT", 10)
    made = export(small(tmp_path / "b"), "android", tmp_path / "out")
    assert "and Play takes packs of 10: choose a smaller variant." in made.differs[0]


@pytest.mark.parametrize("system", ["apple", "android"])
def test_the_memory_is_what_a_plan_counts(tmp_path: Path, system: str) -> None:
    from edgepack.bundle.files import open_bundle

    made = export(small(tmp_path / "b"), system, tmp_path / "out")
    said = _object(tmp_path / "out/memory.json")
    manifest = open_bundle(tmp_path / "b").manifest
    (variant,) = [each for each in manifest.variants if each.id == made.variant]
    payload = Payload(manifest.decoder, variant.runtime, "4bit", variant.weights_bytes, manifest.tokenizer.rows)
    assert said["bytes_by_context"]["2048"] == needed(payload, Options(2048, 1, "f16")).total
    assert [each["largest_context"] for each in said["devices"]] == [8192] * 5


@pytest.mark.parametrize("system", ["lmstudio", "docker-model", "apple", "android"])
def test_a_damaged_payload_leaves_nothing(tmp_path: Path, system: str) -> None:
    bundle = small(tmp_path / "b", ids=("gguf-q4_0",))
    (bundle / "variants/gguf-q4_0/model.gguf").write_bytes(b"GGUF five bits")
    with pytest.raises(BundleDamagedError, match="its sha256 differs"):
        export(bundle, system, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
