"""One server for all clients, over a bundle of the demo model with a template that knows tools."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import ollama
import openai
import pytest
from serving import Serving, serving
from talking import TOKEN

import edgepack
from edgepack import fake
from edgepack_packager.build import Built


@pytest.fixture(scope="session")
def served(tool_bundle: Built) -> Iterator[Serving]:
    models = {
        "gguf": lambda: edgepack.load(tool_bundle.path, "gguf"),
        "onnx": lambda: edgepack.load(tool_bundle.path, "onnx"),
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
