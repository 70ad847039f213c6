"""A headless Chromium with the page in it, as tests work with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright
from serving import Server

OTHER = "Zwei Frauen sitzen auf einer Bank."
LONG = 300  # tokens
RANKS = {8: "high", 4: "middle", 2: "low"}  # of the default model

MARKDOWN = """# Head

Text with **bold**, *slanted*, `code` and [a link](https://example.org/).

1. one
   - inner
2. two

> quoted

| a | b |
|---|--:|
| 1 | 2 |

```python
print("x")
```
"""

ANSWERS = "**/v1/chat/completions"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_QUIET = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
_BARE = ["--no-sandbox", "--disable-gpu", "--disable-quic"]  # containers have neither namespaces nor a GPU


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium: Playwright brings none of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*_BARE, *_QUIET])
        yield browser
        browser.close()


@dataclass
class Chat:
    """The page in a browser's window.

    Attributes:
        errors: what it wrote to the console, and what was thrown and not caught.
        hosts: that it asked for anything.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def open(self, url: str) -> None:
        """Load the page and wait until it knows the model."""
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.goto(url)
        expect(self.page.locator("#model-name")).not_to_be_empty()

    def at(self, id: str) -> Locator:
        return self.page.locator(f"#{id}")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def choose(self, name: str) -> None:
        """Check a radio button."""
        self.page.get_by_role("radio", name=name, exact=True).check()

    def fill(self, **values: str) -> None:
        """Fill in settings, by their ids."""
        for id, value in values.items():
            self.at(id.replace("_", "-")).fill(value)

    def send(self, text: str) -> Locator:
        """Send a message; its answers."""
        self.at("message").fill(text)
        self.at("message").press("Enter")
        return self.finished()

    def finished(self) -> Locator:
        """The last turn's answers, when all are there."""
        answers = self.page.locator(".turn").last.locator(".answer")
        expect(self.at("stop")).to_be_disabled()
        expect(answers.and_(self.page.locator("[aria-busy=true]"))).to_have_count(0)
        return answers

    def lengthen(self) -> None:
        """Have answers go on until they are `LONG`: to a grammar that does not let the model end them."""
        schema = {"type": "array", "items": {"type": "integer"}, "minItems": LONG}
        more = {"response_format": {"type": "json_object", "schema": schema}, "max_tokens": LONG}

        def proceed(route: Route) -> None:
            route.continue_(post_data=json.dumps(route.request.post_data_json | more))

        self.page.route(ANSWERS, proceed)

    def answer_with(self, text: str) -> None:
        """Have the server's place taken by one that gives this answer."""
        chunks = [
            {"choices": [{"delta": {"content": text}}], "pmpd": {"tokens": [token(text, 8)]}},
            {"choices": [{"delta": {}, "finish_reason": "stop"}], "pmpd": {"precisions": [8, 8]}},
        ]
        body = "".join(f"data: {json.dumps(chunk)}\r\n\r\n" for chunk in chunks) + "data: [DONE]\r\n\r\n"

        def fulfil(route: Route) -> None:
            route.fulfill(status=200, content_type="text/event-stream", body=body)

        self.page.route(ANSWERS, fulfil)


def token(text: str, precision: int, probability: float = 0.5) -> dict[str, Any]:
    """A token as the server writes it."""
    return {"text": text, "precision": precision, "probability": probability}


def tokens(answer: Locator) -> list[tuple[str, int, str]]:
    """Text, precision and mark of an answer's tokens, as the page shows them."""
    read = "all => all.map(one => [one.textContent, Number(one.dataset.precision), one.classList[1]])"
    return [(text, precision, rank) for text, precision, rank in answer.locator(".token").evaluate_all(read)]


def expected(server: Server, **fields: Any) -> list[tuple[str, int, str]]:
    """The tokens that the API gives for the sentence, those with text."""
    given = server.chat(**fields).json["pmpd"]["tokens"]
    shown = [(one["text"], one["precision"], RANKS[one["precision"]]) for one in given if one["text"]]
    return [(shown[0][0].lstrip(), *shown[0][1:]), *shown[1:]]
