"""One server for all clients, over a bundle of the demo model with a template that knows tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import anthropic
import ollama
import openai
import pytest
from serving import Serving, serving
from talking import TOKEN

import edgepack
import edgepack_packager
from edgepack import fake
from edgepack_packager.build import Recipe, build

TEMPLATE = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}To call one: <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>user
<tool_response>{{ message.content }}</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def tool_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in 4 bits for gguf and onnx, with a template in the form of Hermes."""
    place = tmp_path_factory.mktemp("tools")
    source = place / "demo"
    shutil.copytree(Path(edgepack_packager.__path__[0]) / "demo_model", source)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    return build(str(source), Recipe(("gguf", "onnx"), ("q4",), unproven=True), place / "demo.edgepack").path


@pytest.fixture(scope="session")
def served(tool_bundle: Path) -> Iterator[Serving]:
    models = {
        "gguf": lambda: edgepack.load(tool_bundle, "gguf"),
        "onnx": lambda: edgepack.load(tool_bundle, "onnx"),
        "thinker": lambda: fake.model(says="Good day!", thinks="A greeting."),
        "embedder": lambda: fake.embedding_model(size=8),
    }
    with serving(models, token=TOKEN) as running:
        yield running


@pytest.fixture(scope="session")
def open_ai(served: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def claude(served: Serving) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.url, api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def llama(served: Serving) -> ollama.Client:
    return ollama.Client(served.url, headers={"Authorization": f"Bearer {TOKEN}"})
