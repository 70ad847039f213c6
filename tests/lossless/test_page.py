"""What the page shows of drafts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("playwright", reason="needs playwright")

from paging import CHROMIUM, Chat, chromium
from playwright.sync_api import Route, expect
from serving import SENTENCE, serve


@pytest.fixture
def chat() -> Iterator[Chat]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with serve() as server, chromium() as browser:
        opened = Chat(browser.new_page())
        opened.open(server.url)
        yield opened
        assert opened.errors == []


def test_drafts_have_a_line_above_them_and_say_so(chat: Chat) -> None:
    def draft(route: Route) -> None:  # as many each time, so that the test does not depend on this device's speed
        body = route.request.post_data_json
        route.continue_(post_data=json.dumps({**body, "pmpd": {**body["pmpd"], "draft_tokens": 4}}))

    chat.page.route("**/v1/chat/completions", draft)
    chat.choose("lossless")
    answer = chat.send(SENTENCE)
    drafted, others = answer.locator(".token.drafted"), answer.locator(".token:not(.drafted)")
    assert drafted.count() > 0 < others.count()
    expect(drafted.first).to_have_css("border-top-style", "solid")
    expect(others.first).to_have_css("border-top-style", "none")
    drafted.first.hover()
    expect(chat.at("token-info")).to_contain_text("drafted by a lower level")
    others.first.hover()
    expect(chat.at("token-info")).not_to_contain_text("drafted")
    expect(answer.locator(".figures")).to_contain_text("% of the drafts kept")
