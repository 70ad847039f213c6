"""The thread that owns the model (pmpd_edge/serve/worker.py), without HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from serving import SENTENCE, chat_body, long_format

from pmpd_edge import Pmpd
from pmpd_edge.errors import BundleError
from pmpd_edge.schedule.fixed import FixedScheduler
from pmpd_edge.serve.errors import ApiError
from pmpd_edge.serve.prepare import Task, chat_tasks
from pmpd_edge.serve.requests import ChatRequest
from pmpd_edge.serve.worker import Answer, Begun, Event, Job, Step, Worker

LOG: list[str] = []


@pytest.fixture
def worker(model: Pmpd) -> Iterator[Worker]:
    LOG.clear()
    worker = Worker(model, max_queue=4, log=LOG.append)
    worker.start()
    yield worker
    worker.close(lambda: None)
    worker.join()


def tasks(llm: Pmpd, text: str = SENTENCE, **fields: Any) -> list[Task]:
    return chat_tasks(llm, ChatRequest(**chat_body(text, **fields)))


def long_tasks(llm: Pmpd, n: int = 1) -> list[Task]:
    return tasks(llm, response_format=long_format(), max_tokens=450, n=n)


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    """Run a scenario in an event loop; nothing may take long."""
    return asyncio.run(asyncio.wait_for(scenario(), 60))


async def collect(job: Job) -> list[Event]:
    return [event async for event in job.events()]


async def until_running(worker: Worker, job: Job) -> None:
    """Wait for the first token of a job."""
    async for event in job.events():
        if isinstance(event, Step):
            return


def test_a_job_begins_steps_and_ends_with_its_answers(worker: Worker) -> None:
    async def scenario() -> None:
        job = Job(tasks(worker.llm, n=2), "a")
        worker.submit(job)
        begun, *events = await collect(job)
        assert isinstance(begun, Begun)
        for index in (0, 1):
            *steps, answer = [event for event in events if event.index == index]
            assert isinstance(answer, Answer)
            assert [step.token for step in steps] == list(answer.tokens)
            assert answer.stats.precisions == [token.precision for token in answer.tokens]
        assert job.ended and job.queued_seconds >= 0

    run(scenario)


@pytest.mark.parametrize("n_seen", [1, 10])
def test_a_cancelled_answer_ends_within_one_token(worker: Worker, n_seen: int) -> None:
    async def scenario() -> None:
        job = Job(long_tasks(worker.llm, n=2), "a")
        sampled = threading.Semaphore(0)
        go = threading.Semaphore(0)
        tell = job.tell

        def slowly(event: Event) -> None:
            tell(event)
            if isinstance(event, Step):
                sampled.release()
                go.acquire()

        job.tell = slowly  # type: ignore[method-assign]
        worker.submit(job)
        for _ in range(n_seen):
            await asyncio.to_thread(sampled.acquire)
            if _ + 1 < n_seen:
                go.release()
        cancelling = asyncio.create_task(worker.cancel(job))
        await asyncio.sleep(0)  # it has asked
        go.release()
        await cancelling
        (answer,) = job.answers
        assert len(answer.stats.precisions) == n_seen and worker.running == 0

    run(scenario)


def test_tokens_that_are_held_back_do_not_delay_it(worker: Worker) -> None:
    """All of the answer may be the beginning of the stop string."""

    async def scenario() -> None:
        whole = Job(tasks(worker.llm), "a")
        worker.submit(whole)
        text = (await collect(whole))[-1].text  # type: ignore[union-attr]
        job = Job(tasks(worker.llm, stop=text + "and more"), "a")
        check, n_checks = job.check, 0

        def counting() -> None:
            nonlocal n_checks
            n_checks += 1
            job.cancelled = n_checks == 4  # once before the answer, then after each token
            check()

        job.check = counting  # type: ignore[method-assign]
        worker.submit(job)
        with pytest.raises(ApiError, match="gone"):
            await collect(job)
        assert len(job.answers[0].stats.precisions) == 3 and not job.answers[0].tokens

    run(scenario)


def test_a_prefill_is_cancelled(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request comes before the prefill begins, where it would be lost if it came but once."""

    async def scenario() -> None:
        llm, entered, go = worker.llm, threading.Event(), threading.Event()
        configure = llm.configure

        def waiting(**options: Any) -> None:
            configure(**options)
            entered.set()
            go.wait()

        monkeypatch.setattr(llm, "configure", waiting)
        evaluate, n_evaluated = llm._eval, []

        def slowly(tokens: Any, abortable: bool = False) -> None:
            while abortable and not llm._abort.requested:
                threading.Event().wait(0.001)  # as a long prompt would
            n_evaluated.append(len(tokens))
            evaluate(tokens, abortable=abortable)

        monkeypatch.setattr(llm, "_eval", slowly)
        job = Job(tasks(llm, "Etwas anderes"), "a")
        worker.submit(job)
        await asyncio.to_thread(entered.wait)
        cancelling = asyncio.create_task(worker.cancel(job))
        await asyncio.sleep(0)
        go.set()
        await cancelling
        assert len(n_evaluated) == 1 and job.answers[0].tokens == ()
        with pytest.raises(ApiError, match="gone"):
            await collect(job)

    run(scenario)


