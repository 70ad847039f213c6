"""Stops the library while it computes: on request, from any thread, and on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pmpd_edge import native


class Abort:
    """A request to stop, which llama.cpp's abort callback sees."""

    def __init__(self) -> None:
        self._llama_cpp = native.load()
        requested = threading.Event()
        self._requested = requested
        self._callback = self._llama_cpp.ggml_abort_callback(lambda _: requested.is_set())

    def request(self) -> None:
        """Stop what runs under `enabled`, if anything does."""
        self._requested.set()

    def clear(self) -> None:
        """Forget a request."""
        self._requested.clear()

    @property
    def requested(self) -> bool:
        """Whether there is a request."""
        return self._requested.is_set()

    @contextmanager
    def enabled(self, ctx: Any) -> Iterator[None]:
        """Let requests, Ctrl-C and SIGTERM reach evaluations of `ctx`; what their handlers raise is raised at the end.

        The library asks the callback at every operation of the graph: too often for decode steps, which are short
        anyway. A handler runs inside the callback, where an exception would be lost, so it is kept until then.
        """
        raised: list[BaseException] = []
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def keep(number: int, frame: FrameType | None) -> None:
            handler = handlers[signal.Signals(number)]
            assert callable(handler)
            try:
                handler(number, frame)
            except BaseException as interrupt:
                raised.append(interrupt)
                self.request()

        guarded = {number: handler for number, handler in handlers.items() if callable(handler)}
        if threading.current_thread() is not threading.main_thread():
            guarded = {}
        for number in guarded:
            signal.signal(number, keep)
        self._llama_cpp.llama_set_abort_callback(ctx, self._callback, None)
        try:
            yield
        finally:
            self._llama_cpp.llama_set_abort_callback(ctx, self._llama_cpp.ggml_abort_callback(), None)
            for number, handler in guarded.items():
                signal.signal(number, handler)
            if raised:
                raise raised[0] from None
