"""`Batch`: many answers at once are the answers one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from talk import SENTENCES, prompt

from pmpd_edge import Pmpd, bundle
from pmpd_edge.batch import Batch, Job
from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule import Evaluation, Scheduler
from pmpd_edge.schedule.fixed import FixedScheduler
from pmpd_edge.schedule.spec import make_scheduler
from pmpd_edge.stream import Sampling, stream

N_NEW = 24


@pytest.fixture(scope="module")
def default() -> bundle.Bundle:
    return bundle.load(bundle.default_bundle())


class Recorder:
    """A scheduler that keeps the logits which another one sees."""

    def __init__(self, inner: Scheduler) -> None:
        self.precisions, self._inner = inner.precisions, inner
        self.logits: list[np.ndarray] = []

    def start(self, prefill: Evaluation) -> None:
        self.logits = []
        self._inner.start(prefill)

    def next(self, step: int, last: Evaluation) -> int:
        self.logits.append(last.logits().copy())  # those that the step's token was taken from
        return self._inner.next(step, last)


def jobs(llm: Pmpd, spec: str) -> list[Job]:
    return [
        Job(prompt(llm, sentence), Recorder(make_scheduler(spec, llm.bundle)), llm.bundle.prefill, N_NEW)
        for sentence in SENTENCES * 3
    ]


def one_by_one(llm: Pmpd, todo: list[Job]) -> list[tuple[list[int], list[int]]]:
    found = []
    for job in todo:
        llm.configure(scheduler=job.scheduler)
        tokens = [token.id for token in stream(llm, job.prompt, Sampling(), N_NEW)]
        found.append((tokens, list(llm.stats.precisions)))
    return found


@pytest.mark.parametrize("parallel", [1, 4, 8])
@pytest.mark.parametrize("spec", ["static", "static:8@1,2@3", "fixed:4", "confidence:0.9,0.8", "random:3"])
def test_equals_one_by_one(llm, default, spec, parallel):
    """To the token; where several are evaluated together, up to what that changes in the last bits of logits."""
    serial, batched = jobs(llm, spec), jobs(llm, spec)
    expected = one_by_one(llm, serial)
    with Batch(default, n_ctx=256, parallel=parallel, n_threads=1) as batch:
        answers = batch.run(batched)
    noise, doubtful = 0.0, []
    for one, other, answer, (tokens, precisions) in zip(serial, batched, answers, expected, strict=True):
        pairs = list(zip(answer.tokens, tokens, strict=False))
        same = next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))
        logits = list(zip(one.scheduler.logits, other.scheduler.logits, strict=False))[: same + 1]
        noise = max([noise, *(float(np.abs(a - b).max()) for a, b in logits)])
        if (answer.tokens, answer.precisions) != (tokens, precisions):
            best, second = np.sort(one.scheduler.logits[same])[::-1][:2]
            doubtful.append(float(best - second))
    if parallel == 1:
        assert noise == 0 and not doubtful, "one sequence is evaluated as Pmpd does"
    assert all(gap <= 2 * noise for gap in doubtful)
    assert len(set(doubtful)) <= 1 and noise < 0.5  # a sentence that comes three times may part three times


def test_the_same_again_and_in_another_order(default):
    with Batch(default, n_ctx=256, parallel=3, n_threads=1) as batch:
        ids = [
            batch.tokenize(f"<|user|>Translate from German to English: {s}<|assistant|>", special=True)
            for s in SENTENCES
        ]
        todo = [Job(tokens, FixedScheduler(4), 8, N_NEW) for tokens in ids]
        first, again = batch.run(todo), batch.run(todo)
        backwards = batch.run(todo[::-1])[::-1]
    assert first == again
    assert [a.tokens[:4] for a in first] == [a.tokens[:4] for a in backwards]


def test_ends_by_itself_by_length_and_by_context(llm, default):
    tokens = prompt(llm, SENTENCES[0])
    with Batch(default, n_ctx=len(tokens) + 6, parallel=2, n_threads=1) as batch:
        done = batch.run(
            [
                Job(tokens, FixedScheduler(8), 8, 3),
                Job(tokens, FixedScheduler(8), 8, 100),
                Job([*tokens, *tokens], FixedScheduler(8), 8, 100),
                Job(tokens, FixedScheduler(8), 8, 1),
            ]
        )
    assert [(answer.finish, len(answer.tokens)) for answer in done] == [
        ("length", 3),
        ("context", 7),
        ("context", 0),
        ("length", 1),
    ]
    with Batch(default, n_ctx=256, parallel=2, n_threads=1) as batch:
        (answer,) = batch.run([Job(tokens, FixedScheduler(8), 8, 100)])
        assert answer.finish == "stop" and batch.ends(answer.tokens[-1])
        assert (
            batch.detokenize(answer.tokens).strip()
            == "".join(token.text for token in stream(_configured(llm), tokens, Sampling(), 100)).strip()
        )


def _configured(llm: Pmpd) -> Pmpd:
    llm.configure(method="high")
    return llm


def test_schedulers_see_their_own_sequence(default):
    class Looker:
        precisions = (8, 4)

        def __init__(self) -> None:
            self.seen: list[tuple[int, list[int], int]] = []

        def start(self, prefill):
            self.seen.append((0, prefill.tokens.tolist(), int(prefill.logits().argmax())))

        def next(self, step, last):
            assert last.n_tokens == len(last.tokens)
            keys, values = last.keys_values(-1)
            assert keys.shape == values.shape == (last.n_tokens, 4, 32)
            self.seen.append((step, last.tokens.tolist(), int(last.logits().argmax())))
            return 8 if step % 2 else 4

    with Batch(default, n_ctx=256, parallel=2, n_threads=1) as batch:
        ids = [batch.tokenize(f"<|user|>{s}<|assistant|>", special=True) for s in SENTENCES[:3]]
        lookers = [Looker() for _ in ids]
        answers = batch.run([Job(t, look, 8, 6) for t, look in zip(ids, lookers, strict=True)])
    for tokens, answer, looker in zip(ids, answers, lookers, strict=True):
        assert answer.precisions == [8, 8, 4, 8, 4, 8][: len(answer.tokens)]
        for step, seen, best in looker.seen:
            evaluated = max(step - 1, 0)  # the token before a step is evaluated in it
            assert seen == [*tokens, *answer.tokens[:evaluated]]
            assert best == answer.tokens[evaluated]


def test_confidence_is_no_constant(llm, default):
    """Otherwise the comparison above would compare nothing that depends on logits."""
    with Batch(default, n_ctx=256, parallel=2, n_threads=1) as batch:
        answers = batch.run(jobs(llm, "confidence:0.9,0.8"))
    assert len({tuple(answer.precisions) for answer in answers}) > 2


def test_an_empty_prompt_is_refused(default):
    with Batch(default, n_ctx=256, parallel=2, n_threads=1) as batch:
        batch.run([Job([1, 400], FixedScheduler(4), 8, 3)])
        with pytest.raises(PmpdError, match="an empty prompt"):
            batch.run([Job([], FixedScheduler(4), 8, 3)])


def test_no_jobs_and_closing_twice(default):
    batch = Batch(default, n_ctx=256, parallel=2, n_threads=1)
    assert batch.run([]) == []
    batch.close()
    batch.close()


def test_a_context_that_is_too_large(default: bundle.Bundle) -> None:
    with pytest.raises(PmpdError, match="a context of 64 x 100000000 tokens"):
        Batch(default, n_ctx=10**8, parallel=64, n_threads=1)


def test_nested_levels_too(tmp_path: Path) -> None:
    from pmpd_edge.bench.random_model import write_llama
    from pmpd_edge.convert import convert

    source = write_llama(tmp_path / "m.gguf", dtype=np.float16, hidden=256, layers=2, heads=4, kv_heads=2, ff=256)
    made = convert(source, tmp_path / "nested", precisions=(8, 4), layout="nested", threads=1, use_imatrix=False)
    prompt_ids = list(range(300, 320))
    llm = Pmpd(made.path, n_threads=1, scheduler="static:8@1,4@3")
    expected = [token.id for token in stream(llm, prompt_ids, Sampling(), 8)]
    with Batch(made, n_ctx=256, parallel=1, n_threads=1) as batch:
        (answer,) = batch.run([Job(prompt_ids, make_scheduler("static:8@1,4@3", made), 8, 8)])
    assert answer.tokens == expected


def test_a_stop_text_ends_an_answer(llm, default):
    todo = jobs(llm, "fixed:8")[:3]
    with Batch(default, n_ctx=256, parallel=2, n_threads=1) as batch:
        whole = batch.run(todo)
        texts = [batch.detokenize(answer.tokens) for answer in whole]
        stop = texts[0].split()[3]
        stopped = batch.run([replace(job, stop=("not in any answer", stop)) for job in todo])
        for answer, text, before in zip(stopped, texts, whole, strict=True):
            if stop not in text:
                assert answer == before
                continue
            found = batch.detokenize(answer.tokens)
            assert stop in found and stop not in batch.detokenize(answer.tokens[:-1])
            assert answer.tokens == before.tokens[: len(answer.tokens)] and answer.finish == "stop"
    assert len(stopped[0].tokens) < len(whole[0].tokens)


def test_given_tokens_are_taken_and_watched(llm, default):
    """The logits are those that Pmpd finds along the same tokens at the same precisions."""
    asked = prompt(llm, SENTENCES[0])
    given = [*llm.tokenize(b"A man in a shirt", add_bos=False), llm.token_eos(), 42]
    seen: dict[int, np.ndarray] = {}
    job = Job(asked, make_scheduler("static:8@1,2@3", default), 8, N_NEW, given=given, watch=seen.__setitem__)
    with Batch(default, n_ctx=256, parallel=1, n_threads=1) as batch:
        (answer,) = batch.run([job])
    assert answer.tokens == given and answer.finish == "length", "an end-of-answer token among them ends nothing"
    assert answer.precisions == [8, 8, 8] + [2] * (len(given) - 3)
    llm.reset()
    for index, token in enumerate(given):
        llm.set_precision(answer.precisions[index])
        llm.eval(asked if index == 0 else [given[index - 1]])
        np.testing.assert_array_equal(seen[index], llm.logits())
        assert token == given[index]
