"""The routes: OpenAI's, llama.cpp's `/props` and `/health`, `/metrics`, and the page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from pmpd_edge import __version__
from pmpd_edge.serve import errors, metrics, openapi, prepare, responses
from pmpd_edge.serve.embedding import Embedded, EmbeddingTask
from pmpd_edge.serve.errors import ApiError
from pmpd_edge.serve.guard import RECORD
from pmpd_edge.serve.metrics import Metrics
from pmpd_edge.serve.props import props
from pmpd_edge.serve.requests import AnswerRequest, ChatRequest, CompletionRequest, EmbeddingRequest
from pmpd_edge.serve.responses import Writer
from pmpd_edge.serve.worker import Answer, Begun, Event, Job, Step, Worker

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd

PAGE = Path(__file__).parent / "page"
MAX_BODY = 4 * 1024 * 1024
STREAM_HEADERS = {"X-Accel-Buffering": "no"}  # a proxy shall hand on each token as it comes

Body = TypeVar("Body", bound=BaseModel)


@dataclass
class Service:
    """What the routes need: the model and its worker, the counters, and a log for texts where they are asked for."""

    llm: Pmpd
    worker: Worker
    metrics: Metrics
    log_text: Callable[[str], Any] | None = None
    watchers: set[asyncio.Task[None]] = field(default_factory=set)


def create_app(service: Service) -> openapi.Api:
    """The application, without what guards it."""
    app = openapi.Api(title="pmpd-edge", version=__version__, docs_url=None, redoc_url=None)
    _add_answers(app, service)
    _add_information(app, service)
    app.add_api_route("/", lambda: FileResponse(PAGE / "index.html"), include_in_schema=False)
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _failed)
    return app


def _add_answers(app: openapi.Api, service: Service) -> None:
    asked = openapi.errors(400, 401, 403, 413, 429, 503)
    stream: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
    chats: dict[str, Any] = {"openapi_extra": openapi.body(ChatRequest), "responses": {**stream, **asked}}
    completions: dict[str, Any] = {**chats, "openapi_extra": openapi.body(CompletionRequest)}

    @app.post("/v1/chat/completions", summary="Answer a chat", response_model=None, **chats)
    async def chat(request: Request) -> Response:
        body = await _read(request, ChatRequest)
        tasks = await asyncio.to_thread(prepare.chat_tasks, service.llm, body)
        tool = prepare.called_tool(body)
        writer = _writer(service, body, tool=tool.function.name if tool else None, logprobs=bool(body.logprobs))
        return await _answer(service, request, tasks, writer, bool(body.stream))

    @app.post("/v1/completions", summary="Continue a text", response_model=None, **completions)
    async def completion(request: Request) -> Response:
        body = await _read(request, CompletionRequest)
        tasks = await asyncio.to_thread(prepare.completion_tasks, service.llm, body)
        writer = _writer(service, body, is_chat=False, logprobs=body.logprobs is not None)
        return await _answer(service, request, tasks, writer, bool(body.stream))

    texts: dict[str, Any] = {"openapi_extra": openapi.body(EmbeddingRequest), "responses": asked | openapi.errors(404)}

    @app.post("/v1/embeddings", summary="Embed texts", response_model=None, **texts)
    async def embeddings(request: Request) -> Response:
        body = await _read(request, EmbeddingRequest)
        tasks = await asyncio.to_thread(prepare.embedding_tasks, service.llm, body)
        events = await _begin(service, request, tasks)
        found = [event async for event in events if isinstance(event, Embedded)]
        name, encoding = service.llm.bundle.name, body.encoding_format
        return await asyncio.to_thread(lambda: JSONResponse(responses.embeddings(name, found, encoding)))  # may be long


def _add_information(app: openapi.Api, service: Service) -> None:
    closed = openapi.errors(401, 403)
    schedulers = prepare.schedulers(service.llm.bundle)
    model = {"id": service.llm.bundle.name, "object": "model", "created": 0, "owned_by": "pmpd-edge"}

    @app.get("/v1/models", summary="The model", responses=closed)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", summary="The model, by its name", responses=closed | openapi.errors(404))
    async def one_model(name: str) -> dict[str, Any]:
        if name != model["id"]:
            raise ApiError(404, f"no such model: this is {model['id']}", code="model_not_found", param="model")
        return model

    @app.get("/props", summary="The model, its levels, and what requests may choose", responses=closed)
    def properties() -> dict[str, Any]:
        return props(service.llm, schedulers)

    @app.get("/health", summary="Whether requests are taken", responses=openapi.errors(403))
    async def health() -> dict[str, str]:
        return {"status": "closing" if service.worker.closing else "ok"}

    @app.get("/metrics", summary="Counters", response_class=PlainTextResponse, responses=closed)
    async def counters() -> Response:
        return Response(service.metrics.text(service.worker), media_type=metrics.CONTENT_TYPE)


async def _read(request: Request, model: type[Body]) -> Body:
    """The body of a request; raises ApiError where it is too large or not what it should be."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > MAX_BODY:
                raise ApiError(413, f"a body of more than {MAX_BODY} bytes: send less", code="body_too_large")
            parts.append(part)
    except ClientDisconnect:
        raise errors.gone() from None
    try:
        return await asyncio.to_thread(model.model_validate_json, b"".join(parts), strict=True)
    except ValidationError as error:
        raise errors.invalid(error) from None


