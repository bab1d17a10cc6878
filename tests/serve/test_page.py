"""The page's files and how a browser is told to treat them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import Serving, serving

from edgepack import fake
from edgepack_serve.doors.page import Page

FILES = sorted(Page()._files)


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with serving({"fake": fake.model}, token="correct-horse-battery-staple") as running:
        yield running


@pytest.mark.skipif(not FILES, reason="the page is not there")
@pytest.mark.parametrize("path", ["/", "/status", *(f"/static/{name}" for name in FILES)])
def test_a_file_comes_with_its_type_and_runs_nothing_of_elsewhere(served: Serving, path: str) -> None:
    response = served.ask("GET", path)
    assert response.status == 200
    assert response.read()
    policy = response.getheader("Content-Security-Policy", "")
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert response.getheader("Content-Type", "").split("/")[0] in ("text", "image")
    again = served.ask("GET", path, headers={"If-None-Match": response.getheader("ETag", "")})
    assert (again.status, again.read()) == (304, b"")


def test_what_is_no_file_of_the_page_is_not_there(served: Serving) -> None:
    for path in ("/static/app.py", "/static/.", "/static/..", "/static/page.py"):
        assert served.ask("GET", path).status == 404
