"""The page before the real server and a real bundle: what it sends is taken, and what it needs is served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from page_server import PAGE
from serving import Serving, serving, serving_bundles

from edgepack import fake
from edgepack_packager.build import Recipe, build

pytest.importorskip("playwright", reason="the browser extra is not installed")

from playwright.sync_api import BrowserContext, Page, expect

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def bundle_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    out = tmp_path_factory.mktemp("page") / "demo.edgepack"
    build("demo", Recipe(("gguf",), ("q4",)), out)
    with serving_bundles(f"demo={out}") as running:
        yield running


@pytest.fixture
def server(bundle_server: Serving) -> Serving:
    """What the browser may reach."""
    return bundle_server


def ask(page: Page, text: str) -> None:
    page.locator("#question").fill(text)
    page.keyboard.press("Enter")


def done(page: Page, answers: int = 1) -> None:
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(answers)


def test_a_bundle_answers_with_all_that_can_be_set(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    for name, value in {
        "temperature": 0.1,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "max_tokens": 4,
        "seed": 7,
    }.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_role("button", name="Done").click()
    ask(page, "What is edgepack?")
    done(page)
    expect(page.locator(".figures")).to_contain_text("4 tokens")
    first = page.locator(".body").inner_text()
    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".figures")).to_contain_text("8 tokens")
    assert page.locator(".body").inner_text().startswith(first)
    ask(page, "And what is a bundle?")
    done(page, 2)
    expect(page.locator(".note.fault:visible")).to_have_count(0)


def test_a_value_that_the_server_refuses_is_told_in_its_words(page: Page) -> None:
    ask(page, "word " * 3000)
    expect(page.locator(".answer .note.fault")).to_contain_text("1024")


def test_the_status_page_shows_the_plan(page: Page) -> None:
    page.get_by_role("link", name="Status").click()
    expect(page.locator(".model h3")).to_have_text("demo")
    expect(page.locator(".model")).to_contain_text("gguf-q4")
    expect(page.locator(".model")).to_contain_text("Why this variant")


def test_every_file_of_the_page_is_served_and_no_other(server: Serving) -> None:
    for name in (each.name for each in PAGE.iterdir()):
        assert server.ask("GET", f"/static/{name}").status == 200
    for name in ("", "page.py", "../page.py", "..%2fcli.py", "%2e%2e/cli.py", "index.html/"):
        assert server.ask("GET", f"/static/{name}").status == 404


class TestFakes:
    """What a small demo cannot show: thoughts, several models, a token."""

    @pytest.fixture
    def server(self) -> Iterator[Serving]:
        models = {
            "plain": lambda: fake.model(says="Good day!"),
            "thinker": lambda: fake.model(says="Good day!", thinks="A greeting."),
        }
        with serving(models, token="secret-of-the-house") as running:
            yield running

    def test_a_token_a_choice_and_thoughts(self, context: BrowserContext, server: Serving) -> None:
        page = context.new_page()
        page.goto(server.url)
        page.locator("#token-field").fill("secret-of-the-house")
        page.keyboard.press("Enter")
        page.get_by_label("Model").select_option("thinker")
        ask(page, "Hello")
        done(page)
        expect(page.locator(".body")).to_have_text("Good day!")
        page.locator("summary").click()
        expect(page.locator(".thoughts div")).to_have_text("A greeting.")
        page.get_by_label("Model").select_option("plain")
        ask(page, "Hello again")
        done(page, 2)
        expect(page.locator("summary:visible")).to_have_count(1)
