"""The payloads of the demo bundle in the tools that own their formats, with those tools' own tokenizers and templates:
each must answer as edgepack does. A tool that reads tokenizer.json gets the bundle's beside the payload."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgepack
from edgepack_packager.build import Built

QUESTION = "What is edgepack?"

XLLAMACPP = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1] + "/model.gguf", 512, 1, False
messages = [{"role": "user", "content": sys.argv[2]}]
server = xllamacpp.Server(params)
answer = server.handle_chat_completions({"messages": messages, "temperature": 0, "max_tokens": 48})
print(json.dumps(answer["choices"][0]["message"]["content"]))
"""

MLX_LM = """
import json, sys, mlx.core, mlx_lm
mlx.core.set_default_device(mlx.core.cpu)
model, tokenizer = mlx_lm.load(sys.argv[1])
messages = [{"role": "user", "content": sys.argv[2]}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
print(json.dumps(mlx_lm.generate(model, tokenizer, prompt, max_tokens=48)))
"""

GENAI = """
import json, sys, onnxruntime_genai as og
model = og.Model(sys.argv[1])
tokenizer = og.Tokenizer(model)
messages = json.dumps([{"role": "user", "content": sys.argv[2]}])
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
params = og.GeneratorParams(model)
params.set_search_options(do_sample=False, max_length=128)
generator = og.Generator(model, params)
ids = tokenizer.encode(prompt)
generator.append_tokens(ids)
while not generator.is_done():
    generator.generate_next_token()
print(json.dumps(tokenizer.decode(generator.get_sequence(0)[len(ids):])))
"""


@pytest.mark.parametrize(
    ("variant", "script"),
    [
        ("gguf-f32", XLLAMACPP),
        ("gguf-q4_k_m", XLLAMACPP),
        ("mlx-f32", MLX_LM),
        ("mlx-4bit_mixed", MLX_LM),
        pytest.param("onnx-f32", GENAI, marks=pytest.mark.oracle),
        pytest.param("onnx-int4_mixed", GENAI, marks=pytest.mark.oracle),
    ],
)
def test_the_native_tool_says_the_same(variant: str, script: str, demo_bundle: Built, tmp_path: Path) -> None:
    if script is GENAI:
        pytest.importorskip("onnxruntime_genai")
    with edgepack.load(demo_bundle.path, variant=variant) as model:
        ours = model.chat([{"role": "user", "content": QUESTION}], temperature=0, max_tokens=48).text
    folder = demo_bundle.path / "variants" / variant
    if script is not XLLAMACPP:
        folder = shutil.copytree(folder, tmp_path / variant)
        shutil.copy(demo_bundle.path / "tokenizer.json", folder)
    done = subprocess.run([sys.executable, "-c", script, str(folder), QUESTION], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]).strip() == ours.strip()
