"""Who may ask, and how much: refusals of the server (pmpd_edge/serve/guard.py, app.py)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from serving import SENTENCE, Server, chat_body, serve

from pmpd_edge.cli import cli
from pmpd_edge.serve.guard import is_loopback

KEY = "a key, with ümlaut"


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A server with a key that another site's pages may use."""
    with serve("--cors-origin", "https://friend.example", PMPD_API_KEY=KEY) as running:
        yield running


def refused(server: Server, **fields: Any) -> tuple[int, str | None]:
    reply = server.chat(**fields)
    return reply.status, reply.json["error"]["param"]


class TestBodies:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"temperature": -1}, "temperature"),
            ({"temperature": 2.1}, "temperature"),
            ({"top_p": 1.5}, "top_p"),
            ({"n": 0}, "n"),
            ({"n": 9}, "n"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"top_logprobs": 21}, "top_logprobs"),
            ({"seed": 2**63}, "seed"),
            ({"stop": ["a"] * 17}, "stop"),
            ({"stop": "a" * 257}, "stop"),
            ({"logit_bias": {"1": 1}}, "logit_bias"),
            ({"pmpd": {"method": "best"}}, "pmpd.method"),
            ({"pmpd": {"high_steps": -1}}, "pmpd.high_steps"),
            ({"pmpd": {"scheduler": "learned"}}, "pmpd"),
            ({"pmpd": {"scheduler": "static:3@1"}}, "pmpd"),
            ({"pmpd": {"scheduler": "confidence", "high_steps": 3}}, "pmpd"),
            ({"pmpd": {"scheduler": "os:getcwd"}}, "pmpd.scheduler"),
            ({"response_format": {"type": "json_schema"}}, "response_format"),
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "pope", "content": "x"}]}, "messages.0.role"),
            ({"tool_choice": "required"}, "tool_choice"),
        ],
        ids=str,
    )
    def test_a_field_that_does_not_fit_is_named(self, server: Server, fields: Any, param: str) -> None:
        assert refused(server, **fields) == (400, param)

    def test_nothing_is_imported_for_a_client(self, server: Server) -> None:
        reply = server.chat(pmpd={"scheduler": "antigravity:fly"})
        assert reply.status == 400 and "no such scheduler" in reply.json["error"]["message"]

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[]", b"null", b"\xff", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"[" * 99999],
    )
    def test_a_body_that_is_no_request_is_refused(self, server: Server, body: bytes) -> None:
        reply = server.request("POST", "/v1/chat/completions", body)
        assert reply.status == 400 and reply.json["error"]["type"] == "invalid_request_error"

    def test_lone_surrogates_and_infinities_are_refused_wherever_they_stand(self, server: Server) -> None:
        for part in (b'{"const": "\\ud800"}', b'{"\\udfff": 1}'):
            wanted = b'{"type": "json_object", "schema": %b}' % part
            body = b'{"messages": [{"role": "user", "content": "x"}], "response_format": %b}' % wanted
            assert server.request("POST", "/v1/chat/completions", body).status == 400
        body = b'{"messages": [{"role": "user", "content": "x"}], "temperature": '
        for number in (b"NaN", b"Infinity", b"1e999"):
            assert server.request("POST", "/v1/chat/completions", body + number + b"}").status == 400

    def test_a_large_body_is_refused(self, server: Server) -> None:
        reply = server.chat("x" * (4 * 1024 * 1024))
        assert (reply.status, reply.code) == (413, "body_too_large")
        assert server.chat(SENTENCE, user="x" * (2 * 1024 * 1024)).status == 200

    def test_a_large_body_without_a_length_is_refused_too(self, server: Server) -> None:
        connection = server.connect()
        parts = (b"x" * 65536 for _ in range(100))
        connection.request("POST", "/v1/completions", parts, {"Content-Type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()

    def test_a_client_that_leaves_in_mid_body_is_no_fault(self, server: Server) -> None:
        with socket.create_connection((server.host, server.port)) as sent:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            sent.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        server.wait(lambda: "POST /v1/completions 499 " in server.log)
        assert "unexpected" not in server.log

    def test_a_prompt_that_leaves_no_room_has_openais_code(self, server: Server) -> None:
        reply = server.chat("Hund " * 600)
        assert (reply.status, reply.code) == (400, "context_length_exceeded")
        reply = server.request("POST", "/v1/completions", {"prompt": [7] * 512})
        assert (reply.status, reply.code) == (400, "context_length_exceeded")
        assert server.request("POST", "/v1/completions", {"prompt": [7] * 511}).json["usage"]["completion_tokens"] == 1

    def test_many_answers_to_one_request_are_refused(self, server: Server) -> None:
        assert server.request("POST", "/v1/completions", {"prompt": ["a"] * 17}).status == 400
        assert server.request("POST", "/v1/completions", {"prompt": ["a"] * 9, "n": 2}).status == 400

    @pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
    def test_what_another_sites_form_could_send_is_refused(self, server: Server, kind: str | None) -> None:
        reply = server.request("POST", "/v1/chat/completions", chat_body(), {"Content-Type": kind})
        assert (reply.status, reply.code) == (400, "invalid_content_type")
        utf8 = {"Content-Type": "application/json; charset=utf-8"}
        assert server.request("POST", "/v1/chat/completions", chat_body(max_tokens=1), utf8).status == 200

    def test_headers_are_bounded(self, server: Server) -> None:
        assert server.get("/health", **{"X-Long": "x" * 30_000}).status == 200
        try:
            status = server.get("/health", **{"X-Long": "x" * 300_000}).status
        except ConnectionError:  # it has hung up before all was sent
            status = 400
        assert status == 400

    def test_there_is_nothing_else(self, server: Server) -> None:
        for method, path, status in [
            ("GET", "/x", 404),
            ("GET", "/v1/completions", 405),
            ("GET", "/page/../../app.py", 404),
        ]:
            reply = server.request(method, path)
            assert reply.status == status and reply.json["error"]["message"]
        assert server.get("/page/%2e%2e/app.py").status == 404


class TestKey:
    def test_without_it_everything_but_the_page_and_health_is_refused(self, locked: Server) -> None:
        for path in ("/v1/models", "/props", "/metrics", "/openapi.json", "/nothing"):
            reply = locked.get(path)
            assert (reply.status, reply.code) == (401, "invalid_api_key"), path
            assert reply.headers["www-authenticate"] == "Bearer"
        assert locked.chat().status == 401
        assert locked.get("/health").status == 200
        assert locked.get("/").status == 200

    @pytest.mark.parametrize(
        "sent", ["Bearer wrong", "Bearer", "", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
    )
    def test_a_wrong_one_is_refused(self, locked: Server, sent: str) -> None:
        assert locked.get("/v1/models", Authorization=sent.encode().decode("latin-1")).status == 401

    def test_the_right_one_opens(self, locked: Server) -> None:
        right = f"Bearer {KEY}".encode().decode("latin-1")
        assert locked.get("/v1/models", Authorization=right).status == 200
        assert locked.request("POST", "/v1/chat/completions", chat_body(), {"Authorization": right}).status == 200

    def test_it_is_not_logged(self, locked: Server) -> None:
        assert KEY not in locked.log


class TestOtherSites:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::2]", "localhost.evil"]
    )
    def test_a_name_that_was_made_to_point_here_is_refused(self, server: Server, host: str) -> None:
        for path in ("/", "/v1/models", "/health"):
            reply = server.request("GET", path, headers={"Host": host})
            assert (reply.status, reply.code) == (403, "invalid_host")

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:80", "localhost."])
    def test_names_of_this_machine_are_taken(self, server: Server, host: str) -> None:
        assert server.request("GET", "/health", headers={"Host": host}).status == 200

    def test_other_origins_get_no_leave(self, server: Server) -> None:
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        for reply in (
            server.request("OPTIONS", "/v1/chat/completions", headers=asked),
            server.get("/v1/models", **asked),
        ):
            assert not [name for name in reply.headers if name.startswith("access-control")]

    def test_an_origin_that_was_named_gets_it_even_for_refusals(self, locked: Server) -> None:
        asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
        headers = {"Access-Control-Request-Headers": "authorization, content-type, x-stainless-os"}
        preflight = locked.request("OPTIONS", "/v1/chat/completions", headers={**asked, **headers})
        assert preflight.status == 200
        assert preflight.headers["access-control-allow-origin"] == "https://friend.example"
        assert locked.get("/v1/models", **asked).headers["access-control-allow-origin"] == "https://friend.example"
        asked["Origin"] = "https://evil.example"
        assert "access-control-allow-origin" not in locked.get("/v1/models", **asked).headers
        assert locked.request("OPTIONS", "/v1/chat/completions", headers=asked).status == 400

    def test_pages_may_load_from_here_only(self, server: Server) -> None:
        for path in ("/", "/health", "/x"):
            headers = server.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"

    @pytest.mark.parametrize(
        ("host", "is_here"),
        [
            ("127.0.0.1", True),
            ("::1", True),
            ("localhost", True),
            ("0.0.0.0", False),
            ("::", False),
            ("a.example", False),
        ],
    )
    def test_loopback_addresses_are_told_from_others(self, host: str, is_here: bool) -> None:
        assert is_loopback(host) == is_here


def test_a_server_for_others_warns_without_a_key_and_takes_any_name() -> None:
    with serve("--host", "0.0.0.0") as running:
        assert "set PMPD_API_KEY" in running.log
        assert running.request("GET", "/health", headers={"Host": "box.lan"}).status == 200


def test_an_address_that_cannot_be_used_is_said_in_one_line(server: Server) -> None:
    for options in (["--port", str(server.port)], ["--host", "a..b"], ["--host", "192.0.2.1"]):
        result = CliRunner().invoke(cli, ["serve", *options])
        assert result.exit_code == 1 and "cannot be used" in result.output and result.output.count("\n") == 1


def test_an_empty_key_is_refused() -> None:
    result = CliRunner().invoke(cli, ["serve", "--api-key", " "])
    assert result.exit_code == 1 and "an empty API key" in result.output


class TestLog:
    def test_a_request_is_a_line_without_what_was_typed(self, server: Server) -> None:
        secret = "Geheimnisse"
        before = len(server.log.splitlines())
        server.chat(secret, stop=secret, user=secret, max_tokens=3)
        server.chat(secret, temperature=secret)
        server.request("POST", "/v1/completions", {"prompt": secret, "max_tokens": secret})
        server.request("POST", "/v1/chat/completions", json.dumps({"messages": secret}).encode())
        server.chat(response_format={"type": "json_object", "schema": {"type": secret}})
        server.get(f"/health?q={secret}")
        server.wait(lambda: len(server.log.splitlines()) >= before + 6)
        assert secret not in server.log
        first = server.log.splitlines()[before]
        assert " POST /v1/chat/completions 200 " in first and "answer=3" in first and "prompt=" in first

    def test_a_path_cannot_forge_a_line(self, server: Server) -> None:
        with socket.create_connection((server.host, server.port)) as sent:
            sent.sendall(b"GET /a%0Ab%1b[2J HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            sent.recv(1000)
        server.wait(lambda: "GET /a" in server.log)
        assert "\x1b" not in server.log and "\nb" not in server.log

    def test_text_is_logged_where_that_is_asked_for(self) -> None:
        with serve("--log-text") as running:
            answer = running.chat("Ein Hund").json["choices"][0]["message"]["content"]
            running.wait(lambda: "answer " in running.log)
            assert "Ein Hund" in running.log and json.dumps(answer) in running.log
