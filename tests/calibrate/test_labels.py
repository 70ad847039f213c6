"""Labels are the smallest share of high steps that loses nothing, whenever and in how many pieces they are made."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmpd_edge import bundle as bundles
from pmpd_edge.batch import Answer, Batch
from pmpd_edge.calibrate.labels import CLASSES, PART, SHORTEST, cut_prompts, make_examples
from pmpd_edge.errors import PmpdError

END = 0
N_NEW = 12
FOUR = (0.0, 1 / 3, 2 / 3, 1.0)


class FakeBatch:
    """A model of words that the precisions spoil.

    A prompt is (id, length of the answer, need of 4, need of 2): level 8 answers with words of its own for each
    position, and the lower level of a pair with other words, unless it begins after so many high steps.
    """

    n_ctx = 64

    def __init__(self, prefill: int = 8, dies_after: int | None = None) -> None:
        self.numerics = {"threads": 1}
        self.bundle = SimpleNamespace(fingerprint="abc", prefill=prefill, precisions=(8, 4, 2), level=self._level)
        self.runs: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = []
        self.dies_after = dies_after

    def _level(self, precision):
        if precision not in self.bundle.precisions:
            raise PmpdError(f"no level of precision {precision}")
        return SimpleNamespace(precision=precision)

    def run(self, jobs, progress=lambda n_done: None):
        return [self._answer(job) for job in jobs]

    def _answer(self, job):
        if self.dies_after is not None and len(self.runs) >= self.dies_after:
            raise KeyboardInterrupt
        number, length, *needs = job.prompt
        answer, n_high, spoilt = Answer(), 0, False
        while len(answer.tokens) < job.max_new_tokens and (not answer.tokens or answer.tokens[-1] != END):
            step = len(answer.tokens)
            if step == 1:
                job.scheduler.start(SimpleNamespace(keys_values=lambda layer: self._keys_values(job, layer)))
            precision = job.scheduler.next(step, None) if step else job.prefill
            if step and precision == 8:
                n_high += 1
            need = {8: 0, 4: needs[0], 2: needs[1]}[precision]
            spoilt |= n_high < min(need, length - 1)
            word = 1 + 100 * number + step + (50 if spoilt else 0)
            answer.tokens.append(END if step == length else word)
            answer.precisions.append(precision)
        self.runs.append((tuple(job.prompt), job.prefill, tuple(answer.precisions)))
        return answer

    def _keys_values(self, job, layer):
        shape = len(job.prompt), 2, 4
        return np.full(shape, job.prompt[0] + layer / 2, np.float32), np.full(shape, job.prefill, np.float32)

    def detokenize(self, tokens):
        return " ".join(f"w{token}" for token in tokens if token != END)


def prompts_of(n: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[i, rng.randint(1, 20), rng.randint(0, 6), rng.randint(0, 14)] for i in range(n)]


def expected(prompt: list[int], pair: tuple[int, int], steps: list[int]) -> int:
    """The smallest class for which no word is spoilt, from the rule that spoils them."""
    _, length, need4, need2 = prompt
    n_decoded = min(length, N_NEW - 1)  # decode steps, the one that makes the end included
    need = min({4: need4, 2: need2}[pair[1]], length - 1)
    for label, n_high in enumerate(steps):
        spoils = n_high < need and n_high < n_decoded and (n_high + 1 != length)
        if not spoils:
            return label
    raise AssertionError


def labelled(batch, prompts, path, **changes):
    arguments = {"pairs": [(8, 4), (8, 2)], "max_new_tokens": N_NEW, "classes": FOUR, **changes}
    return make_examples(batch=batch, prompts=prompts, path=path, **arguments)


def test_labels_are_the_smallest_classes_that_lose_nothing(tmp_path):
    prompts = prompts_of(2 * PART + 5)
    examples = labelled(FakeBatch(), prompts, tmp_path / "labels.jsonl")
    assert [list(example.prompt) for example in examples] == prompts
    for example in examples:
        for pair, label in example.labels.items():
            assert label == expected(list(example.prompt), pair, [0, 4, 8, 12]), (example.prompt, pair)
    assert {label for example in examples for label in example.labels.values()} == {0, 1, 2, 3}


def test_keys_and_values_are_those_after_prefill(tmp_path):
    batch = FakeBatch(prefill=4)
    examples = labelled(batch, prompts_of(PART + 3), tmp_path / "labels.jsonl", layer=-2)
    for example in examples:
        assert example.keys.shape == example.values.shape == (4, 2, 4)
        assert example.keys.dtype == example.values.dtype == np.float16
        assert set(example.keys.flat) == {example.prompt[0] - 1} and set(example.values.flat) == {4}


def test_the_reference_is_the_highest_levels_and_answers_are_prefilled_as_the_bundle_says(tmp_path):
    batch = FakeBatch(prefill=4)
    labelled(batch, [[1, 20, 3, 3]], tmp_path / "labels.jsonl")
    references = [run for run in batch.runs if run[1] == 8]
    assert references == [((1, 20, 3, 3), 8, (8,) * N_NEW)]
    assert all(run[2][0] == 4 for run in batch.runs if run not in references)


def test_no_answer_is_made_twice_nor_in_vain(tmp_path):
    batch = FakeBatch()
    labelled(batch, [[1, 20, 0, 5], [2, 3, 9, 9]], tmp_path / "labels.jsonl")
    assert len(set(batch.runs)) == len(batch.runs)
    long = [run[2] for run in batch.runs if run[0][0] == 1 and len(run[2]) > 2]
    # All high; all at 4, which is enough; all at 2, 4 high steps, and 8, which are enough.
    assert long == [(8,) * 12, (8,) + (4,) * 11, (8,) + (2,) * 11, (8,) * 5 + (2,) * 7, (8,) * 9 + (2,) * 3]
    short = [run[2] for run in batch.runs if run[0][0] == 2 and len(run[2]) > 2]
    assert short == [(8,) * 4, (8,) + (4,) * 3, (8,) + (2,) * 3]  # it ends before the next switch


def test_a_tolerance_takes_smaller_classes(tmp_path):
    prompts = prompts_of(PART)
    strict, lax, blind = (
        labelled(FakeBatch(), prompts, tmp_path / f"{tolerance}.jsonl", tolerance=tolerance)
        for tolerance in (0.0, 0.3, 1.0)
    )
    for one, other, third in zip(strict, lax, blind, strict=True):
        assert all(third.labels[pair] == 0 <= other.labels[pair] <= one.labels[pair] for pair in one.labels)
    assert [one.labels for one in strict] != [one.labels for one in lax]


def test_prompts_to_which_the_model_has_nothing_to_say_are_left_out(tmp_path):
    prompts = [[1, 5, 1, 1], [2, 0, 1, 1], [3, 5, 1, 1]]
    examples = labelled(FakeBatch(), prompts, tmp_path / "labels.jsonl")
    assert [example.prompt[0] for example in examples] == [1, 3]
    with pytest.raises(PmpdError, match="ends all its answers at once"):
        labelled(FakeBatch(), prompts[1:2], tmp_path / "labels.jsonl")


def test_a_language_that_rouge_cannot_read_is_refused(tmp_path):
    batch = FakeBatch()
    batch.detokenize = lambda tokens: "\N{CYRILLIC SMALL LETTER A}" * len(tokens)
    with pytest.raises(PmpdError, match="0 of 3 answers"):
        labelled(batch, prompts_of(3), tmp_path / "labels.jsonl")


def test_killed_anywhere_and_resumed_gives_the_same_labels(tmp_path):
    prompts = prompts_of(2 * PART + 5)
    whole = FakeBatch()
    examples = labelled(whole, prompts, tmp_path / "whole.jsonl")
    text = (tmp_path / "whole.jsonl").read_bytes()
    assert text.count(b"\n") == 3
    n_looks = len(prompts)
    for dies_after in range(n_looks, len(whole.runs), 11):
        path = tmp_path / f"{dies_after}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            labelled(FakeBatch(dies_after=dies_after), prompts, path)
        again = labelled(FakeBatch(), prompts, path)
        assert [example.labels for example in again] == [example.labels for example in examples]
        assert path.read_bytes() == text
    for cut in range(0, len(text), 97):  # in the middle of a line, too
        path = tmp_path / "cut.jsonl"
        path.write_bytes(text[:cut])
        again = labelled(FakeBatch(), prompts, path)
        assert [example.labels for example in again] == [example.labels for example in examples]
        assert path.read_bytes() == text


def test_labels_are_not_made_again(tmp_path):
    prompts = prompts_of(PART + 1)
    path = tmp_path / "labels.jsonl"
    examples = labelled(FakeBatch(), prompts, path)
    batch = FakeBatch()
    again = labelled(batch, prompts, path)
    assert {len(run[2]) for run in batch.runs} <= {1, 2}  # a look at keys and values, no more
    assert [example.labels for example in again] == [example.labels for example in examples]
    assert all((a.keys == b.keys).all() and (a.values == b.values).all() for a, b in zip(again, examples, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"pairs": [(8, 2), (8, 4)]}, {"max_new_tokens": 11}, {"classes": (0, 0.5, 1)}, {"tolerance": 0.01},
        {"numerics": {"threads": 2}}, {"fingerprint": "another"}, {"prefill": 4}, {"prompts": prompts_of(4, seed=1)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_labels_of_anything_else_are_not_taken_for_these(tmp_path, change):
    path = tmp_path / "labels.jsonl"
    arguments = {"prompts": prompts_of(4)}
    labelled(FakeBatch(), path=path, **arguments)
    batch = FakeBatch()
    batch.numerics = change.pop("numerics", batch.numerics)
    for name in ("fingerprint", "prefill"):
        setattr(batch.bundle, name, change.pop(name, getattr(batch.bundle, name)))
    labelled(batch, path=path, **(arguments | change))
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(set(keys)) == len(keys) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": []}, "3 prompts for 0 pairs"),
        ({"prompts": []}, "0 prompts for 2 pairs"),
        ({"pairs": [(2, 8)]}, "the pair 2-8: name the higher"),
        ({"pairs": [(8, 8)]}, "the pair 8-8"),
        ({"pairs": [(8, 3)]}, "no level of precision 3"),
        ({"classes": (0, 0.5)}, "the classes 0, 0.5: let them rise to 1"),
        ({"classes": (0.5, 0, 1)}, "let them rise"),
        ({"classes": (1,)}, "let them rise"),
        ({"max_new_tokens": 61}, "take 65 tokens of 64"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_made(tmp_path, changes, message):
    batch = FakeBatch()
    with pytest.raises(PmpdError, match=message):
        labelled(batch, path=tmp_path / "labels.jsonl", **({"prompts": prompts_of(3)} | changes))
    assert batch.runs == [] and not (tmp_path / "labels.jsonl").exists()


def test_progress_rises_to_the_end_of_each_part_of_the_work(tmp_path):
    seen: dict[str, list[float]] = {}
    labelled(
        FakeBatch(), prompts_of(PART + 3), tmp_path / "labels.jsonl",
        progress=lambda name, done: seen.setdefault(name, []).append(done),
    )  # fmt: skip
    assert list(seen) == ["reading keys and values", "making labels"]
    assert all(fractions == sorted(fractions) and fractions[-1] == 1 for fractions in seen.values())


# Prompts


class Words:
    """A tokenizer: a token for each word, and one at the beginning."""

    def tokenize(self, text, *, add_bos=True):
        return [1] * add_bos + [2 + int(word) for word in text.split()]


def numbered(n_words: int, per_line: int) -> str:
    rows = [" ".join(map(str, range(at, min(at + per_line, n_words)))) for at in range(0, n_words, per_line)]
    return "\n".join(rows)


@given(
    n_words=st.integers(60, 2000),
    per_line=st.integers(1, 3000),
    n_prompts=st.integers(1, 40),
    longest=st.integers(SHORTEST + 2, 60),
    seed=st.integers(0, 3),
)
def test_prompts_are_pieces_of_the_text_that_do_not_overlap(n_words, per_line, n_prompts, longest, seed):
    text = numbered(n_words, per_line)
    try:
        prompts = cut_prompts(batch=Words(), text=text, longest=longest, n_prompts=n_prompts, seed=seed)
    except PmpdError:
        assert n_words / n_prompts < 2 * SHORTEST or per_line > n_words / n_prompts / 4
        return
    assert 1 <= len(prompts) <= n_prompts
    assert prompts == cut_prompts(batch=Words(), text=text, longest=longest, n_prompts=n_prompts, seed=seed)
    words = [word for prompt in prompts for word in prompt[1:]]
    assert len(set(words)) == len(words)
    for prompt in prompts:
        assert prompt[0] == 1 and SHORTEST < len(prompt) <= longest
        assert list(prompt[1:]) == list(range(prompt[1], prompt[1] + len(prompt) - 1))


def test_prompts_begin_at_lines_and_end_anywhere():
    text = numbered(4000, 10)
    prompts = cut_prompts(batch=Words(), text=text, longest=40, n_prompts=50)
    assert len(prompts) == 50
    assert all((prompt[1] - 2) % 10 == 0 for prompt in prompts)
    assert len({len(prompt) for prompt in prompts}) > 15
    assert prompts != cut_prompts(batch=Words(), text=text, longest=40, n_prompts=50, seed=1)


def test_texts_that_are_too_short_are_refused():
    for text in ("", "\n\n", "1 2 3"):
        with pytest.raises(PmpdError, match="too short for prompts"):
            cut_prompts(batch=Words(), text=text, longest=40)
    with pytest.raises(PmpdError, match="at most 8 tokens"):
        cut_prompts(batch=Words(), text=numbered(1000, 10), longest=8)


# A real model


def test_the_default_model_is_labelled_and_gives_keys_and_values(tmp_path):
    bundle = bundles.load(bundles.default_bundle())
    high, low = bundle.precisions[0], bundle.precisions[-1]
    text = "Ein Mann steht auf der Stra\N{LATIN SMALL LETTER SHARP S}e und liest eine Zeitung im Regen.\n" * 12
    with Batch(bundle, n_ctx=64, parallel=2, n_threads=1) as batch:
        prompts = cut_prompts(batch=batch, text=text, longest=20, n_prompts=4)
        arguments = {
            "batch": batch, "prompts": prompts, "pairs": [(high, low)], "max_new_tokens": 12,
            "path": tmp_path / "labels.jsonl",
        }  # fmt: skip
        examples = make_examples(**arguments)
        again = make_examples(**arguments)
    assert len(examples) >= 2
    for one, other in zip(examples, again, strict=True):
        assert one.keys.shape[0] == one.values.shape[0] == len(one.prompt)
        assert np.isfinite(one.keys).all() and one.keys.std() > 0.01 and one.values.std() > 0.01
        assert 0 <= one.labels[high, low] < len(CLASSES)
        assert one.labels == other.labels and (one.keys == other.keys).all() and (one.values == other.values).all()
