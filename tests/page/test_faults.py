"""What goes wrong: each is a sentence on the page, with what to do next."""

from __future__ import annotations

import pytest
from page_server import PageServer

pytest.importorskip("playwright", reason="the browser extra is not installed")

from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def ask(page: Page, text: str = "Why?") -> None:
    page.locator("#question").fill(text)
    page.keyboard.press("Enter")


def test_a_full_queue_says_when_to_try_again(page: Page, server: PageServer) -> None:
    page.clock.set_fixed_time("2026-03-01T12:00:00")
    server.refuse(429, "4 requests wait for smollm2 already. Ask again in 7 s.", Retry_After="7")
    ask(page)
    note = page.locator(".note.fault").first
    expect(note).to_contain_text("4 requests wait for smollm2 already. Ask again in 7 s.")
    expect(note).to_contain_text("There should be room again at 12:00:07")
    expect(page.locator("#said")).to_contain_text("4 requests wait")
    server.answer("Because.")
    note.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer .body")).to_have_text("Because.")
    expect(page.locator(".bubble")).to_have_text("Why?")
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (503, "The process of the engine ended with signal 9. Ask again: it is started anew."),
        (400, "The prompt has 9000 tokens, and the context 8192. Shorten it."),
        (504, "The answer took longer than 600 s."),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(page: Page, server: PageServer, status: int, message: str) -> None:
    server.refuse(status, message)
    ask(page)
    expect(page.locator(".answer .note.fault")).to_contain_text(message)


def test_a_refusal_without_words_has_some(page: Page, server: PageServer) -> None:
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    ask(page)
    expect(page.locator(".answer .note.fault")).to_contain_text("The server refused with status 502.")


def test_the_hostile_text_of_a_refusal_is_text(page: Page, server: PageServer) -> None:
    server.refuse(400, "<img src=x onerror=alert(1)>")
    ask(page)
    expect(page.locator(".answer .note.fault")).to_contain_text("<img src=x onerror=alert(1)>")


def test_a_fault_in_the_middle_keeps_what_came(page: Page, server: PageServer) -> None:
    answer = server.answer().text("The beginning")
    answer.event(
        {"error": {"message": "The engine failed. Ask again.", "type": "server_error", "param": None, "code": None}}
    )
    answer.cut()
    ask(page)
    expect(page.locator(".answer .note.fault")).to_contain_text("The engine failed. Ask again.")
    expect(page.locator(".answer .body")).to_have_text("The beginning")


def test_a_connection_that_ends_in_the_middle(page: Page, server: PageServer) -> None:
    server.answer().text("The beginning").cut()
    ask(page)
    expect(page.locator(".answer .note.fault")).to_contain_text("broke off because the connection ended")
    expect(page.locator(".answer .body")).to_have_text("The beginning")


def test_a_stream_that_is_none(page: Page, server: PageServer) -> None:
    answer = server.answer()
    answer.pieces.put(b"data: {not json\n\n")
    answer.cut()
    ask(page)
    expect(page.locator(".answer .note.fault")).to_be_visible()


def test_a_server_that_is_gone_and_comes_back(page: Page, server: PageServer) -> None:
    page.context.set_offline(True)
    ask(page)
    note = page.locator(".answer .note.fault")
    expect(note).to_contain_text("The server does not answer. See whether it still runs, then try again.")
    page.context.set_offline(False)
    server.answer("Because.")
    note.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer .body")).to_have_text("Because.")


def test_a_server_that_is_gone_at_the_beginning(page: Page, server: PageServer) -> None:
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    notice = page.locator("#notice")
    expect(notice).to_contain_text("The server does not answer.")
    page.unroute("**/v1/models")
    notice.get_by_role("button", name="Try again").click()
    expect(notice).to_be_hidden()
    expect(page.locator(".model-name")).to_have_text("smollm2")


def test_a_server_without_models(page: Page, server: PageServer) -> None:
    server.facts["models"].clear()
    page.reload()
    expect(page.locator("#notice")).to_contain_text("The server has no model that answers.")


def test_a_token_is_asked_for_and_kept_in_this_tab(page: Page, server: PageServer) -> None:
    server.token = "right"
    page.reload()
    dialog = page.get_by_role("dialog", name="This server asks for a token")
    field = dialog.get_by_label("Token")
    expect(field).to_be_focused()
    field.fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("The server did not take that token.")
    field.fill("right")
    page.keyboard.press("Enter")
    expect(page.locator(".model-name")).to_have_text("smollm2")
    page.reload()
    expect(page.locator(".model-name")).to_have_text("smollm2")
    server.answer("Because.")
    ask(page)
    expect(page.locator(".answer .body")).to_have_text("Because.")


def test_a_token_that_ends_in_the_middle_is_asked_for_again(page: Page, server: PageServer) -> None:
    server.token = "new"
    ask(page)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Token").fill("new")
    server.answer("Because.")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .body")).to_have_text("Because.")


def test_whoever_has_no_token_is_told_what_is_missing(page: Page, server: PageServer) -> None:
    server.token = "secret"
    ask(page)
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.locator(".answer .note.fault")).to_contain_text("This server wants a token.")


def test_an_answer_that_was_cut_goes_on_where_it_ended(page: Page, server: PageServer) -> None:
    server.answer().text("One, two,").end("length")
    ask(page, "Count.")
    note = page.locator(".answer .note")
    expect(note).to_contain_text("The answer ended at its limit of tokens.")
    server.answer(" three.")
    note.get_by_role("button", name="Go on").click()
    expect(page.locator(".answer .body")).to_have_text("One, two, three.")
    expect(note).to_have_count(0)
    expect(page.locator(".figures")).to_contain_text("24 tokens")
    assert server.bodies[1]["continue_final"] is True
    assert [each["content"] for each in server.bodies[1]["messages"]] == ["Count.", "One, two,"]


def test_thoughts_that_took_all_tokens(page: Page, server: PageServer) -> None:
    server.answer().thought("Well, let me see").end("length")
    ask(page)
    expect(page.locator(".answer .note")).to_contain_text(
        "The limit of tokens was reached within the model's thoughts."
    )


def test_an_empty_answer_says_so_and_is_left_out_afterwards(page: Page, server: PageServer) -> None:
    server.answer("")
    ask(page)
    expect(page.locator(".answer .note")).to_contain_text("The model gave an empty answer.")
    server.answer("Yes.")
    ask(page, "Really?")
    expect(page.locator(".answer .body").last).to_have_text("Yes.")
    assert [each["content"] for each in server.bodies[1]["messages"]] == ["Really?"]


def test_a_conversation_that_is_too_long_to_keep_says_so(page: Page, server: PageServer) -> None:
    server.answer("x" * 6_000_000)
    ask(page)
    expect(page.locator("#unkept")).to_be_visible(timeout=20000)
