"""The server that the tests of this folder share, and the model that says what it should answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import Server, serve

from pmpd_edge import Pmpd

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server with the default model."""
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def model() -> Iterator[Pmpd]:
    """The default model in this process."""
    opened = Pmpd(n_threads=1)
    yield opened
    opened.close()
