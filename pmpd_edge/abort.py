"""Stops the library while it computes: on request, from any thread, and on Ctrl-C or SIGTERM."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pmpd_edge import native
from pmpd_edge.interrupts import kept_interrupts


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
        anyway.
        """
        with kept_interrupts(self.request):
            self._llama_cpp.llama_set_abort_callback(ctx, self._callback, None)
            try:
                yield
            finally:
                self._llama_cpp.llama_set_abort_callback(ctx, self._llama_cpp.ggml_abort_callback(), None)
