"""One server for all clients, over a bundle of the demo model with a template that knows tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import anthropic
import ollama
import openai
import pytest
from serving import Serving, serving
from talking import ENGINES, SEVERAL, TOKEN

import edgepack
from edgepack import Model, fake
from edgepack_packager.build import Built
from edgepack_serve.hosting.settings import Settings


@pytest.fixture(scope="session")
def served(tool_bundle: Built) -> Iterator[Serving]:
    models: dict[str, Callable[[], Model]] = {
        **{each: partial(edgepack.load, tool_bundle.path, each) for each in ENGINES},
        **{name: partial(edgepack.load, tool_bundle.path, each, sequences=4) for name, each in SEVERAL.items()},
        "thinker": lambda: fake.model(says="Good day!", thinks="A greeting."),
        "embedder": lambda: fake.embedding_model(size=8),
    }
    with serving(models, settings=Settings(parallel=4), token=TOKEN) as running:
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
