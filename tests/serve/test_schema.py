"""JSON schemas as grammars, and what keeps to them (pmpd_edge/serve/schema.py, grammar.py)."""

from __future__ import annotations

import json
import random
import time
from contextlib import closing, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmpd_edge import Pmpd
from pmpd_edge.errors import PmpdError
from pmpd_edge.serve import schema
from pmpd_edge.serve.grammar import Grammar
from pmpd_edge.stream import Sampling, _Pieces, stream


def write(llm: Pmpd, text: str, seed: int = 0, n: int = 400) -> str:
    """A text within a grammar, of tokens drawn at random from those that are allowed."""
    rng = random.Random(seed)
    tokens, pieces = [llm.token_bos()], b""
    logits = np.zeros(llm.n_vocab(), np.single)
    with closing(Grammar(llm, text)) as grammar:
        for _ in range(n):
            allowed = np.flatnonzero(np.isfinite(grammar(np.array(tokens, np.intc), logits)))
            token = int(rng.choice([one for one in allowed if _is_text(llm, one)]))
            if token == llm.token_eos():
                break
            tokens.append(token)
            pieces += _Pieces(llm).piece(token)
    return pieces.decode()


def _is_text(llm: Pmpd, token: int) -> bool:
    """Whether a token is of whole characters: single bytes drawn at random make none."""
    try:
        return bool(_Pieces(llm).piece(int(token)).decode()) or token == llm.token_eos()
    except UnicodeDecodeError:
        return False


FOLLOWED: list[tuple[Any, Any]] = [
    ({"type": "object", "properties": {"ä\n": {"type": "integer"}}, "required": ["ä\n"]}, lambda d: [*d] == ["ä\n"]),
    ({"enum": ["x", 1, None, "ä"]}, lambda d: d in ("x", 1, None, "ä")),
    ({"const": {"deep": [1, {"b": "\n\"\\"}]}}, lambda d: d == {"deep": [1, {"b": "\n\"\\"}]}),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}, lambda d: 2 <= len(d) <= 4),
    ({"anyOf": [{"const": 1}, {"const": 2}]}, lambda d: d in (1, 2)),
    ({"type": ["null", "boolean"]}, lambda d: d in (None, True, False)),
    ({"type": "string", "minLength": 1, "maxLength": 3}, lambda d: len(d) <= 3),
    ({"type": "string", "pattern": r"^\d{2}-[ab]+\.$"}, lambda d: d[2] == "-" and d[-1] == "."),
    ({"type": "string", "format": "date"}, lambda d: len(d) == 10),
    ({"$defs": {"x": {"const": 3}}, "items": {"$ref": "#/$defs/x"}, "maxItems": 2}, lambda d: set(d) <= {3}),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "holds"), FOLLOWED, ids=[json.dumps(one)[:40] for one, _ in FOLLOWED])
def test_whatever_is_written_fits_the_schema(model: Pmpd, wanted: Any, holds: Any) -> None:
    text = schema.to_grammar(wanted)
    for seed in range(5):
        assert holds(json.loads(write(model, text, seed)))


def deep(levels: int) -> Any:
    made: Any = {"type": "string"}
    for _ in range(levels):
        made = {"type": "array", "items": made}
    return made


def doubling(levels: int) -> Any:
    """Definitions that each name the next one twice, with names that the converter does not find again."""
    parts = {
        f"d {i}": {"anyOf": [{"$ref": f"#/$defs/d {i + 1}"}, {"$ref": f"#/$defs/d {i + 1}"}]} for i in range(levels)
    }
    return {"$defs": {**parts, f"d {levels}": {"type": "string"}}, "$ref": "#/$defs/d 0"}


