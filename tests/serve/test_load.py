"""Many clients at once, some of which leave."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
from serving import Server, chat_body, chunks, long_body, long_format, serve
from talk import SENTENCES

N_REQUESTS, N_CLIENTS, QUEUE = 200, 16, 8
METHODS = ({"method": "pmpd"}, {"method": "high"}, {"method": "low"}, {"high_steps": 2})


@pytest.fixture(scope="module")
def busy() -> Iterator[Server]:
    """A server whose queue holds some of the clients."""
    with serve("--max-queue", str(QUEUE)) as running:
        yield running


def body(kind: int, **fields: Any) -> dict[str, Any]:
    """One of twelve requests."""
    return chat_body(SENTENCES[kind % 3], pmpd=METHODS[kind // 3], max_tokens=40, **fields)


def answer(server: Server, kind: int, patience: float | None, stream: bool) -> tuple[str, list[int]] | None:
    """Ask until there is room; None where the client left after `patience` seconds."""
    with server.begun(body(kind, stream=stream)) as connection:
        if patience is not None:
            time.sleep(patience)
            return None
        with connection.getresponse() as response:
            if response.status == 429:
                time.sleep(0.01)
                return answer(server, kind, patience, stream)
            assert response.status == 200
            if not stream:
                made = json.loads(response.read())
                return made["choices"][0]["message"]["content"], made["pmpd"]["precisions"]
            *parts, last = chunks(response)
            text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
            return text, last["pmpd"]["precisions"]


def held(server: Server) -> tuple[int, int, int]:
    """Threads, sockets and resident bytes of the server."""
    process = psutil.Process(server.process.pid)
    return process.num_threads(), len(process.net_connections()), process.memory_info().rss


def settled(server: Server) -> tuple[int, int, int]:
    """What is held when the last client's thread has ended."""
    time.sleep(0.2)
    return held(server)


def idle(server: Server) -> bool:
    return server.metric("requests_running") == server.metric("requests_waiting") == 0


def run_all(server: Server, seed: int, serial: list[Any]) -> int:
    """Let all clients ask; returns how many were answered."""
    rng = random.Random(seed)
    plan = [
        (rng.randrange(12), rng.choice([None, None, 0.0, rng.random() / 20]), rng.random() < 0.5)
        for _ in range(N_REQUESTS)
    ]
    with ThreadPoolExecutor(N_CLIENTS) as pool:
        asked = pool.map(lambda one: answer(server, *one), plan)
        waiting = {server.metric("requests_waiting") for _ in range(50)}
        answers = list(asked)
    assert 0 < max(waiting) <= QUEUE + 1  # for a moment: one has ended, and the next has not been taken yet
    for (kind, patience, _), got in zip(plan, answers, strict=True):
        assert got == (None if patience is not None else serial[kind])
    server.wait(lambda: idle(server))
    return sum(got is not None for got in answers)


def test_all_finished_answers_are_those_of_one_at_a_time_and_nothing_leaks(busy: Server) -> None:
    serial = [answer(busy, kind, None, stream=False) for kind in range(12)]
    assert len({text for text, _ in serial if serial}) > 3
    run_all(busy, 0, serial)
    threads, sockets, resident = settled(busy)
    for seed in range(1, 7):
        assert run_all(busy, seed, serial) > N_REQUESTS / 3
        before, resident = resident, settled(busy)[2]
        if resident - before < 2 * 2**20:
            break
    else:  # buffers reach their size; what leaks goes on
        pytest.fail(f"{resident - before} bytes more after each {N_REQUESTS} requests")
    busy.wait(lambda: held(busy)[1] <= sockets)
    assert held(busy)[0] <= threads
    assert "unexpected" not in busy.log and " 500 " not in busy.log


def n_left(server: Server) -> int:
    return sum(line.endswith(" left") for line in server.log.splitlines())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place_at_once(busy: Server, stream: bool) -> None:
    before, left = busy.metric("predicted_tokens_total"), n_left(busy)
    with busy.begun(long_body(n=8, stream=stream)) as connection:
        busy.wait(lambda: busy.metric("requests_running") == 1)
        if stream:
            with connection.getresponse() as response:
                next(chunks(response))
    busy.wait(lambda: idle(busy), 10)
    assert busy.metric("predicted_tokens_total") - before < 8 * 450
    busy.wait(lambda: n_left(busy) == left + 1)


def test_a_client_that_leaves_while_it_waits_is_never_answered(busy: Server) -> None:
    with busy.streaming(n=8):
        with busy.begun(chat_body()):
            busy.wait(lambda: busy.metric("requests_waiting") == 1)
        busy.wait(lambda: busy.metric("requests_waiting") == 0)
        assert busy.metric("requests_running") == 1
    busy.wait(lambda: idle(busy))


def test_beyond_the_queue_requests_are_refused_with_a_time_to_come_back(busy: Server) -> None:
    with ExitStack() as stack:
        with busy.streaming(n=8):
            waiting = [stack.enter_context(busy.begun(body(0))) for _ in range(QUEUE)]
            busy.wait(lambda: busy.metric("requests_waiting") == QUEUE)
            reply = busy.chat()
            assert (reply.status, reply.code) == (429, "queue_full")
            assert int(reply.headers["retry-after"]) > 0
        assert [connection.getresponse().status for connection in waiting] == [200] * QUEUE


def test_a_client_that_does_not_read_holds_nobody_up(busy: Server) -> None:
    with busy.begun(long_body(n=2, stream=True, logprobs=True, top_logprobs=20)):
        assert busy.chat().status == 200


def test_a_program_with_a_pile_does_not_hold_up_another(busy: Server) -> None:
    """Both from this machine."""
    ends: list[str] = []

    def ask(agent: str) -> None:
        fields = chat_body(response_format=long_format(60), max_tokens=200)
        assert busy.request("POST", "/v1/chat/completions", fields, {"User-Agent": agent}).status == 200
        ends.append(agent)

    with ThreadPoolExecutor(QUEUE) as pool, busy.streaming(n=8):
        piled = [pool.submit(ask, "pile") for _ in range(QUEUE - 1)]
        busy.wait(lambda: busy.metric("requests_waiting") == QUEUE - 1)
        single = pool.submit(ask, "single")
        busy.wait(lambda: busy.metric("requests_waiting") == QUEUE)
    assert all(one.done() for one in [*piled, single]) and ends.index("single") <= 2
