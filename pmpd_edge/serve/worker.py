"""The thread that owns the model, and the jobs that wait for it.

It knows nothing of HTTP: tasks go in, tokens and statistics come out, to the event loop of whoever asked.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pmpd_edge.errors import Cancelled, PmpdError
from pmpd_edge.serve import embedding, errors
from pmpd_edge.serve.embedding import Embedded, EmbeddingTask
from pmpd_edge.serve.errors import ApiError
from pmpd_edge.serve.fair import FairQueue
from pmpd_edge.serve.grammar import Grammar
from pmpd_edge.serve.prepare import Task
from pmpd_edge.stats import GenerationStats
from pmpd_edge.stream import Token, stream

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

STACK = 64 * 1024 * 1024  # bytes of address space: llama.cpp reads grammars by recursion
ASK_AGAIN = 0.02  # seconds between two requests to stop


@dataclass(frozen=True)
class Begun:
    """The job's turn has come."""


@dataclass(frozen=True)
class Step:
    """One sampled token of answer `index`, and how things stood with it."""

    index: int
    token: Token
    average_bitwidth: float | None
    decode_tokens_per_second: float


@dataclass(frozen=True)
class Answer:
    """Answer `index` is complete."""

    index: int
    tokens: tuple[Token, ...]
    stats: GenerationStats

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


Event = Begun | Step | Answer | Embedded


@dataclass(eq=False)
class Job:
    """What one request waits for, made in the event loop that reads its events; the rest is the worker's.

    Attributes:
        client: whose it is, for the queue.
        answers: those that were begun, as far as they went; and the texts that were embedded.
        queued_seconds: how long it waited.
    """

    tasks: Sequence[Task | EmbeddingTask]
    client: Hashable
    answers: list[Answer | Embedded] = field(default_factory=list)
    queued_seconds: float = 0.0
    cancelled: bool = False
    ended: bool = False
    _made: float = field(default_factory=perf_counter)
    _events: asyncio.Queue[Event | ApiError | None] = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    async def events(self) -> AsyncIterator[Event]:
        """What happens, until everything has; raises ApiError where it ends otherwise."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, ApiError):
                raise event
            yield event

    def begin(self) -> None:
        """Its turn has come."""
        self.queued_seconds = perf_counter() - self._made
        self.tell(Begun())

    def check(self) -> None:
        """Raise Cancelled where nobody waits for it any more."""
        if self.cancelled:
            raise Cancelled("the client has gone")

    def tell(self, event: Event) -> None:
        """Hand over what happened, from any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def end(self, error: ApiError | None = None) -> None:
        """Nothing more comes."""
        self.ended = True
        self._loop.call_soon_threadsafe(self._events.put_nowait, error)


class Worker:
    """Answers jobs one after the other in its own thread.

    Args:
        llm: the model; from `start` to `join` nobody else evaluates anything with it.
        max_queue: jobs that may wait.
        log: is told what went unexpectedly wrong.
    """

    def __init__(self, llm: Pmpd, max_queue: int, log: Callable[[str], None]) -> None:
        self.llm = llm
        self.max_queue = max_queue
        self._log = log
        self._queue: FairQueue[Job] = FairQueue()
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._closing = False
        self._on_idle: Callable[[], Any] = lambda: None
        self.finished: Callable[[Answer | Embedded], Any] = lambda answer: None

    @property
    def waiting(self) -> int:
        """Jobs whose turn has not come."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that are being answered: 0 or 1."""
        return int(self._running is not None)

    @property
    def closing(self) -> bool:
        """Whether no more jobs are taken."""
        return self._closing

    def start(self) -> None:
        """Start the thread."""
        before = threading.stack_size(STACK)
        self._thread = threading.Thread(target=self._work, name="pmpd-worker", daemon=True)
        self._thread.start()
        threading.stack_size(before)

    def submit(self, job: Job) -> None:
        """Queue a job; raises ApiError (429, 503) where it cannot be."""
        with self._changed:
            if self._closing:
                raise errors.closing()
            if len(self._queue) + self.running > self.max_queue:
                text = f"{len(self._queue)} requests are waiting: try again later"
                raise ApiError(429, text, "rate_limit_error", code="queue_full", retry_after=1 + len(self._queue))
            self._queue.put(job.client, job)
            self._changed.notify()

    async def cancel(self, job: Job) -> None:
        """End a job early; returns when its place is free.

        A request to stop that comes just before a prefill begins is lost, so it is repeated.
        """
        while not job.ended:
            with self._changed:
                job.cancelled = True
                if job is self._running:
                    self.llm.cancel()
                elif self._queue.remove(job):
                    job.end(errors.gone())
            await asyncio.sleep(ASK_AGAIN)

    def close(self, on_idle: Callable[[], Any]) -> None:
        """Take no more jobs and refuse those that wait.

        Args:
            on_idle: is called in the worker's thread when the running job has ended.
        """
        with self._changed:
            self._closing = True
            self._on_idle = on_idle
            for job in self._queue.clear():
                job.end(errors.closing())
            self._changed.notify()

    def join(self) -> None:
        """Wait for the thread after `close`."""
        self._thread.join()

    def _work(self) -> None:
        while job := self._next():
            error: ApiError | None = None
            try:
                self._answer_all(job)
            except Cancelled:
                error = errors.gone()
            except Exception as fault:
                error = errors.unexpected(fault)
                self._log(str(fault) if isinstance(fault, PmpdError) else where(fault))
            with self._changed:
                self._running = None
            job.end(error)
        self._on_idle()

    def _next(self) -> Job | None:
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            self._running = self._queue.get() if self._queue else None
            return self._running

    def _answer_all(self, job: Job) -> None:
        job.begin()
        for index, task in enumerate(job.tasks):
            job.check()
            if isinstance(task, EmbeddingTask):
                embedded = embedding.embed(self.llm, task, index, job.check)
                self._end(job, embedded)
                job.tell(embedded)
            else:
                self._answer(job, index, task)

    def _answer(self, job: Job, index: int, task: Task) -> None:
        tokens: list[Token] = []
        self.llm.configure(method=task.method, scheduler=task.scheduler, draft_tokens=task.draft_tokens)
        self.llm.set_seed(task.seed)
        before = self.llm.stats
        try:
            with ExitStack() as stack:
                grammar = stack.enter_context(closing(Grammar(self.llm, task.grammar))) if task.grammar else None
                given = stream(
                    self.llm,
                    task.prompt.tokens,
                    task.sampling,
                    task.max_new_tokens,
                    task.prompt.stop,
                    n_likeliest=task.n_likeliest,
                    grammar=grammar,
                    after_each=job.check,
                )
                for token in stack.enter_context(closing(given)):
                    tokens.append(token)
                    stats = self.llm.stats
                    job.tell(Step(index, token, stats.average_bitwidth, stats.decode_tokens_per_second))
                    job.check()
        finally:
            if self.llm.stats is not before:
                answer = Answer(index, tuple(tokens), self.llm.stats)
                self._end(job, answer)
        job.tell(answer)

    def _end(self, job: Job, answer: Answer | Embedded) -> None:
        job.answers.append(answer)
        self.finished(answer)


def where(fault: BaseException) -> str:
    """Where something went wrong, without what it says: that may be a text that somebody typed."""
    frame = traceback.extract_tb(fault.__traceback__)[-1]
    return f"unexpected {type(fault).__name__} in {frame.name} ({frame.filename}:{frame.lineno})"
