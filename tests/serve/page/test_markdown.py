"""Markdown on the page: what becomes elements, and that nothing else does."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright", reason="needs playwright")

from paging import MARKDOWN, Chat
from playwright.sync_api import expect

CASES = {
    "a **b** *c* __d__ _e_ ***f*** ~~g~~": "<p>a <strong>b</strong> <em>c</em> <strong>d</strong> <em>e</em> "
    "<strong><em>f</em></strong> <del>g</del></p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    "2 * 3 * 4, snake_case_name, ** a **, *open": "<p>2 * 3 * 4, snake_case_name, ** a **, *open</p>",
    "`a*b*` ``c ` d`` `open": "<p><code>a*b*</code> <code>c ` d</code> `open</p>",
    r"\*a\* \[b\](c) \\": r"<p>*a* [b](c) \</p>",
    "a\nb  \nc": "<p>a<br>b<br>c</p>",
    "a <b> & c": "<p>a &lt;b&gt; &amp; c</p>",
    "# A\n### B ##\n#no": "<h3>A</h3><h5>B</h5><p>#no</p>",
    "a\n\n---\n***": "<p>a</p><hr><hr>",
    "- a\n- b\n  - c\n  - d\n- e": "<ul><li>a</li><li>b<ul><li>c</li><li>d</li></ul></li><li>e</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n\n   b\n2. c": "<ol><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>",
    "- a\n  lazy\nlazier\n\nb": "<ul><li>a<br>lazy<br>lazier</li></ul><p>b</p>",
    "> a\n> > b\n\nc": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
    "| a | b |\n|:-:|--:|\n| 1 \\| 2 | `x` |\n| 3 |": '<div class="table"><table><thead><tr><th class="center">a</th>'
    '<th class="right">b</th></tr></thead><tbody><tr><td class="center">1 | 2</td><td class="right"><code>x</code></td>'
    '</tr><tr><td class="center">3</td><td class="right"></td></tr></tbody></table></div>',
    "a | b\nno table": "<p>a | b<br>no table</p>",
    "see https://example.org/a_(b). <https://e.org>": '<p>see <a href="https://example.org/a_(b">https://example.org/'
    'a_(b</a>). <a href="https://e.org/">https://e.org</a></p>',
    "[a [b](https://e.org/x(y)) c": '<p><a href="https://e.org/x(y)">a [b</a> c</p>',
    "[mail](mailto:a@e.org) [local](/x) [ftp](ftp://e.org)": '<p><a href="mailto:a@e.org">mail</a> <span>local</span> '
    "<span>ftp</span></p>",
}


def test_markdown_becomes_elements(chat: Chat) -> None:
    drawn = chat.page.evaluate(
        """async (texts) => {
            const { MarkdownView } = await import('/page/markdown.js');
            return texts.map((text) => {
                const into = document.createElement('div');
                new MarkdownView(into).show(text);
                for (const node of into.querySelectorAll('a, .table'))
                    for (const name of ['rel', 'target', 'tabindex', 'role', 'aria-label']) node.removeAttribute(name);
                return into.innerHTML;
            });
        }""",
        list(CASES),
    )
    assert dict(zip(CASES, drawn, strict=True)) == CASES


def test_code_is_shown_as_it_is_and_can_be_copied(chat: Chat) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.choose("Formatted")
    chat.answer_with("Code:\n\n```js\nif (a < b) {\n  **x**\n}\n```\n\nand ```` open\n````\n<i>\n")
    answer = chat.send("Code")
    expect(answer.locator("pre")).to_have_text(["if (a < b) {\n  **x**\n}", "<i>\n"], use_inner_text=True)
    answer.get_by_role("button", name="Copy the code").first.click()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "if (a < b) {\n  **x**\n}"


def test_growing_markdown_ends_as_the_whole_and_leaves_finished_blocks_alone(chat: Chat) -> None:
    same, kept = chat.page.evaluate(
        """async (text) => {
            const { MarkdownView } = await import('/page/markdown.js');
            const [growing, whole] = [document.createElement('div'), document.createElement('div')];
            const view = new MarkdownView(growing);
            let kept = true;
            for (let end = 1; end <= text.length; end += 1) {
                const first = end > 9 ? growing.firstChild : null;
                view.show(text.slice(0, end));
                kept &&= !first || first === growing.firstChild;
            }
            new MarkdownView(whole).show(text);
            return [growing.innerHTML === whole.innerHTML, kept];
        }""",
        MARKDOWN,
    )
    assert same and kept


@pytest.mark.parametrize(
    "piece", ["*a ", "[", "[a](", "`" * 3 + "a`", "> ", "- ", "_", "| ", "~~a", "  - a\n", "#", "<h"]
)
def test_markdown_of_any_kind_is_drawn_in_time(chat: Chat, piece: str) -> None:
    drawn = chat.page.evaluate(
        """async (text) => {
            const { MarkdownView } = await import('/page/markdown.js');
            const into = document.createElement('div');
            new MarkdownView(into).show(text);
            return into.childElementCount;
        }""",
        piece * (20_000 // len(piece)),
    )
    assert drawn > 0


HOSTILE = [
    "<img src=x onerror='document.title=1'><script>document.title=1</script>",
    "[click](javascript:document.title=1) [data](data:text/html,x) <javascript:x>",
    '![picture](https://example.org/x.png) [a](https://example.org/"onmouseover="x)',
    "# <b>bold</b>\n\n| <i>a</i> | b |\n|---|---|\n| <svg onload=x> | `<u>` |\n\n```<x>\n</code></pre><b>\n```",
]


@pytest.mark.parametrize("view", ["Precision", "Formatted"])
def test_hostile_messages_and_answers_stay_text(chat: Chat, view: str) -> None:
    chat.choose(view)
    for text in HOSTILE:
        chat.answer_with(text)
        chat.send(text)
        chat.page.unroute_all()
    turns = chat.at("turns")
    assert turns.locator("img, script, b, i, u, iframe, [onerror], [onmouseover], [onload]").count() == 0
    links = turns.locator("a").evaluate_all("all => all.map(one => [one.protocol, one.rel, one.target])")
    assert all(link == ["https:", "noopener noreferrer nofollow", "_blank"] for link in links)
    assert len(links) == (2 if view == "Formatted" else 0)
    assert chat.page.locator(".message p").first.inner_text() == HOSTILE[0]
    expect(chat.page).to_have_title("translator-7m – pmpd-edge")
