"""Answers are made once, kept part by part, and found again after an interruption at any byte."""

from __future__ import annotations

import random

import pytest

from pmpd_edge.batch import Answer
from pmpd_edge.evaluate.answers import PART, Answers, Kept, Store
from pmpd_edge.schedule.fixed import FixedScheduler

PROMPTS = [[1, i] for i in range(PART + 40)]


class FakeBatch:
    """Answers as its prompts say, and counts what it was asked."""

    def __init__(self, stop_after: int | None = None, parallel: int = 4) -> None:
        self.numerics = {"parallel": parallel}
        self.asked: list[tuple[int, int]] = []
        self.stop_after = stop_after

    def run(self, jobs, progress):
        answers = []
        for job in jobs:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append((job.prompt[1], job.scheduler.precision))
            precision = job.scheduler.precision
            answers.append(Answer([job.prompt[1], 5], [job.prefill, precision], "stop"))
            progress(len(answers))
        return answers

    def detokenize(self, tokens):
        return f" täxt {tokens[0]} "


def make(path, batch, precision=4, **inputs):
    answers = Answers(Store(path), batch, PROMPTS, 20, {"bundle": "x", **inputs})
    return answers.make(f"fixed:{precision}", 8, lambda i: FixedScheduler(precision))


def test_kept_and_found_again(tmp_path):
    path, first, again = tmp_path / "a.jsonl", FakeBatch(), FakeBatch()
    kept = make(path, first)
    assert kept[7] == Kept("täxt 7", (7, 5), (8, 4), "stop")
    assert kept[7].decode_precisions == (4,)
    assert len(kept) == len(PROMPTS) == len(first.asked)
    assert make(path, again) == kept
    assert again.asked == []


@pytest.mark.parametrize("changed", [{"bundle": "y"}, {"data": "other"}])
def test_other_inputs_are_other_answers(tmp_path, changed):
    make(tmp_path / "a.jsonl", FakeBatch())
    other = FakeBatch()
    make(tmp_path / "a.jsonl", other, **changed)
    assert len(other.asked) == len(PROMPTS)


def test_what_last_bits_depend_on_is_part_of_the_key(tmp_path):
    make(tmp_path / "a.jsonl", FakeBatch())
    other = FakeBatch(parallel=8)
    make(tmp_path / "a.jsonl", other)
    assert len(other.asked) == len(PROMPTS)


def test_interrupted_within_a_part_goes_on_at_its_beginning(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        make(path, FakeBatch(stop_after=PART + 10))
    rest = FakeBatch()
    kept = make(path, rest)
    assert [prompt for prompt, _ in rest.asked] == list(range(PART, len(PROMPTS)))
    assert kept == make(tmp_path / "undisturbed.jsonl", FakeBatch())


def test_torn_at_any_byte_gives_the_same(tmp_path):
    path = tmp_path / "a.jsonl"
    expected = make(path, FakeBatch())
    make(path, FakeBatch(), precision=2)
    whole = path.read_bytes()
    for cut in random.Random(0).sample(range(len(whole)), 60):
        path.write_bytes(whole[:cut])
        assert make(path, FakeBatch()) == expected
        assert make(path, FakeBatch(), precision=2)[0].precisions == (8, 2)
        assert path.read_bytes() == whole


def test_foreign_lines_do_no_harm(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\nnot json\n[1]\n\xff\xfe\n')
    assert len(make(path, FakeBatch())) == len(PROMPTS)
