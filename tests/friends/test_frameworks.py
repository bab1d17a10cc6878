"""The blocks of docs/friends.md, as they stand, before a server with the demo bundle."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Serving, serving_bundles

from edgepack_packager.build import Built

pytestmark = pytest.mark.friends
PAGE = (Path(__file__).parents[2] / "docs" / "friends.md").read_text("utf-8")


@pytest.fixture(scope="module")
def server(demo_bundle: Built) -> Iterator[Serving]:
    with serving_bundles(f"demo={demo_bundle.path}") as running:
        yield running


def block(heading: str, server: Serving) -> str:
    (code,) = re.findall(rf"^## {heading}\n.*?^```python\n(.*?)^```$", PAGE, re.M | re.S)
    assert "http://127.0.0.1:8080" in code
    return code.replace("http://127.0.0.1:8080", server.url)


@pytest.mark.parametrize(
    ("heading", "last"), [("LangChain", "(Tom|Mia) is (glad|hungry|asleep)."), ("LlamaIndex", "Edgepack is a tool .+")]
)
def test_it_runs(heading: str, last: str, server: Serving) -> None:
    python = os.environ.get("EDGEPACK_FRIENDS")
    if not python:
        pytest.skip("EDGEPACK_FRIENDS names no Python with the friends extra")
    ended = subprocess.run([python, "-c", block(heading, server)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    streamed, answered = ended.stdout.strip().split("\n")
    assert streamed.startswith("A token is a small piece of text")
    assert re.fullmatch(last, answered.strip())
