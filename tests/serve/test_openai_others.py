"""OpenAI's other endpoints: texts that are continued, vectors, models; and bundles by the names of a command line."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import CHAT, Serving, serving, serving_bundles

from edgepack import errors, fake
from edgepack_packager.build import Built
from edgepack_serve.hosting.opening import hosted
from edgepack_serve.hosting.settings import Settings

TEXTS = "/v1/completions"
VECTORS = "/v1/embeddings"
EDGEPACK = "Edgepack is a tool that packs small language models into bundles that run on edge devices."


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    models = {
        "fake": lambda: fake.model(says="and on"),
        "vectors": lambda: fake.embedding_model(prompts={"query": "Q: "}),
    }
    with serving(models) as running:
        yield running


def test_a_text_goes_on(served: Serving) -> None:
    asked = {"model": "fake", "prompt": "On ", "n": 2}
    answer = served.post(TEXTS, asked)[1]
    assert [each["text"] for each in answer["choices"]] == ["and on"] * 2
    assert answer["object"] == "text_completion"
    assert answer["usage"]["completion_tokens"] == 14
    echoed = served.post(TEXTS, {**asked, "prompt": ["On "], "echo": True})[1]
    assert {each["text"] for each in echoed["choices"]} == {"On and on"}
    texts = ["", ""]
    for event in served.events(TEXTS, {**asked, "echo": True}):
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == ["On and on"] * 2
    assert len(served.post(TEXTS, {"model": "fake", "prompt": "On " * 20, "stop": " "})[1]["choices"][0]["text"]) == 3


def test_the_older_form_of_logprobs(served: Serving) -> None:
    asked = {"model": "fake", "prompt": "On ", "logprobs": 2, "max_tokens": 3}
    told = served.post(TEXTS, asked)[1]["choices"][0]["logprobs"]
    assert told["tokens"] == ["a", "n", "d"]
    assert told["text_offset"] == [0, 1, 2]
    assert [len(each) for each in told["top_logprobs"]] == [2, 2, 2]
    streamed = [each["choices"][0]["logprobs"] for each in served.events(TEXTS, asked)]
    assert [offset for some in streamed if some for offset in some["text_offset"]] == [0, 1, 2]


def test_vectors_as_numbers_and_as_bytes(served: Serving) -> None:
    asked: dict[str, Any] = {"model": "vectors", "input": ["a", "bc"]}
    plain = served.post(VECTORS, asked)[1]
    packed = served.post(VECTORS, {**asked, "encoding_format": "base64"})[1]
    query = served.post(VECTORS, {**asked, "input": "a", "prompt": "query"})[1]
    assert [each["index"] for each in plain["data"]] == [0, 1]
    for one, other in zip(plain["data"], packed["data"], strict=True):
        found = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        assert found == pytest.approx(np.array(one["embedding"], np.float32))
    assert query["data"][0]["embedding"] != pytest.approx(plain["data"][0]["embedding"])
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TEXTS, {"model": "fake", "prompt": "a", "suffix": "b"}, "suffix"),
        (TEXTS, {"model": "fake", "prompt": "a", "best_of": 2}, "best_of"),
        (TEXTS, {"model": "fake", "prompt": ["a", "b"]}, "prompt"),
        (TEXTS, {"model": "fake", "prompt": [1]}, "prompt[0]"),
        (TEXTS, {"model": "fake", "prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        (TEXTS, {"model": "fake", "prompt": "a", "messages": []}, "messages"),
        (TEXTS, {"model": "fake", "prompt": "a", "logprobs": 21}, None),
        (VECTORS, {"model": "vectors", "input": "a", "dimensions": 2}, "dimensions"),
        (VECTORS, {"model": "vectors", "input": []}, "input"),
        (VECTORS, {"model": "vectors", "input": [[1]]}, "input[0]"),
        (VECTORS, {"model": "vectors", "input": "a", "prompt": "x"}, None),
        (VECTORS, {"model": "vectors", "input": "a", "encoding_format": "int8"}, "encoding_format"),
        (VECTORS, {"model": "fake", "input": "a"}, None),
        (CHAT, {"model": "vectors", "messages": [{"role": "user", "content": "a"}]}, None),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    served: Serving, path: str, body: dict[str, Any], param: str | None
) -> None:
    status, answer = served.post(path, body)
    assert (status, answer["error"]["param"]) == (400, param), answer


def test_bundles_by_the_names_of_a_command_line(one_variant: Path, gguf_variant: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "What is edgepack?"}], "temperature": 0}
    with serving_bundles(one_variant, f"other={gguf_variant}") as served:
        for name in ("demo", "other"):
            answer = served.post(CHAT, {**asked, "model": name})[1]
            assert answer["choices"][0]["message"]["content"] == EDGEPACK
        names = {each["backend"]: each["name"] for each in served.host_status()}
    assert names == {"onnx": "demo", "gguf": "other"}
    with pytest.raises(errors.UsageError, match="Two bundles are called demo"):
        hosted([str(one_variant), str(gguf_variant)], Settings())


@pytest.mark.parametrize("variant", ["gguf-q4_k_m", "onnx-int4_mixed"])
def test_a_variant_is_served_where_one_is_named(tool_bundle: Built, variant: str) -> None:
    asked = {"model": "demo", "messages": [{"role": "user", "content": "What is edgepack?"}], "temperature": 0}
    with serving_bundles(tool_bundle.path, settings=Settings(variant=variant, threads=1)) as served:
        assert served.post(CHAT, asked)[1]["system_fingerprint"].endswith(variant)
    with pytest.raises(errors.UsageError, match="onnx-int3"):
        hosted([str(tool_bundle.path)], Settings(variant="onnx-int3"))
