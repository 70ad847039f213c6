"""Conversations whose turns go through /v1/chat/completions: what they share is not evaluated again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from serving import SENTENCE, Server, serve, with_template
from talk import SENTENCES

from pmpd_edge import Pmpd
from pmpd_edge.chat_template import render
from pmpd_edge.stream import Sampling, stream

pytest.importorskip("gguf")

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ASKED = [SENTENCE, *SENTENCES[:2]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model with a template that writes all messages."""
    return with_template(tmp_path_factory.mktemp("turns") / "talker", TEMPLATE)


@pytest.fixture(scope="module")
def talker(bundle: Path) -> Iterator[Server]:
    with serve(str(bundle)) as running:
        yield running


@pytest.fixture(scope="module")
def alone(bundle: Path) -> Iterator[Pmpd]:
    """The same model without a server."""
    with closing(Pmpd(bundle, n_threads=1)) as opened:
        yield opened


def talk(server: Server, **options: Any) -> Iterator[tuple[list[dict[str, str]], Any]]:
    """Each turn's messages, and the response to them."""
    said: list[dict[str, str]] = []
    for text in ASKED:
        said = [*said, {"role": "user", "content": text}]
        body = {"messages": said, "max_tokens": 30, "pmpd": options}
        reply = server.request("POST", "/v1/chat/completions", body).json
        yield said, reply
        said = [*said, {"role": "assistant", "content": reply["choices"][0]["message"]["content"]}]


@pytest.mark.parametrize("options", [{"method": "high"}, {"method": "low"}, {"high_steps": 4}, {}], ids=str)
def test_a_turn_evaluates_only_what_is_new(talker: Server, alone: Pmpd, options: dict[str, Any]) -> None:
    talker.request("POST", "/v1/completions", {"prompt": [7, 8, 9], "max_tokens": 1})
    alone.reset()
    alone.configure(**options)
    before: list[int] = []
    for said, reply in talk(talker, **options):
        prompt = render(alone, said)
        tokens = list(stream(alone, prompt.tokens, Sampling(), 30, prompt.stop))
        assert reply["choices"][0]["message"]["content"] == "".join(token.text for token in tokens)
        reused = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert reused == reply["timings"]["prompt_reused_n"] == alone.stats.reused_tokens
        assert reply["timings"]["prompt_n"] == reply["usage"]["prompt_tokens"] - reused
        assert reused >= len(before) and prompt.tokens[: len(before)] == before
        before = prompt.tokens


def test_low_rows_of_an_answer_are_not_taken_for_prefills(talker: Server) -> None:
    """What was answered at a lower precision is evaluated again; beyond the prompt before, the first steps are kept."""
    kept = {}
    for steps in (0, 4, 30):
        *_, (_, before), (_, reply) = talk(talker, high_steps=steps)
        kept[steps] = reply["timings"]["prompt_reused_n"] - before["usage"]["prompt_tokens"]
    assert kept[0] == 0 < kept[4] <= 4 < kept[30]
