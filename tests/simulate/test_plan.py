"""Precisions of simulated tokens: from a schedule's name, from a real run."""

from __future__ import annotations

import json

import pytest
from command import make_bundle
from simulated import SHAPE, make_device

from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule import confidence, learned
from pmpd_edge.simulate.plan import recorded, scheduled
from pmpd_edge.simulate.shapes import of_shape

MODEL = of_shape("m", SHAPE, make_device(types={8: "Q8_0", 4: "Q4_K"}))


@pytest.mark.parametrize(
    ("spec", "planned"),
    [
        ("static:8@1,4@3", [8, 8, 8, 4, 4]),
        ("static:8@1,4@3,8@4", [8, 8, 8, 4, 8]),
        ("static:4@1", [4, 4, 4, 4, 4]),
        ("fixed:4", [4, 4, 4, 4, 4]),
    ],
)
def test_a_schedule_gives_each_token_its_precision(spec, planned):
    assert scheduled(spec, MODEL, 4, None) == planned


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("static:8@1,3@3", "m: no level of precision 3: choose one of 8, 4"),
        ("static:8@2", "schedule with switches at steps [2]"),
        ("static:8@one", "'one' in a schedule is not a number"),
        ("fixed:four", "'four' in a schedule is not a number"),
        ("static", "no schedule 'static' without a bundle: give static:16@1,4@86 or fixed:4"),
        ("learned", "no schedule 'learned' without a bundle"),
        ("fixed:8@1", "no schedule 'fixed:8@1'"),
    ],
)
def test_what_is_no_schedule_is_refused(spec, message):
    with pytest.raises(PmpdError) as raised:
        scheduled(spec, MODEL, 4, None)
    assert message in str(raised.value)


def test_a_bundle_has_its_own_schedule_and_prefill(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    planned = scheduled("static", MODEL, 100, bundle)
    assert planned == [8] * 86 + [4] * 15
    assert scheduled("fixed:4", MODEL, 2, bundle) == [8, 4, 4], "the prompt is evaluated at the bundle's precision"
    halves = scheduled("last:0.5", MODEL, 256, bundle)
    assert halves == [8] + [4] * 128 + [8] * 128


@pytest.mark.parametrize("kind", ["confidence", "random"])
def test_schedules_that_look_at_the_answer_are_not_guessed(tmp_path, kind):
    assert confidence.ConfidenceScheduler and learned.RandomScheduler
    with pytest.raises(PmpdError, match=f"{kind}: depends on the answer: run it, and give its precisions"):
        scheduled(kind, MODEL, 4, make_bundle(tmp_path / "b"))


def test_what_chat_prints_is_read(tmp_path):
    path = tmp_path / "run.json"
    tokens = [{"id": 5, "text": "a", "precision": p} for p in (8, 8, 4)]
    path.write_text(json.dumps({"text": "aaa", "tokens": tokens, "stats": {"prompt_tokens": 17}}))
    assert recorded(path) == ([8, 8, 4], 17)
    path.write_text("[8, 4]")
    assert recorded(path) == ([8, 4], None)


@pytest.mark.parametrize(
    "text", ["{}", "[8, 'x']", "[8, -4]", "[8, 4.5]", "[true]", "8", '{"tokens": [8], "stats": {}}', "{"]
)
def test_a_file_without_precisions_is_refused(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(PmpdError, match="no precisions of a run"):
        recorded(path)


def test_a_folder_is_no_run(tmp_path):
    with pytest.raises(PmpdError, match="Is a directory"):
        recorded(tmp_path)
