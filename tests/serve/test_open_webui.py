"""Open WebUI's requests, as version 0.12.4 sent them to our server: word for word, but for the length of texts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving import Reply, Server, chunks

HEADERS = {
    "Content-Type": "application/json",
    "Authorization": "Bearer none",
    "Accept": "*/*",
    "Accept-Encoding": "gzip, deflate, br",
    "User-Agent": "Python/3.11 aiohttp/3.14.5",
}
MESSAGES = [
    {"role": "user", "content": "Ein Hund läuft."},
    {"role": "assistant", "content": "A dog is running."},
    {"role": "user", "content": "Eine Katze schläft."},
]
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
SETTINGS = {  # what "Advanced Params" of a chat can set
    "temperature": 0.7,
    "max_tokens": 20,
    "stop": ["zzz"],
    "seed": 3,
    "top_k": 20,
    "min_p": 0.1,
    "repeat_penalty": 1.1,
    "frequency_penalty": 0.1,
    "reasoning_effort": "low",
}


def ask(server: Server, method: str, path: str, body: Any = None) -> Reply:
    reply = server.request(method, path, body, HEADERS)
    assert reply.status == 200, reply.body
    return reply


def test_a_connection_is_verified_by_the_list_of_models(server: Server) -> None:
    assert [one["id"] for one in ask(server, "GET", "/v1/models").json["data"]] == ["translator-7m"]


@pytest.mark.parametrize(
    "more",
    [{}, SETTINGS, {**SETTINGS, "stream_options": {"include_usage": True}, "tools": [TOOL]}],
    ids=["plain", "settings", "tools"],
)
def test_a_chat_is_streamed(server: Server, more: dict[str, Any]) -> None:
    body = {"model": "translator-7m", "stream": True, "messages": MESSAGES, **more}
    reply = ask(server, "POST", "/v1/chat/completions", body)
    assert reply.headers["content-type"].startswith("text/event-stream")  # else it is taken for a whole answer
    lines = reply.body.splitlines()
    assert lines[-2] == b"data: [DONE]"
    parts = list(chunks(lines))
    text = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"])
    whole = ask(server, "POST", "/v1/chat/completions", {**body, "stream": False}).json
    assert text == whole["choices"][0]["message"]["content"] != ""
    assert ("usage" in parts[-1]) == ("stream_options" in more)


def test_its_own_tasks_are_answered(server: Server) -> None:
    """Titles, tags and such: a prompt of its own, and no stream."""
    asked = [{"role": "user", "content": "### Task:\nGenerate a concise title."}]
    for more in ({"max_tokens": 1000}, {}):
        body = {"model": "translator-7m", "messages": asked, "stream": False, **more}
        choice = ask(server, "POST", "/v1/chat/completions", body).json["choices"][0]
        assert choice["message"]["role"] == "assistant" and choice["finish_reason"] in ("stop", "length")


def test_documents_are_embedded(server: Server) -> None:
    body = {"input": ["Ein Hund läuft im Park.   Eine Katze schläft."], "model": "translator-7m"}
    (found,) = ask(server, "POST", "/v1/embeddings", body).json["data"]
    assert all(isinstance(number, float) for number in found["embedding"])


def test_a_refusal_has_what_it_shows(server: Server) -> None:
    body = {"model": "translator-7m", "messages": [{"role": "user", "content": "Hund " * 700}], "stream": True}
    reply = server.request("POST", "/v1/chat/completions", body, HEADERS)
    assert reply.status == 400 and "shorten it" in json.loads(reply.body)["error"]["message"]
