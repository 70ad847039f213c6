"""How the server begins and ends (pmpd_edge/serve/run.py)."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import Server, chat_body, serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server(number: signal.Signals) -> None:
    with serve() as server:
        assert server.get("/health").json == {"status": "ok"}
        assert server.stop(number) == 0
        assert "Traceback" not in server.log


def test_a_signal_lets_the_running_answer_end_and_refuses_others() -> None:
    with serve() as server, server.streaming(n=4) as stream, server.begun(chat_body()) as waiting:
        server.wait(lambda: server.metric("requests_waiting") == 1)
        server.process.send_signal(signal.SIGTERM)
        with waiting.getresponse() as refused:
            assert refused.status == 503
        reply = server.chat()
        assert (reply.status, reply.code) == (503, "closing")
        assert server.get("/health").json == {"status": "closing"}
        parts = list(stream)
        assert [part["choices"][0]["index"] for part in parts if part["choices"][0]["finish_reason"]] == [0, 1, 2, 3]
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log


def test_a_second_signal_stops_at_once() -> None:
    with serve() as server, server.streaming(n=8):
        server.process.send_signal(signal.SIGTERM)
        server.wait(lambda: server.get("/health").json["status"] == "closing")
        begun = time.monotonic()
        assert server.stop(signal.SIGTERM) == 128 + signal.SIGTERM
        assert time.monotonic() - begun < 5


def test_the_demo_opens_a_browser_at_its_page(tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    command = [sys.executable, "-m", "pmpd_edge", "demo", "--threads", "1"]
    environment = {**os.environ, "BROWSER": str(browser)}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            end = time.monotonic() + 60
            while not opened.exists():
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
            port = int(opened.read_text().rpartition(":")[2])
            assert Server(process, Path(os.devnull), "127.0.0.1", port).get("/").status == 200
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
