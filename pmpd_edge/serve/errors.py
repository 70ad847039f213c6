"""What goes wrong, in the form that OpenAI's clients expect."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pmpd_edge.errors import ContextFullError, PmpdError


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        kind: OpenAI's `type`; by default that of a bad request.
        code: OpenAI's `code`, for programs.
        param: the field of the request that is wrong.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.code, self.param, self.retry_after = code, param, retry_after

    def to_document(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**headers, "WWW-Authenticate": "Bearer"} if self.status == 401 else headers


def bad_request(error: PmpdError, param: str | None = None) -> ApiError:
    """What the model or its settings refuse of a request."""
    code = "context_length_exceeded" if isinstance(error, ContextFullError) else None
    return ApiError(400, str(error), code=code, param=param)


def invalid(error: ValidationError) -> ApiError:
    """What is wrong with a request's body; says nothing of what stands there."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    worst = max(found, key=lambda one: len(one["loc"]))  # of a choice between types, the one that came farthest
    param = ".".join(str(part) for part in worst["loc"] if isinstance(part, int) or part.isidentifier()) or None
    return ApiError(400, f"{param}: {worst['msg']}" if param else worst["msg"], param=param)


def unexpected(error: Exception) -> ApiError:
    """A fault of the server's own."""
    return ApiError(500, f"unexpected {type(error).__name__}: the server's log has more", "server_error")


def closing() -> ApiError:
    """The server answers what is running, and nothing more."""
    return ApiError(503, "the server is closing", "server_error", code="closing", retry_after=5)


def gone() -> ApiError:
    """Nobody waits for the answer any more; only the log sees this."""
    return ApiError(499, "the client has gone", code="cancelled")
