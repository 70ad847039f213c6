"""Starts the server, and ends it: on the first signal after the running answers, on the second at once."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import datetime
from types import FrameType
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from pmpd_edge import cli_ui as ui
from pmpd_edge.chat import open_model
from pmpd_edge.errors import PmpdError
from pmpd_edge.serve import guard
from pmpd_edge.serve.app import Service, create_app
from pmpd_edge.serve.embedding import UNPOOLED, Embedded
from pmpd_edge.serve.guard import Guard, Record
from pmpd_edge.serve.metrics import Metrics
from pmpd_edge.serve.worker import Answer, Worker

MAX_HEADERS = 64 * 1024  # bytes of a request's line and headers
MAX_CONNECTIONS = 512
LAST_WORDS = 10  # seconds that clients have for taking what is written, after the last answer


@dataclass(frozen=True)
class Options:
    """What the command line says about the server itself.

    Attributes:
        port: 0 is any free one.
        cors_origins: sites whose pages may use it.
        max_queue: requests that may wait.
        log_text: whether prompts and answers are logged.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    cors_origins: Sequence[str] = ()
    max_queue: int = 16
    log_text: bool = False


def run(bundle: str | None, model: Mapping[str, Any], options: Options, browse: bool = False) -> None:
    """Serve a bundle until a signal ends it.

    Args:
        bundle: its directory or Hub id; None for the model in the package.
        model: options of `Pmpd`, as `open_model` takes them.
        options: those of the server.
        browse: whether a browser opens the page.

    Raises:
        PmpdError: the address is not free, or the bundle or an option does not fit.
    """
    if options.api_key is not None and not options.api_key.strip():
        raise PmpdError("an empty API key", "give one, or leave it out")
    with (
        closing(_bind(options.host, options.port)) as listener,
        closing(open_model(bundle, {**model, **UNPOOLED})) as llm,
    ):
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        metrics = Metrics()
        worker = Worker(llm, options.max_queue, log)
        service = Service(llm, worker, metrics, log if options.log_text else None)

        def finished(answer: Answer | Embedded) -> None:
            metrics.count_answer(answer)
            if options.log_text and isinstance(answer, Answer):
                log(f"answer {json.dumps(answer.text)}")

        worker.finished = finished
        if not guard.is_loopback(host) and options.api_key is None:
            ui.note("Whoever reaches this machine can use the server: set PMPD_API_KEY, or bind to 127.0.0.1.")
        server = _Server(_guarded(create_app(service), metrics, options), worker)
        server.on_started = lambda: _announce(llm.bundle.name, url, browse)
        worker.start()
        server.run(sockets=[listener])
        worker.join()


def log(line: str) -> None:
    """Write a line to standard error."""
    with suppress(OSError):
        print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}", file=sys.stderr, flush=True)


class _Server(uvicorn.Server):
    """uvicorn, which goes on listening until the running answers have ended."""

    def __init__(self, app: ASGIApp, worker: Worker) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                h11_max_incomplete_event_size=MAX_HEADERS,
                timeout_graceful_shutdown=LAST_WORDS,
            )
        )
        self._worker = worker
        self._signalled = False
        self.on_started: Callable[[], Any] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signalled:
            os._exit(128 + sig)
        self._signalled = True
        asyncio.get_running_loop().call_soon_threadsafe(self._worker.close, self._end)

    def _end(self) -> None:
        self.should_exit = True


def _guarded(app: ASGIApp, metrics: Metrics, options: Options) -> ASGIApp:
    """The application behind what decides who may use it."""
    hosts = guard.loopback_names(options.host) if guard.is_loopback(options.host) else None

    def done(record: Record) -> None:
        metrics.count_request(record.route, record.status)

    guarded: ASGIApp = Guard(app, options.api_key, hosts, log, done)
    if options.cors_origins:
        guarded = CORSMiddleware(
            guarded, allow_origins=options.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return guarded


def _bind(host: str, port: int) -> socket.socket:
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with ExitStack() as stack:
            bound = stack.enter_context(socket.socket(family, kind, protocol))
            if os.name == "posix":
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            stack.pop_all()  # it stays open
            return bound
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise PmpdError(f"{host}:{port} cannot be used ({why})", "choose another --port or --host") from None


def _announce(name: str, url: str, browse: bool) -> None:
    ui.note(f"{name} · {url} · Ctrl-C ends it after the running answer, twice at once")
    if browse:
        threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()  # a browser in a terminal would stay
