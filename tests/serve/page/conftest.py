"""A browser, and the page in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from serving import Server

if TYPE_CHECKING:
    from paging import Chat
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; for a module, as Playwright's event loop is in the way of others."""
    pytest.importorskip("playwright", reason="needs playwright")
    from paging import CHROMIUM, chromium

    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with chromium() as started:
        yield started


@pytest.fixture
def chat(browser: Browser, server: Server) -> Iterator[Chat]:
    """The page in a new browser profile; nothing may go wrong in it unseen, and it may ask no other machine."""
    from paging import Chat

    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    chat = Chat(context.new_page())
    chat.open(server.url)
    yield chat
    context.close()
    assert chat.errors == []
    assert chat.hosts == {f"{server.host}:{server.port}"}
