"""Figures, the document, the page's files, the log: what stands beside the answers."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import jsonschema
import pytest
from serving import CHAT, HELLO, Serving, serving, until

from edgepack import fake
from edgepack_serve.figures import Figures
from edgepack_serve.logs import Lines

_SAMPLE = re.compile(r'[a-z_]+(\{[a-z_]+="[^"\\\n]*"(,[a-z_]+="[^"\\\n]*")*\})? -?[0-9.e+]+(inf)?')


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with serving({"fake": lambda: fake.model(says="Hi!")}) as running:
        yield running


def test_figures_are_what_prometheus_reads(served: Serving) -> None:
    for _ in range(2):
        served.post(CHAT, HELLO)
    served.post(CHAT, {**HELLO, "model": 'a"\n'})
    served.ask("GET", "/nowhere/at/all")
    text = served.ask("GET", "/metrics").read().decode()
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert kinds.setdefault(name, kind) == kind
        elif not line.startswith("# HELP "):
            assert _SAMPLE.fullmatch(line), line
            name = re.split(r"[{ ]", line)[0]
            assert re.sub("_(bucket|sum|count)$", "", name) in kinds or name in kinds
    lines = text.splitlines()
    assert f'edgepack_requests_total{{door="{CHAT}",status="200"}} 2' in lines
    assert f'edgepack_requests_total{{door="{CHAT}",status="404"}} 1' in lines
    assert 'edgepack_requests_total{door="other",status="404"} 1' in lines
    assert 'edgepack_completion_tokens_total{model="fake"} 8' in lines
    assert f'edgepack_request_seconds_count{{door="{CHAT}"}} 3' in lines
    assert 'edgepack_model_loaded{model="fake"} 1' in lines


def test_a_histogram_counts_up_to_each_bound() -> None:
    figures = Figures()
    for seconds in (0.01, 0.011, 1000.0):
        figures.took("request_seconds", seconds, door="/")
    figures.count("prompt_tokens_total", 123_456_789, model='a "b"\\')
    lines = figures.text([]).splitlines()
    assert 'edgepack_request_seconds_bucket{door="/",le="0.01"} 1' in lines
    assert 'edgepack_request_seconds_bucket{door="/",le="0.025"} 2' in lines
    assert 'edgepack_request_seconds_bucket{door="/",le="300.0"} 2' in lines
    assert 'edgepack_request_seconds_bucket{door="/",le="+Inf"} 3' in lines
    assert 'edgepack_prompt_tokens_total{model="a \\"b\\"\\\\"} 123456789' in lines


def test_the_document_describes_what_there_is(served: Serving) -> None:
    document = json.loads(served.ask("GET", "/openapi.json").read())
    assert document["openapi"] == "3.1.0"
    for path, methods in document["paths"].items():
        for method in methods:
            status = served.ask(method.upper(), path.replace("{name}", "fake"), {} if method == "post" else None).status
            assert status not in (405, 500), path
    form = {**document["components"]["schemas"]["ChatRequest"], "components": document["components"]}
    jsonschema.validate({**HELLO, "stop": ["a"], "stream_options": {"include_usage": True}}, form)
    for wrong in ({"model": 1}, {"messages": "Hello"}, {"stop": [1]}, {"temprature": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**HELLO, **wrong}, form)


def test_a_model_that_is_asked_for_by_its_name(served: Serving) -> None:
    found = json.loads(served.ask("GET", "/v1/models/fake").read())
    assert (found["id"], found["object"], found["max_model_len"]) == ("fake", "model", 4096)
    assert served.ask("GET", "/v1/models/other").status == 404


def test_the_status_has_what_its_page_shows(served: Serving) -> None:
    served.post(CHAT, HELLO)
    body = json.loads(served.ask("GET", "/status.json").read())
    (model,) = body["models"]
    assert model["tokens_per_second"] > 0
    assert (model["state"], model["backend"], model["running"], model["waiting"]) == ("loaded", "fake", 0, 0)
    assert (model["thinks"], model["tools"], model["system_role"], model["licence"]) == (False, False, True, "MIT")
    assert body["memory"]["resident_bytes"] > 0


def test_no_line_of_the_log_has_a_prompt_or_an_answer(served: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("edgepack.serve").propagate = True
    served.post(CHAT, {**HELLO, "messages": [{"role": "user", "content": "my secret question"}]})
    served.post(CHAT, {**HELLO, "messages": [{"role": "user", "content": "my secret question"}], "n": 99})
    served.ask("GET", "/secret/path?token=secret")
    until(lambda: sum(record.levelno == logging.INFO for record in caplog.records) >= 3)  # written behind the answers
    lines = [Lines(as_json).format(record) for record in caplog.records for as_json in (True, False)]
    assert not [line for line in lines if "secret" in line or "Hi!" in line]
    written = json.loads(next(line for line in lines if '"model":"fake"' in line))
    assert (written["status"], written["outcome"], written["completion_tokens"]) == (200, "answered", 4)


def test_a_line_of_the_log_is_one_line() -> None:
    record = logging.LogRecord("edgepack.serve", logging.INFO, "", 0, "request", None, None)
    record.fields = {"model": 'a\nlevel=error "b"', "empty": "", "none": 0}
    line = Lines(as_json=False).format(record)
    assert line.endswith('event=request model="a\\\\nlevel=error \\"b\\"" empty="" none=0')
