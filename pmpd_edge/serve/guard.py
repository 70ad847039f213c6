"""What every request passes before and after it is answered: who may ask, what comes with answers, the log's line.

It knows nothing of models, and the log nothing of what is said in bodies.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pmpd_edge.bundle import in_one_line
from pmpd_edge.serve import errors
from pmpd_edge.serve.errors import ApiError
from pmpd_edge.serve.worker import Job, where

RECORD = "pmpd_record"  # in a request's scope
LOGGED_PATH = 200  # characters
_CONTENT = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
_SECURITY = [  # headers of everything
    (b"content-security-policy", f"{_CONTENT}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'".encode()),
    (b"cache-control", b"no-cache"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


@dataclass
class Record:
    """What is noted about a request while it is answered.

    Attributes:
        route: the path as the application names it, `other` where it has none.
        status: of HTTP; 499 where the client left before there was one.
        job: what it had to wait for, if anything.
    """

    status: int = 499
    route: str = "other"
    job: Job | None = None


class Guard:
    """Lets requests through to `app`, or refuses them.

    Args:
        app: what answers.
        api_key: without it, everything but the page and `/health` is refused; None asks for none.
        hosts: names under which the server may be called; None for any. A page of another site whose name was made to
            point here could otherwise read the answers (DNS rebinding).
        log: takes lines.
        done: is told of every request that was answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        api_key: str | None,
        hosts: Collection[str] | None,
        log: Callable[[str], Any],
        done: Callable[[Record], Any],
    ) -> None:
        self._app, self._hosts, self._log, self._done = app, hosts, log, done
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[RECORD] = Record()
        begun = perf_counter()
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started, record.status = True, message["status"]
                message["headers"] = [*message.get("headers", []), *_SECURITY]
            await send(message)

        try:
            if refusal := self._refusal(scope):
                await _error(refusal)(scope, receive, noting)
            else:
                await self._app(scope, receive, noting)
        except Exception as fault:
            self._log(where(fault))
            if not started:
                await _error(errors.unexpected(fault))(scope, receive, noting)
        finally:
            record.route = getattr(scope.get("route"), "path", record.route)
            self._done(record)
            self._log(_line(scope, record, perf_counter() - begun))

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return ApiError(403, "the Host header names another host: ask for localhost", code="invalid_host")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":  # pages of other sites may send any other
            return ApiError(400, "the Content-Type has to be application/json", code="invalid_content_type")
        if self._key is not None and not _is_open(scope["path"]) and not _has_key(headers, self._key):
            return ApiError(401, "a wrong API key, or none", "authentication_error", code="invalid_api_key")
        return None


def _has_key(headers: Headers, key: bytes) -> bool:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    sent = given.strip().encode("latin-1")  # as headers are decoded
    return scheme.lower() == "bearer" and hmac.compare_digest(sent, key)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def loopback_names(host: str) -> frozenset[str]:
    """Names by which a server on a loopback address is called."""
    return frozenset({"localhost", "127.0.0.1", "::1", host.lower()})


def _host(header: str) -> str:
    """The host of a Host header, without port and brackets."""
    name = header.rpartition("]")[0].removeprefix("[") if header.startswith("[") else header.partition(":")[0]
    return name.lower().rstrip(".")


def _is_open(path: str) -> bool:
    return path in ("/", "/health") or path.startswith("/page/")


def _error(error: ApiError) -> JSONResponse:
    return JSONResponse(error.to_document(), error.status, error.headers)


def _line(scope: Scope, record: Record, seconds: float) -> str:
    path = in_one_line(scope["path"])[:LOGGED_PATH]
    parts = [scope["method"], path, str(record.status), f"{1000 * seconds:.0f}ms"]
    if job := record.job:
        stats = [answer.stats for answer in job.answers]
        parts += [
            f"queued={1000 * job.queued_seconds:.0f}ms",
            f"prompt={sum(one.prompt_tokens for one in stats)}",
            f"reused={sum(one.reused_tokens for one in stats)}",
            f"prefill={1000 * sum(one.prefill_seconds for one in stats):.0f}ms",
            f"answer={sum(len(one.precisions) for one in stats)}",
            f"decode={1000 * sum(one.decode_seconds for one in stats):.0f}ms",
        ]
        parts += ["left"] if job.cancelled else []
    return " ".join(parts)
