"""What many tests need."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from pmpd_edge import Pmpd

# A shell that starts this in the background has it ignore Ctrl-C, and so would all processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def llm() -> Iterator[Pmpd]:
    """The default model, with one thread: a busy machine makes two wait for each other."""
    opened = Pmpd(n_threads=1)
    yield opened
    opened.close()
