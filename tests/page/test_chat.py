"""What people do on the page: ask, read, stop, ask again, set, leave and come back."""

from __future__ import annotations

import re

import pytest
from page_server import MODEL, PageServer

pytest.importorskip("playwright", reason="the browser extra is not installed")

from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def ask(page: Page, text: str) -> None:
    page.locator("#question").fill(text)
    page.keyboard.press("Enter")


def done(page: Page, answers: int = 1) -> None:
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(answers)


def messages(server: PageServer, at: int = -1) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in server.bodies[at]["messages"]]


def test_an_answer_grows_while_it_comes(page: Page, server: PageServer) -> None:
    answer = server.answer()
    page.locator("#question").press_sequentially("What is edgepack?")
    page.keyboard.press("Enter")
    expect(page.locator(".waiting")).to_be_visible()
    expect(page.locator("#question")).to_have_value("")
    answer.text("A **packager** ")
    expect(page.locator(".answer strong")).to_have_text("packager")
    expect(page.locator("#said")).to_have_text("Waiting for the first word")
    answer.text("of small models.").end()
    done(page)
    expect(page.locator(".answer .body")).to_have_text("A packager of small models.")
    expect(page.locator("#said")).to_have_text("A packager of small models.")
    expect(page.locator(".figures")).to_have_text("12 tokens, 41.3 a second")
    assert server.bodies == [
        {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "What is edgepack?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_the_next_question_brings_what_was_said(page: Page, server: PageServer) -> None:
    server.answer("One.")
    ask(page, "First?")
    done(page)
    server.answer("Two.")
    ask(page, "Second?")
    done(page, 2)
    assert messages(server) == [("user", "First?"), ("assistant", "One."), ("user", "Second?")]


def test_shift_and_enter_begin_a_line(page: Page, server: PageServer) -> None:
    server.answer("Yes.")
    page.locator("#question").fill("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    done(page)
    assert messages(server) == [("user", "one\ntwo")]


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_request_and_keeps_what_came(page: Page, server: PageServer, how: str) -> None:
    answer = server.answer().text("The beginning")
    ask(page, "Tell me all.")
    expect(page.locator(".answer .body")).to_have_text("The beginning")
    page.get_by_role("button", name="Stop").click() if how == "button" else page.keyboard.press("Escape")
    done(page)
    assert answer.left.wait(10)
    expect(page.locator(".answer .body")).to_have_text("The beginning")
    expect(page.locator("#question")).to_be_focused()
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_question_is_edited_and_what_came_after_it_left_out(page: Page, server: PageServer) -> None:
    for question, text in (("First?", "One."), ("Second?", "Two.")):
        server.answer(text)
        ask(page, question)
        expect(page.locator(".answer[aria-busy=false] .body").last).to_have_text(text)
    page.locator(".question").first.get_by_role("button", name="Edit").click()
    field = page.get_by_role("textbox", name="Edit the question")
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".question").first.get_by_role("button", name="Edit")).to_be_focused()
    page.keyboard.press("Enter")
    field.fill("Another?")
    server.answer("Three.")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(1)
    expect(page.locator(".answer .body")).to_have_text("Three.")
    expect(page.locator(".bubble")).to_have_text("Another?")
    assert messages(server) == [("user", "Another?")]


def test_any_answer_is_asked_for_again(page: Page, server: PageServer) -> None:
    for question, text in (("First?", "One."), ("Second?", "Two.")):
        server.answer(text)
        ask(page, question)
        expect(page.locator(".answer[aria-busy=false] .body").last).to_have_text(text)
    server.answer("Uno.")
    page.locator(".answer").first.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_have_count(1)
    expect(page.locator(".answer .body")).to_have_text("Uno.")
    assert messages(server) == [("user", "First?")]


def test_asking_again_stops_the_answer_on_its_way(page: Page, server: PageServer) -> None:
    server.answer("One.")
    ask(page, "First?")
    done(page)
    held = server.answer().text("Two")
    ask(page, "Second?")
    expect(page.locator(".answer .body").last).to_have_text("Two")
    server.answer("Uno.")
    page.locator(".answer").first.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_have_count(1)
    expect(page.locator(".answer .body")).to_have_text("Uno.")
    assert held.left.wait(10)


def test_one_answer_at_a_time(page: Page, server: PageServer) -> None:
    answer = server.answer()
    ask(page, "First?")
    expect(page.locator(".waiting")).to_be_visible()
    ask(page, "Second?")
    expect(page.locator("#said")).to_have_text("An answer is on its way. Esc stops it.")
    expect(page.locator("#question")).to_have_value("Second?")
    answer.end()
    done(page)
    assert len(server.bodies) == 1


def test_a_reload_brings_the_conversation_back(page: Page, server: PageServer) -> None:
    server.answer("It is `kept`.")
    ask(page, "Is it kept?")
    done(page)
    page.reload()
    expect(page.locator(".bubble")).to_have_text("Is it kept?")
    expect(page.locator(".answer code")).to_have_text("kept")
    server.answer("Two.")
    ask(page, "Second?")
    done(page, 2)
    assert messages(server)[:2] == [("user", "Is it kept?"), ("assistant", "It is `kept`.")]


def test_an_answer_that_a_reload_cut_says_so(page: Page, server: PageServer) -> None:
    server.answer().text("Half of")
    ask(page, "All?")
    expect(page.locator(".answer .body")).to_have_text("Half of")
    page.reload()
    expect(page.locator(".answer .body")).to_have_text("Half of")
    expect(page.locator(".answer .note")).to_contain_text("broke off because the page was left")


def test_a_new_chat_forgets_the_old(page: Page, server: PageServer) -> None:
    server.answer("One.")
    ask(page, "First?")
    done(page)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#welcome")).to_be_visible()
    page.reload()
    expect(page.locator(".question")).to_have_count(0)


def test_the_settings_are_sent_and_kept(page: Page, server: PageServer) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Answer in one word.")
    given = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 64, "seed": 7}
    for name, value in given.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_role("button", name="Done").click()
    page.reload()
    server.answer("Yes.")
    ask(page, "Really?")
    done(page)
    body = server.bodies[0]
    assert {name: body[name] for name in given} == given
    assert messages(server) == [("system", "Answer in one word."), ("user", "Really?")]
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name=re.compile("Back to the model")).click()
    page.get_by_role("button", name="Done").click()
    server.answer("Yes.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(1)
    assert server.bodies[1].keys() == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize("value", ["-1", "5.5"])
def test_a_setting_out_of_range_is_not_taken(page: Page, value: str) -> None:
    page.get_by_role("button", name="Settings").click()
    page.locator("#temperature").fill(value)
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#settings")).to_be_visible()
    expect(page.locator("#temperature")).to_be_focused()


def test_a_model_without_a_system_role_gets_no_system_prompt(page: Page, server: PageServer) -> None:
    server.facts["models"][0]["system_role"] = False
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("System prompt")).to_be_disabled()
    expect(page.locator("#system-hint")).to_have_text("This model knows no system prompt.")


