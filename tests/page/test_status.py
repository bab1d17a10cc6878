"""The status page."""

from __future__ import annotations

import pytest
from page_server import MODEL, PageServer

pytest.importorskip("playwright", reason="the browser extra is not installed")

from playwright.sync_api import BrowserContext, Page, expect

pytestmark = pytest.mark.browser


@pytest.fixture
def page(context: BrowserContext, server: PageServer) -> Page:
    """The status page, with a clock that the test moves."""
    made = context.new_page()
    made.clock.install(time="2026-03-01T12:00:00")
    made.clock.pause_at("2026-03-01T12:00:01")
    made.goto(f"{server.url}/status")
    made.wait_for_selector(".model")
    return made


def facts(page: Page, at: int = 0) -> dict[str, str]:
    pairs = page.locator(".model").nth(at).locator("dl > div").all()
    return {each.locator("dt").inner_text(): each.locator("dd").inner_text() for each in pairs}


def test_it_says_what_the_server_says(page: Page, server: PageServer) -> None:
    assert facts(page) == {
        "Variant": "gguf-q4_k_m",
        "Engine": "gguf, llama.cpp b6500",
        "Device": "cpu",
        "Context": "8,192 tokens",
        "At the same time": "4 answers",
        "Requests": "1 running, 0 waiting",
        "Memory": "258 MiB",
        "Speed": "42.4 tokens a second",
        "Can": "call tools, take a system prompt",
        "Licence": "apache-2.0",
        "Why this variant": MODEL["reason"],
        "Bundle": MODEL["bundle_id"],
    }
    shown = page.locator("#server > div").all_inner_texts()
    assert shown == [
        "Version\n0.1.0",
        "Running for\n2 h 3 min",
        "Memory of the server\n393 MiB",
        "Memory that is free\n12.1 GiB",
    ]
    expect(page.locator(".state")).to_have_text("Loaded")


def test_it_is_refreshed_and_what_is_unchanged_stays(page: Page, server: PageServer) -> None:
    page.evaluate("document.querySelector('.model').marked = true")
    server.facts["models"].append(
        {**MODEL, "name": "qwen3", "state": "loading", "memory_bytes": None, "tokens_per_second": None}
    )
    page.clock.run_for(3500)
    expect(page.locator(".model")).to_have_count(2)
    expect(page.locator(".state").nth(1)).to_have_text("Loading")
    assert page.evaluate("document.querySelector('.model').marked") is True
    assert not {"Memory", "Speed"} & facts(page, 1).keys()
    server.facts["models"].pop(0)
    page.clock.run_for(3500)
    expect(page.locator(".model")).to_have_count(1)
    expect(page.locator("h3")).to_have_text("qwen3")


def test_a_server_that_goes_and_comes_back(page: Page, server: PageServer) -> None:
    page.context.set_offline(True)
    page.clock.run_for(3500)
    expect(page.locator("#notice")).to_contain_text("The server does not answer.")
    page.context.set_offline(False)
    page.clock.run_for(3500)
    expect(page.locator("#notice")).to_be_hidden()


def test_facts_that_are_not_known(page: Page, server: PageServer) -> None:
    server.facts["memory"]["available_bytes"] = None
    server.facts["models"][:] = [{"name": "bare", "state": "idle"}]
    page.clock.run_for(3500)
    expect(page.locator("h3")).to_have_text("bare")
    assert facts(page) == {"Requests": "0 running, 0 waiting"}
    expect(page.locator("#server")).to_contain_text("unknown")


def test_the_hostile_text_of_a_bundle_is_text(page: Page, server: PageServer) -> None:
    server.facts["models"][0].update(name="<img src=x onerror=alert(1)>", licence="<b>mine</b>")
    page.clock.run_for(3500)
    expect(page.locator("h3")).to_have_text("<img src=x onerror=alert(1)>")
    assert facts(page)["Licence"] == "<b>mine</b>"


def test_it_asks_for_the_token(page: Page, server: PageServer) -> None:
    server.token = "secret"
    page.clock.run_for(3500)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Token").fill("secret")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    page.reload()
    expect(page.locator(".model")).to_have_count(1)


def test_the_chat_and_the_status_lead_to_each_other(page: Page, server: PageServer) -> None:
    page.get_by_role("link", name="Back to the chat").click()
    expect(page.locator("#question")).to_be_visible()
    page.get_by_role("link", name="Status").click()
    expect(page.locator(".model")).to_have_count(1)
