"""The page in a browser. A test fails where something came from elsewhere, broke the policy, or failed unseen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from page_server import PageServer, page_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PATIENCE_MS = 30_000  # of a machine that does much else
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_VIOLATIONS = """
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => {
  console.error(`policy: ${violatedDirective} ${blockedURI}`);
});
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser extra is not installed")
    found = os.environ.get("EDGEPACK_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no chromium on this system, and EDGEPACK_CHROMIUM names none")
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found)
        yield started
        started.close()


@pytest.fixture
def server() -> Iterator[PageServer]:
    with page_server() as served:
        yield served


@pytest.fixture
def view() -> dict[str, object]:
    """How the browser is set; a test changes it by parametrising ``view``."""
    return {}


@pytest.fixture
def context(browser: Browser, server: PageServer, view: dict[str, object]) -> Iterator[BrowserContext]:
    made = browser.new_context(**view)  # type: ignore[arg-type]
    made.set_default_timeout(PATIENCE_MS)
    made.add_init_script(_VIOLATIONS)
    wrong: list[str] = []
    made.on("request", lambda request: None if request.url.startswith(server.url) else wrong.append(request.url))
    # That a request was refused is what some tests are about; whatever else a browser complains of is a defect.
    made.on(
        "console",
        lambda said: wrong.append(said.text) if said.type == "error" and "Failed to load" not in said.text else None,
    )
    made.on("weberror", lambda error: wrong.append(str(error.error)))
    yield made
    made.close()
    assert wrong == []


@pytest.fixture
def page(context: BrowserContext, server: PageServer) -> Page:
    """The chat, opened."""
    made = context.new_page()
    made.goto(server.url)
    made.wait_for_selector("#model > *")
    return made
