"""The page for everyone: keyboard, screen readers, narrow windows, light and dark."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("playwright", reason="needs playwright")

from paging import MARKDOWN, Chat, tokens
from playwright.sync_api import expect
from serving import SENTENCE


def test_all_is_reached_and_done_with_the_keyboard(chat: Chat) -> None:
    keyboard = chat.page.keyboard
    expect(chat.at("message")).to_be_focused()
    keyboard.type("Ein Hund")
    keyboard.press("Shift+Enter")
    keyboard.type("schläft.")
    expect(chat.at("message")).to_have_value("Ein Hund\nschläft.")
    keyboard.press("Enter")
    chat.finished()
    expect(chat.at("message")).to_be_focused()
    keyboard.type("Danke")
    assert [_tab(chat) for _ in range(2)] == ["send", "clear"]
    keyboard.press("Shift+Tab")
    keyboard.press("Enter")
    chat.finished()
    expect(chat.page.locator(".turn")).to_have_count(2)
    chat.page.reload()
    expect(chat.at("message")).to_be_focused()
    chat.page.locator(".skip").focus()
    reached = [_tab(chat) for _ in range(19)]
    assert reached[:4] == ["precision", "theme", "settings-toggle", "conversation"]
    assert reached[4:9] == ["tokens", "Copy", "Edit", "tokens", "Copy"]  # one stop for a text, whatever its length
    assert reached[9:] == ["Regenerate", "message", "send", "clear", "pmpd", *SETTINGS[:5]]


SETTINGS = ["scheduler", "high-steps", "max-new-tokens", "temperature", "top-p"]


def _tab(chat: Chat) -> str:
    """What the next Tab reaches."""
    chat.page.keyboard.press("Tab")
    read = (
        "({ id, value, className, textContent }) => id || value || (className === 'tokens' ? className : textContent)"
    )
    return str(chat.page.locator(":focus").evaluate(read))


def test_finished_answers_are_announced_and_tokens_are_not(chat: Chat) -> None:
    chat.page.evaluate("""() => {
        window.said = [];
        const announcer = document.getElementById('announcer');
        new MutationObserver(() => window.said.push(announcer.textContent)).observe(announcer, { childList: true });
    }""")
    text = "".join(text for text, _, _ in tokens(chat.send(SENTENCE)))
    assert [said for said in chat.page.evaluate("window.said") if said] == [f"pmpd: {text}"]
    assert chat.page.locator("#turns [aria-live], #readouts [aria-live], #turns [role=status]").count() == 0


def test_nothing_moves_while_an_answer_grows(chat: Chat) -> None:
    chat.lengthen()
    chat.page.set_viewport_size({"width": 1280, "height": 480})
    chat.page.evaluate("""() => {
        window.places = new Set();
        const ids = ['readouts', 'message', 'send', 'settings', 'legend', 'conversation', 'view'];
        const note = () => ids.forEach((id) => {
            const { x, y, width, height } = document.getElementById(id).getBoundingClientRect();
            window.places.add([id, x, y, width, height].join());
        });
        new MutationObserver(note).observe(document.getElementById('turns'), { childList: true, subtree: true });
    }""")
    chat.send(SENTENCE)
    assert len(chat.page.evaluate("[...window.places]")) == 7
    end = "one => Math.round(one.scrollHeight - one.scrollTop - one.clientHeight)"
    assert chat.at("conversation").evaluate(end) <= 1  # and the end is in sight


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(chat: Chat, scheme: Any, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    chat.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    chat.choose("side by side")
    chat.send(SENTENCE)
    chat.answer_with(MARKDOWN)
    chat.send("Markdown")
    chat.page.set_viewport_size({"width": width, "height": 720})
    for view in ("Formatted", "Precision"):
        chat.choose(view)
        assert _serious(axe.run(chat.page)) == []
        assert chat.page.evaluate("document.documentElement.scrollWidth") <= width
    chat.at("settings-toggle").click()
    expect(chat.at("settings")).to_be_visible(visible=width == 360)  # a wide window had them from the beginning
    assert _serious(axe.run(chat.page)) == []


def _serious(results: Any) -> list[str]:
    found = [one for one in results.response["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {node['html']} {node['failureSummary']}" for one in found for node in one["nodes"]]
