"""Exports in the hands of the programs that they are for: the same tokens, the same stops, the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgepack
from edgepack.bundle.manifest import Golden, SelfTest
from edgepack_packager.build import Built
from edgepack_ship.exports.export import export

pytestmark = pytest.mark.oracle


def _goldens(built: Built) -> list[Golden]:
    assert built.manifest.chat is not None
    return [golden for golden in built.manifest.chat.goldens if golden.add_generation_prompt and not golden.refusal]


def _self_test(built: Built, id: str | None) -> SelfTest:
    (found,) = [variant.self_test for variant in built.manifest.variants if variant.id == id]
    assert found is not None
    return found


def test_mlx_lm_loads_what_is_exported(demo_bundle: Built, tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm import load

    made = export(demo_bundle.path, "mlx", tmp_path / "out")
    model, tokenizer = load(str(tmp_path / "out"))[:2]
    assert set(tokenizer.eos_token_ids) == {stop.id for stop in demo_bundle.manifest.stops}
    for golden in _goldens(demo_bundle):
        text = tokenizer.apply_chat_template(golden.messages, add_generation_prompt=True, tokenize=False)
        assert text == golden.text
    test = _self_test(demo_bundle, made.variant)
    likeliest = np.array(model(mx.array([test.ids])).astype(mx.float32))[0].argmax(-1)
    assert [None if one is None else int(found) for one, found in zip(test.top1, likeliest, strict=True)] == test.top1


def test_genai_loads_what_is_exported(demo_bundle: Built, tmp_path: Path) -> None:
    import onnxruntime_genai as og

    made = export(demo_bundle.path, "ort-genai", tmp_path / "out")
    model = og.Model(str(tmp_path / "out"))
    tokenizer = og.Tokenizer(model)
    for probe in demo_bundle.manifest.tokenizer.probes[:20]:
        if not probe.special and probe.text:
            assert [int(id) for id in tokenizer.encode(probe.text)] == probe.ids, probe.text
    test = _self_test(demo_bundle, made.variant)
    at = max(place for place, one in enumerate(test.top1) if one is not None)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(test.ids) + 1)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(test.ids[: at + 1], np.int32))
    assert int(np.asarray(generator.get_logits())[0, -1].argmax()) == test.top1[at]


def test_llamacpp_says_what_edgepack_says(demo_bundle: Built, tmp_path: Path) -> None:
    import xllamacpp

    made = export(demo_bundle.path, "llamacpp", tmp_path / "out")
    params: Any = xllamacpp.CommonParams()
    params.model.path = str(tmp_path / "out/model.gguf")
    params.chat_template = (tmp_path / "out/chat_template.jinja").read_text()
    params.n_ctx, params.use_jinja, params.warmup = 1024, True, False
    server = xllamacpp.Server(params)
    with edgepack.load(demo_bundle.path, variant=made.variant, kv_cache="f16") as model:
        for asked in ("Hi", "What is the capital of France?"):
            said = [{"role": "user", "content": asked}]
            answer = server.handle_chat_completions({"messages": said, "temperature": 0, "max_tokens": 48})
            own = model.chat(said, max_tokens=48)
            assert answer["choices"][0]["message"]["content"] == own.text
            assert answer["usage"]["prompt_tokens"] == own.usage.prompt_tokens
