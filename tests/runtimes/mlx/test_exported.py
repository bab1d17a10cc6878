"""Payloads of mlx-lm: that they are its own, what their folder may hold, and that their sessions can be put back."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import exported_models
import mlx.core as mx
import numpy as np
import pytest
from decoders import changed

from edgepack.bundle.decoder import Decoder
from edgepack.errors import ContextTooLargeError, EngineError, EngineMissingError
from edgepack.runtime import Options, Session, Snapshots
from edgepack_runtimes.mlx import MlxRuntime

IDS = [int(i) for i in np.random.default_rng(1).integers(0, exported_models.VOCABULARY, exported_models.CONTEXT)]
OPTIONS = Options(96, 1, "f32", 16)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decoder]:
    folder = tmp_path_factory.mktemp("written")
    return folder, exported_models.write_mlx(folder)


@pytest.fixture
def variant(written: tuple[Path, Decoder], tmp_path: Path) -> tuple[Path, Decoder]:
    """A variant that a test may damage."""
    return Path(shutil.copytree(written[0], tmp_path / "variant")), written[1]


def open_(variant: tuple[Path, Decoder], options: Options = OPTIONS) -> Session:
    return MlxRuntime().open(*variant, options)


def test_the_logits_are_mlx_lms(written: tuple[Path, Decoder]) -> None:
    from mlx_lm.utils import load_model

    model, _ = load_model(written[0])
    with mx.stream(mx.cpu):
        expected = np.array(model(mx.array([IDS]))[0]).astype(np.float64)
    found = open_(written).forward_all(IDS)
    assert np.square(found - expected).sum() / np.square(expected).sum() < 1e-11


def test_a_snapshot_is_the_cache_up_to_its_length(written: tuple[Path, Decoder]) -> None:
    session, other = open_(written), open_(written)
    assert isinstance(session, Snapshots)
    assert isinstance(other, Snapshots)
    nothing = session.snapshot()
    session.forward(IDS[:30])
    session.rewind(20)
    state, expected = session.snapshot(), session.forward(IDS[20:25])
    other.forward(IDS[50:60])
    other.restore(state)
    assert other.length == 20
    np.testing.assert_array_equal(other.forward(IDS[20:25]), expected)
    with pytest.raises(ValueError, match="damaged"):
        other.restore(state[:-1] + bytes([state[-1] ^ 1]))
    assert other.length == 25
    other.restore(nothing)
    assert other.length == 0
    np.testing.assert_allclose(other.forward_all(IDS[:25])[-1], expected, rtol=1e-4, atol=1e-4)


def test_a_context_beyond_the_variants(written: tuple[Path, Decoder]) -> None:
    with pytest.raises(ContextTooLargeError, match="96 positions"):
        open_(written, Options(97, 1, "f32"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "llama"}, "the model_type 'llama', and the manifest says 'gpt2'"),
        ({"model_file": "evil.py"}, "the field model_file"),
        ({"quantization": {"bits": 4}}, "the field quantization"),
        ({"n_layer": 1}, "differs"),
        ({"n_embd": 64}, "differs"),
        ({"vocab_size": 380}, "differs"),
        ({"n_embd": "32"}, "mlx-lm cannot load"),
        ({"n_ctx": None, "n_head": 0}, "mlx-lm cannot load"),
    ],
)
def test_a_config_that_is_not_the_payloads(changes: dict[str, object], why: str, variant: tuple[Path, Decoder]) -> None:
    path = variant[0] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(EngineError, match=why):
        open_(variant)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"family": "os.path"}, "manifest says"),
        ({"n_layers": 3}, "another cache"),
        ({"n_vocab": 383}, "logits of 384"),
        ({"n_kv_heads": 2}, "other KV heads"),
    ],
)
def test_a_manifest_that_is_not_the_payloads(
    changes: dict[str, object], why: str, written: tuple[Path, Decoder]
) -> None:
    with pytest.raises(EngineError, match=why):
        open_((written[0], changed(written[1], **changes))).forward([1])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("change", [Path.unlink, cut, lambda path: path.write_bytes(b"")])
def test_weights_that_are_not_whole(change: Callable[[Path], object], variant: tuple[Path, Decoder]) -> None:
    change(variant[0] / "model.safetensors")
    with pytest.raises(EngineError, match=r"model\.safetensors"):
        open_(variant)


def test_what_mlx_lm_lacks_is_told_apart(written: tuple[Path, Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, decoder = written
    for name in [name for name in sys.modules if name.startswith("mlx_lm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    with pytest.raises(EngineMissingError, match="mlx_lm is not installed") as raised:
        open_((folder, decoder))
    assert "pip install 'mlx-lm" in str(raised.value.hint)
