"""The OpenAPI document of the interface.

The handlers read their bodies themselves, so FastAPI cannot know their models: they are put in here.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pmpd_edge.serve.requests import ChatRequest, CompletionRequest, EmbeddingRequest

_REF = "#/components/schemas/{model}"


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorDocument(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail


_WHAT = {
    400: "The request cannot be answered.",
    401: "A wrong API key, or none.",
    403: "The Host header names another host.",
    404: "There is no such thing.",
    413: "The body is too large.",
    429: "Too many requests are waiting.",
    503: "The server is closing.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, as FastAPI takes them."""
    return {status: {"model": ErrorDocument, "description": _WHAT[status]} for status in statuses}


def body(model: type[BaseModel]) -> dict[str, Any]:
    """The body of a route that reads it itself."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class Api(FastAPI):
    """FastAPI, with the models of bodies in its document."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        models = (ChatRequest, CompletionRequest, EmbeddingRequest)
        _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
        document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        return document
