"""Answers on the page: their tokens, read-outs, timeline and what is told about them."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright", reason="needs playwright")

from paging import RANKS, Chat, expected, tokens
from playwright.sync_api import Browser, expect
from serving import SENTENCE, Server


def test_marked_tokens_are_those_of_the_apis_precisions(chat: Chat, server: Server) -> None:
    shown = tokens(chat.send(SENTENCE))
    assert shown == expected(server)
    assert {rank for _, _, rank in shown} >= {"high", "middle"}


def test_low_tokens_are_orange_and_marked_without_colour_too(chat: Chat) -> None:
    chat.choose("side by side")
    answers = chat.send(SENTENCE)
    read = "one => { const s = getComputedStyle(one); return [s.color, s.textDecorationLine, s.textDecorationStyle]; }"
    styles = {method: answers.nth(i).locator(".token").first.evaluate(read) for i, method in ((1, "high"), (2, "low"))}
    assert styles["low"] == ["rgb(194, 78, 0)", "underline", "dotted"]
    assert styles["high"] == ["rgb(31, 35, 40)", "none", "solid"]
    legend = chat.page.locator("#legend .token")
    assert legend.all_text_contents() == ["8 bits", "4 bits", "2 bits"]
    assert [legend.nth(i).evaluate(read)[1] for i in range(3)] == ["none", "underline", "underline"]


def test_read_outs_timeline_and_figures_are_the_apis(chat: Chat, server: Server) -> None:
    answer = chat.send(SENTENCE)
    summary = server.chat().json["pmpd"]
    expect(chat.at("bits")).to_have_text(f"{summary['average_bitwidth']:.2f}")
    expect(chat.at("count")).to_have_text(str(len(summary["precisions"])))
    assert float(chat.at("speed").inner_text()) > 0
    expect(answer.locator(".figures")).to_contain_text(f"{summary['average_bpw']:.2f} bpw")
    expect(answer.locator(".figures")).to_contain_text(f"prompt {server.chat().json['usage']['prompt_tokens']} tokens")
    bars = answer.locator("rect").evaluate_all("all => all.map(one => [+one.getAttribute('width'), one.classList[0]])")
    precisions = summary["precisions"]
    assert bars == [[precisions.count(one), RANKS[one]] for one in (8, 4, 2) if one in precisions]
    switches = [f"{switch['precision']} from token {switch['step'] + 1}" for switch in summary["switches"]]
    expect(answer.get_by_role("img")).to_have_attribute("aria-label", ", ".join(["8 bits", *switches]))
    expect(answer.locator("figcaption")).to_have_text(", ".join(["8 bits", *switches]))


def test_many_switches_are_counted_and_drawn_one_by_one(chat: Chat, server: Server) -> None:
    chat.at("scheduler").select_option("alternate:0.5")
    answer = chat.send(SENTENCE)
    switches = server.chat(pmpd={"scheduler": "alternate:0.5"}).json["pmpd"]["switches"]
    assert answer.locator("rect").count() == len(switches) + 1 > 6
    expect(answer.locator("figcaption")).to_have_text(f"8 bits, then {len(switches)} switches")


def test_pointer_and_arrow_keys_tell_precision_and_probability(chat: Chat, server: Server) -> None:
    answer = chat.send(SENTENCE)
    given = server.chat().json["pmpd"]["tokens"]
    info = chat.at("token-info")
    answer.locator(".token").nth(1).hover()
    expect(info).to_have_text(f'"{given[1]["text"]}": 8 bits (Q8_0), probability {100 * given[1]["probability"]:.0f} %')
    chat.at("message").hover()
    expect(info).to_be_hidden()
    answer.locator(".tokens").focus()
    for _ in range(3):
        chat.page.keyboard.press("ArrowRight")
    chat.page.keyboard.press("ArrowLeft")
    expect(info).to_contain_text(f'"{given[1]["text"]}": 8 bits')
    expect(chat.at("announcer")).to_have_text(info.inner_text())
    chat.page.keyboard.press("Escape")
    expect(info).to_be_hidden()


def test_a_touch_tells_about_a_token_until_the_next_one(browser: Browser, server: Server) -> None:
    context = browser.new_context(has_touch=True, viewport={"width": 360, "height": 700})
    chat = Chat(context.new_page())
    chat.open(server.url)
    answer = chat.send(SENTENCE)
    answer.locator(".token").nth(1).tap()
    expect(chat.at("token-info")).to_contain_text("8 bits (Q8_0), probability")
    chat.at("readouts").tap()
    expect(chat.at("token-info")).to_be_hidden()
    context.close()


def test_levels_and_memory_are_those_of_the_server(chat: Chat, server: Server) -> None:
    rows = chat.page.locator("#levels tbody tr")
    levels = server.get("/props").json["levels"]
    assert [row.split() for row in rows.all_inner_texts()] == [
        [str(level["precision"]), *level["types"], f"{level['bpw']:.2f}", "bpw", size, "MiB", "yes"]
        for level, size in zip(levels, ("7.5", "4.5", "3.1"), strict=True)
    ]
    expect(chat.at("memory")).to_contain_text("MiB of memory")