def _writer(service: Service, body: AnswerRequest, is_chat: bool = True, **options: Any) -> Writer:
    return Writer(
        model=service.llm.bundle.name,
        is_chat=is_chat,
        scheduler=body.pmpd.scheduler_name,
        n=body.n or 1,
        include_usage=body.include_usage,
        **options,
    )


async def _answer(
    service: Service, request: Request, tasks: list[prepare.Task], writer: Writer, stream: bool
) -> Response:
    """Queue the tasks, and write the answers."""
    events = await _begin(service, request, tasks)
    if stream:
        return StreamingResponse(_events(events, writer), media_type="text/event-stream", headers=STREAM_HEADERS)
    answers = [event async for event in events if isinstance(event, Answer)]
    return JSONResponse(writer.whole(answers))


async def _begin(
    service: Service, request: Request, tasks: Sequence[prepare.Task | EmbeddingTask]
) -> AsyncIterator[Event]:
    """Queue the tasks; returns what happens when their turn has come. The place is free when the client leaves."""
    job = Job(tasks, client=(request.client and request.client.host, request.headers.get("user-agent")))
    request.scope[RECORD].job = job
    service.worker.submit(job)
    if service.log_text:
        service.log_text(f"prompts {json.dumps(prepare.prompt_texts(service.llm, tasks))}")
    watcher = asyncio.create_task(_cancel_when_gone(service, request, job))
    service.watchers.add(watcher)  # else it might be collected
    watcher.add_done_callback(service.watchers.discard)
    events = job.events()
    assert isinstance(await anext(events), Begun)  # where it is refused instead, there can still be an error's status
    return events


async def _cancel_when_gone(service: Service, request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":  # comes after the response too
        pass
    await service.worker.cancel(job)


async def _events(events: AsyncIterator[Event], writer: Writer) -> AsyncIterator[str]:
    """A stream of OpenAI's chunks as server-sent events."""
    answers: list[Answer] = []
    unsent: list[Step] = []
    begun = -1
    try:
        async for event in events:
            assert isinstance(event, Step | Answer)
            if event.index > begun:
                begun = event.index
                if first := writer.first_chunk(begun):
                    yield _data(first)
            if isinstance(event, Answer):
                answers.append(event)
                yield _data(writer.last_chunk(event, unsent))
                unsent = []
            else:
                unsent.append(event)
                if event.token.text:
                    yield _data(writer.text_chunk(unsent))
                    unsent = []
    except ApiError as error:
        yield _data(error.to_document())
        return
    if writer.include_usage:
        yield _data(writer.usage_chunk(answers))
    yield "data: [DONE]\n\n"


def _data(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.to_document(), error.status, error.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(refusal.to_document(), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    refusal = errors.unexpected(error)  # the guard, which sees the error too, logs it
    return JSONResponse(refusal.to_document(), refusal.status)
