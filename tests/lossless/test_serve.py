"""`lossless` behind the server: its answers, and grammars whose tokens are taken back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from talk import SENTENCES, prompt

from pmpd_edge import Pmpd

pytest.importorskip("fastapi")

from serving import SENTENCE, Server, chunks, serve

from pmpd_edge.serve.grammar import Grammar

JSON = r'root ::= "{" ws "\"a\":" ws number ("," ws "\"b\":" ws number)* "}"' + "\n"
JSON += r'ws ::= " "?' + "\n" + r"number ::= [0-9] [0-9]?"
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["cat", "dog"]}, "legs": {"type": "integer"}},
    "required": ["animal", "legs"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


def assert_same(found: dict, expected: dict) -> None:
    """The same answer, or up to where two tokens are as probable up to the noise of evaluating several at once."""
    for ours, theirs in zip(found["pmpd"]["tokens"], expected["pmpd"]["tokens"], strict=False):
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=0.02)
        if ours["text"] != theirs["text"]:
            return
        assert ours["precision"] == theirs["precision"]
    assert found["choices"][0]["message"] == expected["choices"][0]["message"]
    assert found["pmpd"]["precisions"] == expected["pmpd"]["precisions"]


def test_answers_are_those_of_high_with_drafts_marked(server: Server) -> None:
    high = server.chat(pmpd={"method": "high"}).json
    found = server.chat(pmpd={"method": "lossless", "draft_tokens": 3}).json
    assert_same(found, high)
    said = found["pmpd"]
    assert said["method"] == "lossless" and said["scheduler"] is None
    assert sum(token["drafted"] for token in said["tokens"]) == said["drafting"]["kept"] > 0
    assert set(said["drafting"]["draft_tokens"]) == {3}
    assert not any(token["drafted"] for token in high["pmpd"]["tokens"])


def test_streams_mark_drafts_too(server: Server) -> None:
    fields = {"stream": True, "pmpd": {"method": "lossless", "draft_tokens": 3}}
    body = {"messages": [{"role": "user", "content": SENTENCE}], **fields}
    with server.begun(body) as connection, connection.getresponse() as response:
        *parts, last = chunks(response)
    marks = [token["drafted"] for part in parts if "pmpd" in part for token in part["pmpd"]["tokens"]]
    assert any(marks) and not all(marks)
    assert last["pmpd"]["drafting"]["verifications"] > 0


def test_schemas_schedulers_and_high_steps_go_with_it(server: Server) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
    for options in ({}, {"scheduler": "static:8@1,4@5"}, {"high_steps": 2}):
        kind = {"method": "pmpd"} if options else {"method": "high"}
        right = server.chat(response_format=wanted, max_tokens=60, pmpd={**kind, **options}).json
        pmpd = {"method": "lossless", "draft_tokens": 4, **options}
        found = server.chat(response_format=wanted, max_tokens=60, pmpd=pmpd).json
        assert_same(found, right)


@pytest.mark.parametrize("draft_tokens", [0, 65, "many", None])
def test_numbers_of_drafts_that_are_refused(server: Server, draft_tokens: int | str | None) -> None:
    assert server.chat(pmpd={"method": "lossless", "draft_tokens": draft_tokens}).status in (400, 422)


def test_a_grammar_goes_by_the_tokens_that_it_is_given(llm: Pmpd) -> None:
    """However tokens are taken back: at every point it allows what a new one allows that has seen only those."""
    tokens = prompt(llm, SENTENCES[0])
    logits = np.random.default_rng(0).normal(size=llm.n_vocab()).astype(np.float32)
    rng = np.random.default_rng(1)

    def allowed(grammar: Grammar, answer: list[int]) -> np.ndarray:
        return np.isfinite(grammar(np.array(tokens + answer, dtype=np.intc), logits))

    def fresh(answer: list[int]) -> np.ndarray:
        with closing(Grammar(llm, JSON)) as other:
            for n in range(len(answer) + 1):
                found = allowed(other, answer[:n])
            return found

    with closing(Grammar(llm, JSON)) as grammar:
        answer: list[int] = []
        allowed(grammar, answer)
        for _ in range(12):
            drafts = list(answer)
            for _ in range(4):
                choices = np.flatnonzero(allowed(grammar, drafts))
                drafts.append(int(rng.choice(choices)))
                if drafts[-1] == llm.token_eos():
                    break
            kept = drafts[: len(answer) + int(rng.integers(0, len(drafts) - len(answer)))]
            expected = fresh(kept)
            np.testing.assert_array_equal(allowed(grammar, kept), expected)
            choices = [int(token) for token in np.flatnonzero(expected) if token != llm.token_eos()]
            if not choices:
                break
            answer = [*kept, int(rng.choice(choices))]
            np.testing.assert_array_equal(allowed(grammar, answer), fresh(answer))
        back = list(itertools.islice(answer, 2))
        np.testing.assert_array_equal(allowed(grammar, back), fresh(back))