def test_a_waiting_job_is_cancelled_without_being_begun(worker: Worker) -> None:
    async def scenario() -> None:
        first, second = Job(long_tasks(worker.llm), "a"), Job(tasks(worker.llm), "b")
        worker.submit(first)
        await until_running(worker, first)
        worker.submit(second)
        assert worker.waiting == 1
        await worker.cancel(second)
        assert worker.waiting == 0 and not second.answers and not first.ended
        await worker.cancel(first)

    run(scenario)


def test_cancelling_one_job_leaves_the_next_alone(worker: Worker) -> None:
    async def scenario() -> None:
        alone = Job(tasks(worker.llm), "a")
        worker.submit(alone)
        right = (await collect(alone))[-1]
        for _ in range(20):
            first, second = Job(long_tasks(worker.llm), "a"), Job(tasks(worker.llm), "a")
            worker.submit(first)
            worker.submit(second)
            await worker.cancel(first)
            got = (await collect(second))[-1]
            assert isinstance(got, Answer) and isinstance(right, Answer) and got.text == right.text

    run(scenario)


def test_the_queue_is_bounded(worker: Worker) -> None:
    async def scenario() -> None:
        jobs = [Job(long_tasks(worker.llm), i) for i in range(6)]
        for job in jobs[:5]:  # one runs
            worker.submit(job)
        with pytest.raises(ApiError) as refused:
            worker.submit(jobs[5])
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert int(refused.value.headers["Retry-After"]) > 0
        await asyncio.gather(*map(worker.cancel, jobs[:5]))
        worker.submit(jobs[5])
        await worker.cancel(jobs[5])

    run(scenario)


def test_closing_ends_what_waits_and_finishes_what_runs(model: Pmpd) -> None:
    async def scenario() -> None:
        worker = Worker(model, 4, LOG.append)
        worker.start()
        idle = threading.Event()
        first, second = Job(tasks(model), "a"), Job(tasks(model), "b")
        worker.submit(first)
        await until_running(worker, first)
        worker.submit(second)
        worker.close(idle.set)
        with pytest.raises(ApiError) as refused:
            worker.submit(Job(tasks(model), "c"))
        assert refused.value.status == 503
        with pytest.raises(ApiError, match="closing"):
            await collect(second)
        assert isinstance((await collect(first))[-1], Answer)
        assert await asyncio.to_thread(idle.wait, 10)
        worker.join()

    run(scenario)


def test_a_level_that_does_not_load_is_the_servers_fault(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        def fail(*_: int) -> None:
            raise BundleError("m-q4.gguf: damaged", "convert again")

        monkeypatch.setattr(worker.llm.levels, "load", fail)
        job = Job(tasks(worker.llm), "a")
        worker.submit(job)
        with pytest.raises(ApiError) as fault:
            await collect(job)
        assert fault.value.status == 500 and "gguf" not in fault.value.message
        assert LOG == ["m-q4.gguf: damaged: convert again"]

    run(scenario)


def test_a_fault_ends_one_job_and_is_logged_without_its_words(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        def fail(*_: Any) -> None:
            raise KeyError("what somebody typed")

        job = Job(tasks(worker.llm), "a")
        with monkeypatch.context() as patched:
            patched.setattr(FixedScheduler, "start", fail)
            failing = Job(tasks(worker.llm, pmpd={"method": "high"}), "a")
            worker.submit(failing)
            with pytest.raises(ApiError) as fault:
                await collect(failing)
        assert fault.value.status == 500 and "typed" not in fault.value.message
        assert len(LOG) == 1 and "KeyError in fail" in LOG[0] and "typed" not in LOG[0]
        worker.submit(job)
        assert isinstance((await collect(job))[-1], Answer)

    run(scenario)