def test_the_model_is_chosen_where_there_are_several(page: Page, server: PageServer) -> None:
    server.facts["models"].append({**MODEL, "name": "qwen3"})
    page.reload()
    page.get_by_label("Model").select_option("qwen3")
    page.reload()
    server.answer("Yes.")
    ask(page, "Which one?")
    done(page)
    assert server.bodies[0]["model"] == "qwen3"


def test_a_model_that_only_embeds_is_not_offered(page: Page, server: PageServer) -> None:
    server.facts["models"].insert(0, {**MODEL, "name": "vectors", "embeds": True})
    page.reload()
    expect(page.locator(".model-name")).to_have_text("smollm2")


def test_thoughts_are_folded_away(page: Page, server: PageServer) -> None:
    answer = server.answer().thought("They want **a** number")
    ask(page, "How many?")
    expect(page.locator("summary")).to_have_text("Thinking…")
    answer.thought(", so I count.").text("Three.").end()
    done(page)
    expect(page.locator("summary")).to_have_text("Thoughts")
    expect(page.locator(".thoughts div")).to_be_hidden()
    page.locator("summary").click()
    expect(page.locator(".thoughts div")).to_have_text("They want **a** number, so I count.")
    server.answer("Four.")
    ask(page, "And now?")
    done(page, 2)
    assert messages(server)[1] == ("assistant", "Three.")


def test_code_and_answers_are_copied(page: Page, server: PageServer) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    server.answer("Do:\n```sh\nls -l\n```\nthen *look*.")
    ask(page, "How?")
    done(page)
    page.locator(".code").get_by_role("button", name="Copy").click()
    expect(page.locator("#said")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "ls -l"
    page.locator(".foot").get_by_role("button", name="Copy").click()
    expect(page.locator(".foot .copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "Do:\n```sh\nls -l\n```\nthen *look*."


def test_copying_needs_no_secure_context(page: Page, server: PageServer) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    server.answer("```\nls\n```")
    ask(page, "How?")
    done(page)
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not here')); }")
    page.locator(".code").get_by_role("button", name="Copy").click()
    expect(page.locator(".code .copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "ls"


SELECT = """() => {
  const text = document.querySelector("pre code").firstChild;
  getSelection().setBaseAndExtent(text, 0, text, 5);
}"""


def test_what_is_selected_in_growing_code_stays_selected(page: Page, server: PageServer) -> None:
    answer = server.answer().text("```\nfirst line\n")
    ask(page, "Code?")
    expect(page.locator("pre")).to_contain_text("first line")
    page.evaluate(SELECT)
    answer.text("second line\n")
    expect(page.locator("pre")).to_contain_text("second line")
    assert page.evaluate("getSelection().toString()") == "first"
    answer.text("```\n").end()
    done(page)


def test_the_page_follows_until_its_reader_scrolls_back(page: Page, server: PageServer) -> None:
    answer = server.answer().text("line\n\n" * 60)
    ask(page, "Much?")
    expect(page.locator(".body p").nth(59)).to_be_in_viewport()
    page.mouse.move(400, 300)
    page.mouse.wheel(0, -900)
    expect(page.get_by_role("button", name="To the newest text")).to_be_visible()
    answer.text("more\n\n" * 20)
    expect(page.locator(".body p")).to_have_count(80)
    expect(page.locator(".body p").last).not_to_be_in_viewport()
    page.get_by_role("button", name="To the newest text").click()
    expect(page.locator(".body p").last).to_be_in_viewport()
    answer.end()
    done(page)


def test_the_theme_is_switched_and_kept(page: Page) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    button = page.get_by_role("button", name="Dark theme")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert page.evaluate(ground) != light
    page.reload()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert page.evaluate(ground) != light
