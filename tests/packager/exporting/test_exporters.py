"""The exporters themselves, on checkpoints that transformers' own classes make in optimum's environment.

The first test of each makes its environment, in the state folder of the tests: 263 and 246 MiB to download.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from text_side import write_text_side

from edgepack import load
from edgepack.errors import BuildError
from edgepack_packager import exporting
from edgepack_packager.build import VariantsFailedError, build
from edgepack_packager.exporting import environment
from edgepack_packager.progress import Silent
from edgepack_packager.recipe import Recipe

pytestmark = pytest.mark.oracle

SMALL: Mapping[str, object] = {"vocab_size": 384, "bos_token_id": 1, "eos_token_id": 2}
SIZES: Mapping[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "max_position_embeddings": 256,
}
MODELS: Mapping[str, Mapping[str, object]] = {
    "GPT2": {"n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4},
    "GPTNeoX": {**SIZES, "rotary_pct": 0.25},
    "OPT": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 160,
        "word_embed_proj_dim": 64,
        "max_position_embeddings": 256,
    },
    "Phi": {**SIZES, "partial_rotary_factor": 0.5},
    "StableLm": {**SIZES, "num_key_value_heads": 2},
    "Starcoder2": {**SIZES, "num_key_value_heads": 2, "sliding_window": None},
    "GPTBigCode": {"n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4},
}

# What each writes as transformers computes it; see below of what it does not.
BY_OPTIMUM = ("GPT2", "GPTNeoX", "OPT", "Phi", "StableLm", "GPTBigCode")
BY_MLX_LM = ("Phi", "StableLm")

# Loud weights: a model that echoes its input would hide a fault.
PROGRAM = """
import json, sys, torch, transformers
name, fields, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
torch.manual_seed(0)
model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name + "Config")(**fields)).float()
with torch.no_grad():
    for name, tensor in model.named_parameters():
        noise = torch.randn_like(tensor)
        if tensor.ndim == 2:
            tensor.copy_(noise * 1.3 / tensor.shape[1] ** 0.5)
        elif name.endswith("weight"):
            tensor.add_(noise * 0.2)
        else:
            tensor.copy_(noise * 0.3)
model.tie_weights()
model.save_pretrained(folder)
"""


# As the weights of GPT-2 were published: without the prefix of the model with a head, and with its attention's masks.
AS_PUBLISHED = """
import sys, torch
from safetensors.torch import load_file, save_file
tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(sys.argv[1]).items()}
masks = {f"h.{layer}.attn.bias": torch.ones(256, 256).tril().view(1, 1, 256, 256).contiguous() for layer in range(2)}
save_file(tensors | masks, sys.argv[1], metadata={"format": "pt"})
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of optimum's environment, made once for all tests."""
    return environment.ready(exporting.find("optimum").lock, Silent())


def checkpoint(python: Path, name: str, folder: Path, **changes: object) -> Path:
    fields = json.dumps({**SMALL, **MODELS[name], **changes})
    subprocess.run([python, "-I", "-c", PROGRAM, name, fields, folder], check=True, capture_output=True)
    write_text_side(folder, 384, add_bos=False)
    return folder


@pytest.mark.parametrize(("exporter", "name"), [*product(["optimum"], BY_OPTIMUM), *product(["mlx-lm"], BY_MLX_LM)])
def test_an_architecture_without_a_family(exporter: str, name: str, python: Path, tmp_path: Path) -> None:
    source = checkpoint(python, name, tmp_path / "source")
    built = build(str(source), Recipe((), (), exporter=exporter), tmp_path / "out.edgepack")
    (variant,) = built.manifest.variants
    assert variant.proof
    assert str(variant.proof.against).startswith("transformers ")
    figures = {gate.name: gate.value for gate in variant.proof.gates}
    assert figures["tensors.missing"] == 0
    assert max(figures["transformers.nmse"], figures["transformers.steps"]) < 1e-11
    with load(built.path, backend=variant.runtime) as model:
        assert len(model.generate("Once upon a time", max_tokens=5, temperature=0).token_ids) == 5


@pytest.mark.parametrize("exporter", ["optimum", "mlx-lm"])
def test_masks_that_a_checkpoint_kept_are_left_out_and_named(exporter: str, python: Path, tmp_path: Path) -> None:
    source = checkpoint(python, "GPT2", tmp_path / "source", n_ctx=256)
    weights = source / "model.safetensors"
    subprocess.run([python, "-I", "-c", AS_PUBLISHED, weights], check=True, capture_output=True)
    built = build(str(source), Recipe((), (), exporter=exporter), tmp_path / "out.edgepack")
    assert built.manifest.producer.recipe["notes"] == [
        "2 tensors of the checkpoint have no place in its class and are left out, as h.0.attn.bias."
    ]


@pytest.mark.parametrize("name", ["GPTNeoX", "Starcoder2"])
def test_another_gelu_than_the_models_is_heard(name: str, python: Path, tmp_path: Path) -> None:
    """mlx-lm's classes of these take tanh's approximation for the error function, or the other way round."""
    source = checkpoint(python, name, tmp_path / "source", intermediate_size=256)
    with pytest.raises(VariantsFailedError, match=r"transformers\.nmse is \S+e-08, the limit is <= 1e-10"):
        build(str(source), Recipe((), (), exporter="mlx-lm"), tmp_path / "out.edgepack")


def test_what_optimum_does_not_export_it_says(python: Path, tmp_path: Path) -> None:
    source = checkpoint(python, "Starcoder2", tmp_path / "source")
    with pytest.raises(BuildError, match="it exports no model of the type 'starcoder2' with a KV cache"):
        build(str(source), Recipe((), (), exporter="optimum"), tmp_path / "out.edgepack")


def damage(path: Path) -> None:
    """Make one weight of the payload another: a tensor outside of the graph, in its middle."""
    model = onnx.load(str(path / "model.onnx"), load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.external_data)
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = np.memmap(path / "model.onnx.data", np.float32, "r+")
    data[int(place["offset"]) // 4 + int(place["length"]) // 8] += 0.5
    data.flush()


def slow(path: Path) -> None:
    """Let the graph halve the positions that it is given; a rotation would not notice one that is added to all."""
    model = onnx.load(str(path / "model.onnx"), load_external_data=False)
    for node in model.graph.node:
        node.input[:] = ["half" if name == "position_ids" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([[2]]), "two"))
    model.graph.node.insert(0, onnx.helper.make_node("Div", ["position_ids", "two"], ["half"]))
    (path / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("fault", [damage, slow])
@pytest.mark.parametrize("name", ["GPT2", "GPTNeoX"])
def test_a_planted_fault_is_heard(
    fault: object, name: str, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = exporting.export

    def damaged(*arguments: object) -> exporting.Made:
        made = sound(*arguments)  # type: ignore[arg-type]
        fault(made.folder)  # type: ignore[operator]
        return made

    monkeypatch.setattr(exporting, "export", damaged)
    source = checkpoint(python, name, tmp_path / "source")
    with pytest.raises(VariantsFailedError, match=r"transformers\.nmse|tensors\.missing"):
        build(str(source), Recipe((), (), 200, exporter="optimum"), tmp_path / "out.edgepack")
    assert not (tmp_path / "out.edgepack").exists()
