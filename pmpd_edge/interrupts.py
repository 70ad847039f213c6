"""Ctrl-C and SIGTERM while the library works: their handlers run in its callbacks, where an exception would be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def _nothing() -> None:
    pass


@contextmanager
def kept_interrupts(heard: Callable[[], None] = _nothing) -> Iterator[None]:
    """Raise at the end what the handlers of Ctrl-C and SIGTERM raise until then.

    Outside the main thread, which alone hears signals, this does nothing. It costs some 30 µs.

    Args:
        heard: called when a handler has raised.
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
            heard()

    guarded = {number: handler for number, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        guarded = {}
    for number in guarded:
        signal.signal(number, keep)
    try:
        yield
    finally:
        for number, handler in guarded.items():
            signal.signal(number, handler)
        if raised:
            raise raised[0] from None