HOSTILE: dict[str, Any] = {
    "endless pattern": {"type": "string", "pattern": "^]$"},
    "endless pattern too": {"type": "string", "pattern": "^a}$"},
    "many repetitions": {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    "many repetitions in a pattern": {"type": "string", "pattern": "^a{1000000000}$"},
    "a string of a gigabyte": {"type": "string", "minLength": 10**9},
    "a length that is none": {"type": "string", "minLength": "x", "maxLength": 2},
    "negative": {"type": "array", "items": {}, "minItems": -1},
    "exponential references": doubling(40),
    "very deep": deep(3000),
    "a foreign reference": {"$ref": "https://127.0.0.1:1/schema.json"},
    "a file": {"$ref": "file:///etc/passwd"},
    "a reference to nothing": {"$ref": "#/$defs/nothing"},
    "a reference that is no text": {"$ref": 5},
    "a reference to itself": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "an odd reference to itself": {"$defs": {"a b": {"items": {"$ref": "#/$defs/a b"}}}, "$ref": "#/$defs/a b"},
    "nothing repeated": {"type": "string", "pattern": "^(*)$"},
    "a lazy repetition": {"type": "string", "pattern": "^a+?$"},
    "no type": {"type": "strange"},
    "no schema": {"type": "object", "properties": {"a": True}},
    "no properties": {"type": "object", "properties": ["a"]},
    "a class of nothing": {"type": "string", "pattern": "^[]+$"},
    "a class of all but nothing": {"type": "string", "pattern": "^[^]*$"},
    "no pattern": {"type": "string", "pattern": "abc"},
    "a look-ahead": {"type": "string", "pattern": "^(?=a)b$"},
    "an unknown escape": {"type": "string", "pattern": r"^\p{L}[\d]$"},
    "nothing to choose": {"enum": []},
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_followed_is_refused_quickly_and_quietly(model: Pmpd, name: str, capfd: Any) -> None:
    begun = time.process_time()
    with pytest.raises(PmpdError) as error:
        Grammar(model, schema.to_grammar(HOSTILE[name])).close()
    assert "\n" not in str(error.value)
    assert time.process_time() - begun < 5
    assert capfd.readouterr().err == ""  # llama.cpp prints grammars that it cannot read


def test_the_longest_repetition_that_is_allowed_can_be_followed(model: Pmpd) -> None:
    wanted = {"type": "array", "items": {"const": 1}, "minItems": 3, "maxItems": schema.MAX_REPEAT}
    with closing(Grammar(model, schema.to_grammar(wanted))):
        pass
    text = schema.to_grammar({"type": "string", "maxLength": schema.MAX_REPEAT})
    Grammar(model, text).close()


@given(pattern=st.text(r"ab01^$.|?*+(){}[]\\-dw,\"\n", max_size=12))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_pattern_is_followed_or_refused(model: Pmpd, capfd: Any, pattern: str) -> None:
    with suppress(PmpdError):
        Grammar(model, schema.to_grammar({"type": "string", "pattern": f"^{pattern}$"})).close()
    assert capfd.readouterr().err == ""


def test_a_dead_end_ends_the_answer(model: Pmpd) -> None:
    """The byte 0 is in the vocabulary and never allowed, and llama.cpp's own sampler would end the process."""
    with closing(Grammar(model, 'root ::= "a" <[6]>')) as grammar:
        logits = np.zeros(model.n_vocab(), np.single)
        tokens = [model.token_bos()]
        for _ in range(6):
            allowed = np.flatnonzero(np.isfinite(grammar(np.array(tokens, np.intc), logits)))
            tokens.append(int(allowed[0]))
        assert tokens[-1] == model.token_eos()


def test_a_sampled_answer_stays_within_its_grammar(model: Pmpd) -> None:
    model.configure()
    prompt = model.tokenize(b"Hello")
    for seed in range(3):
        model.set_seed(seed)
        with closing(Grammar(model, 'root ::= ("ab" | "cd") "!"')) as grammar:
            given = list(stream(model, prompt, Sampling(temperature=2.0, top_k=0, min_p=0.0), 20, grammar=grammar))
        assert "".join(token.text for token in given) in ("ab!", "cd!") and given[-1].finish == "stop"
