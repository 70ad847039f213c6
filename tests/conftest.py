"""What many tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pmpd_edge import Pmpd


@pytest.fixture
def llm() -> Iterator[Pmpd]:
    """The default model, with one thread: a busy machine makes two wait for each other."""
    opened = Pmpd(n_threads=1)
    yield opened
    opened.close()
