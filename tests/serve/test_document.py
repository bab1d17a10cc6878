"""The server as its own /openapi.json describes it: schemathesis asks for what that allows, and for what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from serving import Serving, serving

from edgepack import fake
from edgepack_serve.hosting.settings import Settings

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    models = {
        "fake": lambda: fake.model(says="Good day!", thinks="A greeting.", sequences=4),
        "vectors": lambda: fake.embedding_model(),
    }
    with serving(models, settings=Settings(parallel=4)) as running:
        yield running


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_the_server_answers_as_its_document_says(served: Serving, mode: str, portion: Callable[[int], int]) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    # Fields that exclude each other, such as tools and response_format, cannot be said in a schema.
    excluded: list[Any] = [positive_data_acceptance]
    generation = schemathesis.GenerationMode[mode]
    asked = 0
    for found in schemathesis.openapi.from_url(f"{served.url}/openapi.json").get_all_operations():
        operation = found.ok()
        if generation is generation.NEGATIVE and operation.method == "get":
            continue  # nothing of them can be wrong

        @settings(max_examples=portion(20), deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=generation))
        def ask(case: Any) -> None:
            case.call_and_validate(excluded_checks=excluded)

        ask()
        asked += 1
    assert asked >= 9
