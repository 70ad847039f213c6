"""The page's controls: each does its work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="needs playwright")

from paging import ANSWERS, LONG, OTHER, Chat, expected, tokens
from playwright.sync_api import Locator, expect
from serving import SENTENCE, Server


@pytest.mark.parametrize("method", ["high", "low"])
def test_the_model_is_the_method(chat: Chat, server: Server, method: str) -> None:
    expect(chat.at("scheduler")).to_be_enabled()
    chat.choose(method)
    expect(chat.at("scheduler")).to_be_disabled()
    expect(chat.at("high-steps")).to_be_disabled()
    assert tokens(chat.send(SENTENCE)) == expected(server, pmpd={"method": method})


def test_scheduler_high_steps_and_max_new_tokens_take_effect(chat: Chat, server: Server) -> None:
    chat.fill(high_steps="2")
    assert tokens(chat.send(SENTENCE)) == expected(server, pmpd={"high_steps": 2})
    chat.fill(high_steps="")
    chat.at("scheduler").select_option("fixed:4")
    chat.fill(max_new_tokens="4")
    chat.at("clear").click()
    answer = chat.send(SENTENCE)
    assert [precision for _, precision, _ in tokens(answer)] == [8, 4, 4, 4]
    expect(answer.locator(".state")).to_have_text("cut at the most new tokens")


def test_settings_are_sent_and_kept(chat: Chat) -> None:
    chat.fill(temperature="0.5", top_p="0.8", top_k="7", min_p="0.1", seed="42", system="Be brief.")
    chat.page.reload()
    with chat.page.expect_request(ANSWERS) as sent:
        chat.send(SENTENCE)
    body = sent.value.post_data_json
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens")} == {
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 42,
        "max_tokens": 64,
    }


def test_what_cannot_be_sent_is_not_sent(chat: Chat) -> None:
    chat.fill(top_p="1.5")
    chat.at("message").fill(SENTENCE)
    chat.at("send").click()
    expect(chat.page.locator(".turn")).to_have_count(0)
    expect(chat.at("top-p")).to_be_focused()
    expect(chat.at("message")).to_have_value(SENTENCE)


@pytest.mark.parametrize("how", ["click", "Escape"])
def test_stop_ends_an_answer_with_the_tokens_that_are_there(chat: Chat, server: Server, how: str) -> None:
    chat.lengthen()
    before = server.metric("predicted_tokens_total")
    # From within the page: a test would be too late.
    stop = {
        "click": "document.getElementById('stop').click()",
        "Escape": "document.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }))",
    }
    chat.page.evaluate(f"""() => new MutationObserver((_, observer) => {{
        const shown = document.querySelectorAll('.answer .token').length;
        if (!shown) return;
        observer.disconnect();
        document.body.dataset.shown = shown;
        {stop[how]};
    }}).observe(document.getElementById('turns'), {{ childList: true, subtree: true }})""")
    answer = chat.send(SENTENCE)
    expect(answer.locator(".state")).to_have_text("stopped")
    assert len(tokens(answer)) == int(chat.page.locator("body").get_attribute("data-shown") or 0) > 0
    server.wait(lambda: server.metric("requests_running") == 0)
    assert server.metric("predicted_tokens_total") - before < LONG
    chat.page.unroute_all()
    assert len(tokens(chat.send(OTHER))) > 3


def test_side_by_side_answers_in_three_columns_with_their_own_figures(chat: Chat, server: Server) -> None:
    chat.choose("side by side")
    answers = chat.send(SENTENCE)
    for i, method in enumerate(("pmpd", "high", "low")):
        expect(answers.nth(i).locator("h2")).to_have_text(method)
        assert tokens(answers.nth(i)) == expected(server, pmpd={"method": method})
        expect(answers.nth(i).locator(".figures")).to_contain_text("tokens/s")
    expect(answers.nth(2).locator(".figures")).to_contain_text("2.00 bits on average")
    assert len(_corners(answers, "x")) == 3 and len(_corners(answers, "y")) == 1
    chat.page.set_viewport_size({"width": 360, "height": 700})
    expect(chat.at("settings")).to_be_hidden()
    assert len(_corners(answers, "x")) == 1 and len(_corners(answers, "y")) == 3


def _corners(locator: Locator, axis: str) -> set[float]:
    return {one.bounding_box()[axis] for one in locator.all()}  # type: ignore[index, literal-required]


def test_each_method_goes_on_with_its_own_answers(chat: Chat) -> None:
    chat.choose("side by side")
    first = chat.send(SENTENCE)
    given = [text.strip() for text in first.locator(".tokens").all_inner_texts()]
    sent: list[Any] = []
    chat.page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    chat.send(OTHER)
    assert [body["pmpd"]["method"] for body in sent] == ["pmpd", "high", "low"]
    assert [body["messages"][1]["content"].strip() for body in sent] == given


def test_edit_replaces_the_last_message_and_regenerate_its_answers(chat: Chat, server: Server) -> None:
    chat.send(OTHER)
    chat.send(OTHER)
    chat.button("Edit").click()
    expect(chat.at("message")).to_have_value(OTHER)
    chat.page.keyboard.press("Escape")
    expect(chat.at("message")).to_have_value("")
    chat.button("Edit").click()
    chat.send(SENTENCE)
    assert chat.page.locator(".message p").all_inner_texts() == [OTHER, SENTENCE]
    chat.at("clear").click()
    chat.send(SENTENCE)
    chat.choose("low")
    chat.button("Regenerate").click()
    assert tokens(chat.finished()) == expected(server, pmpd={"method": "low"})
    expect(chat.page.locator(".turn")).to_have_count(1)


def test_clear_can_be_undone(chat: Chat) -> None:
    shown = tokens(chat.send(SENTENCE))
    chat.at("clear").click()
    expect(chat.page.locator(".turn")).to_have_count(0)
    expect(chat.at("welcome")).to_be_visible()
    chat.button("Undo").click()
    assert tokens(chat.finished()) == shown


def test_copy_and_export_hold_the_conversation(chat: Chat, server: Server) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown = tokens(chat.send(SENTENCE))
    text = "".join(text for text, _, _ in shown)
    chat.button("Copy").click()
    expect(chat.at("announcer")).to_have_text("Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()").strip() == text
    document = json.loads(_download(chat, "JSON"))
    assert document["model"] == "translator-7m"
    [turn] = document["turns"]
    [answer] = turn["answers"]
    assert (turn["message"], answer["text"].strip(), answer["method"]) == (SENTENCE, text, "pmpd")
    assert answer["precisions"] == server.chat().json["pmpd"]["precisions"]
    markdown = _download(chat, "Markdown")
    assert markdown.startswith("# translator-7m\n\n## You\n\n" + SENTENCE)
    assert f"## pmpd, static\n\n{text}\n\n*8 bits, " in markdown


def _download(chat: Chat, kind: str) -> str:
    with chat.page.expect_download() as download:
        chat.button(kind).click()
    return Path(download.value.path()).read_text(encoding="utf-8")
