"""Stops the library while it computes: on request, from any thread, and on Ctrl-C."""

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
        """Let requests and Ctrl-C reach evaluations of `ctx`; what Ctrl-C's handler raises is raised at the end.

        The library asks the callback at every operation of the graph: too often for decode steps, which are short
        anyway. A handler runs inside the callback, where an exception would be lost, so it is kept until then.
        """
        raised: list[BaseException] = []
        handler = signal.getsignal(signal.SIGINT)

        def keep(number: int, frame: FrameType | None) -> None:
            assert callable(handler)
            try:
                handler(number, frame)
            except BaseException as interrupt:
                raised.append(interrupt)
                self.request()

        guarded = callable(handler) and threading.current_thread() is threading.main_thread()
        if guarded:
            signal.signal(signal.SIGINT, keep)
        self._llama_cpp.llama_set_abort_callback(ctx, self._callback, None)
        try:
            yield
        finally:
            self._llama_cpp.llama_set_abort_callback(ctx, self._llama_cpp.ggml_abort_callback(), None)
            if guarded:
                signal.signal(signal.SIGINT, handler)
            if raised:
                raise raised[0] from None
