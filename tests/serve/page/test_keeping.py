"""What the page keeps, and what it does where something is refused or gone."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright", reason="needs playwright")

from paging import ANSWERS, Chat, tokens
from playwright.sync_api import Browser, expect
from serving import SENTENCE, Server, serve


def test_a_reload_keeps_conversation_theme_and_view(chat: Chat) -> None:
    chat.choose("side by side")
    shown = [tokens(answer) for answer in chat.send(SENTENCE).all()]
    chat.at("theme").click()
    dark = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    chat.page.reload()
    assert [tokens(answer) for answer in chat.finished().all()] == shown
    assert chat.page.evaluate("getComputedStyle(document.body).backgroundColor") == dark != "rgb(250, 249, 247)"
    expect(chat.page.get_by_role("radio", name="side by side")).to_be_checked()
    chat.choose("Formatted")
    chat.page.reload()
    expect(chat.page.locator(".answer .body p")).to_have_count(3)


def test_a_reload_in_mid_answer_keeps_what_is_there(chat: Chat) -> None:
    chat.lengthen()
    chat.page.evaluate("""() => new MutationObserver((_, observer) => {
        if (!document.querySelector('.answer .token')) return;
        observer.disconnect();
        location.reload();
    }).observe(document.getElementById('turns'), { childList: true, subtree: true })""")
    with chat.page.expect_navigation():
        chat.at("message").fill(SENTENCE)
        chat.at("message").press("Enter")
    answer = chat.finished()
    expect(answer.locator(".state")).to_have_text("stopped")
    assert len(tokens(answer)) > 0


def test_a_browser_that_keeps_nothing_still_chats(browser: Browser, server: Server) -> None:
    context = browser.new_context()
    context.add_init_script(
        "for (const area of ['localStorage', 'sessionStorage'])"
        " Object.defineProperty(window, area, { get() { throw new DOMException('no'); } });"
    )
    chat = Chat(context.new_page())
    chat.open(server.url)
    assert len(tokens(chat.send(SENTENCE))) > 3
    expect(chat.at("kept")).to_contain_text("keeps nothing")
    assert chat.errors == []
    context.close()


def test_what_is_kept_is_bounded_and_loses_the_oldest_first(chat: Chat) -> None:
    kept = chat.page.evaluate("""async () => {
        const { shorten } = await import('/page/storage.js');
        const tokens = Array(100).fill({ text: 'x' });
        const turn = (message) => ({ message, answers: [{ text: 'x'.repeat(50), tokens }] });
        const turns = ['a', 'b', 'c'].map(turn);
        return [5000, 2500, 1600, 10].map((most) =>
            shorten(turns, most).map(({ message, answers }) => message + answers[0].tokens.length));
    }""")
    assert kept == [["a100", "b100", "c100"], ["a0", "b0", "c100"], ["b0", "c100"], ["c100"]]


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Browser) -> None:
    with serve("--api-key", "sesame") as locked:
        context = browser.new_context()
        chat = Chat(context.new_page())
        chat.page.goto(locked.url)
        expect(chat.at("key")).to_be_focused()
        chat.at("key").fill("wrong")
        chat.page.keyboard.press("Enter")
        expect(chat.at("key")).to_be_focused()
        chat.at("key").fill("sesame")
        chat.page.keyboard.press("Enter")
        expect(chat.at("model-name")).to_have_text("translator-7m")
        chat.page.reload()
        assert len(tokens(chat.send(SENTENCE))) > 3
        assert chat.page.evaluate("Object.values(localStorage).some((value) => value.includes('sesame'))") is False
        context.close()


def test_a_busy_server_and_one_that_is_gone_are_told(browser: Browser, server: Server) -> None:
    context = browser.new_context()
    chat = Chat(context.new_page())
    chat.open(server.url)
    busy = {"error": {"message": "full"}}
    chat.page.route(ANSWERS, lambda route: route.fulfill(status=429, headers={"Retry-After": "3"}, json=busy))
    state = chat.send(SENTENCE).locator(".state")
    expect(state).to_have_text("The server is busy. Try again in 3 s.")
    chat.page.unroute_all()
    chat.page.route(ANSWERS, lambda route: route.abort())
    chat.button("Regenerate").click()
    expect(state).to_have_text("The server does not answer. Is it still running?")
    chat.page.unroute_all()
    cut = 'data: {"choices": [{"delta": {"content": "A"}}]}\n\n'
    chat.page.route(ANSWERS, lambda route: route.fulfill(content_type="text/event-stream", body=cut))
    with chat.page.expect_request(ANSWERS) as sent:
        state = chat.send(SENTENCE).locator(".state")
    expect(state).to_have_text("The connection ended before the answer did.")
    assert len(sent.value.post_data_json["messages"]) == 1  # a message without an answer would upset templates
    chat.page.unroute_all()
    chat.button("Regenerate").click()
    assert len(tokens(chat.finished())) > 3
    context.close()
