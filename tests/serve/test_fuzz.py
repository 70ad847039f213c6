"""Requests made from our OpenAPI document, valid and not: whatever is sent, no fault of the server's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from serving import Server

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
NOT_OURS = [checks.positive_data_acceptance]  # a prompt may be too long, or a scheduler unknown, as no schema can say

ROUTES = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/embeddings": "POST",
    "/v1/models": "GET",
    "/v1/models/{name}": "GET",
    "/props": "GET",
    "/health": "GET",
    "/metrics": "GET",
}
CASES = [
    (route, mode) for route, method in ROUTES.items() for mode in ("positive", "negative")[: 1 + (method == "POST")]
]


@pytest.mark.parametrize(("route", "mode"), CASES)
def test_no_request_makes_a_fault(server: Server, route: str, mode: str) -> None:
    operation = schemathesis.openapi.from_url(f"{server.url}/openapi.json")[route][ROUTES[route]]

    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        response = case.call()
        assert response.status_code < 500
        case.validate_response(response, excluded_checks=NOT_OURS)

    check()
    assert server.process.poll() is None and "unexpected" not in server.log


def test_the_document_knows_every_route(server: Server) -> None:
    paths = server.get("/openapi.json").json["paths"]
    assert paths.keys() == ROUTES.keys()
