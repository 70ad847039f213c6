"""A server in its own process, as tests talk to it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

STARTED = re.compile(r"http://(\S+):(\d+)")
SENTENCE = "Ein Mann geht mit seinem Hund im Park spazieren."


@dataclass
class Reply:
    """What came back from one request; headers have small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """OpenAI's code of an error."""
        return self.json["error"]["code"]


@dataclass
class Server:
    """A running `pmpd-edge serve`."""

    process: subprocess.Popen[bytes]
    log_path: Path
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return self.log_path.read_text(encoding="utf-8")

    def connect(self) -> HTTPConnection:
        return HTTPConnection(self.host, self.port, timeout=60)

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str | None] | None = None
    ) -> Reply:
        """Send one request; a body that is not bytes goes as JSON, a header that is None is left out."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        with closing(self.connect()) as connection:
            connection.request(method, path, data, {name: value for name, value in sent.items() if value is not None})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, headers, response.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, headers=headers)

    def chat(self, text: str = SENTENCE, **fields: Any) -> Reply:
        """Send one message."""
        return self.request("POST", "/v1/chat/completions", chat_body(text, **fields))

    @contextmanager
    def begun(self, body: Any, path: str = "/v1/chat/completions") -> Iterator[HTTPConnection]:
        """Send a request and let the caller read the response, or not; the connection is closed at the end."""
        with closing(self.connect()) as connection:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            yield connection

    @contextmanager
    def streaming(self, **fields: Any) -> Iterator[Iterator[Any]]:
        """A long answer after its first chunk; the client leaves at the end."""
        with self.begun(long_body(stream=True, **fields)) as connection, connection.getresponse() as response:
            stream = chunks(response)
            next(stream)
            yield stream

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"pmpd_{name}[ {{]", line))

    def wait(self, condition: Any, seconds: float = 30) -> None:
        """Wait until something holds; fails where it does not."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serve(*options: str, **environment: str) -> Iterator[Server]:
    """Start a server with the default model, or one of `options`, at a free port, and end it."""
    command = [sys.executable, "-m", "pmpd_edge", "serve", "--port", "0", "--threads", "1", *options]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, **environment})
        try:
            yield Server(process, Path(log.name), *_address(process, Path(log.name)))
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    end = time.monotonic() + 60
    while not (found := STARTED.search(log.read_text(encoding="utf-8"))):
        assert process.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")
        time.sleep(0.05)
    return found[1], int(found[2])


def chat_body(text: str = SENTENCE, **fields: Any) -> dict[str, Any]:
    """A request with one message; at temperature 0 if nothing else is said."""
    return {"messages": [{"role": "user", "content": text}], **fields}


def long_format(n: int = 400) -> dict[str, Any]:
    """A response format that makes answers long, whatever the model would say."""
    schema = {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": n}
    return {"type": "json_schema", "json_schema": {"name": "long", "schema": schema}}


def long_body(**fields: Any) -> dict[str, Any]:
    """A request that takes its time; the more, the more answers (`n`) it asks for."""
    return chat_body(response_format=long_format(), max_tokens=450, **fields)


def chunks(stream: Any) -> Iterator[Any]:
    """The documents of a stream of server-sent events, up to its end mark."""
    for line in stream:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


def with_template(path: Path, template: str) -> Path:
    """Write the default bundle with another chat template to a directory: its own writes the last message only."""
    import gguf
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    from pmpd_edge import bundle, gguf_info

    default = bundle.load(bundle.resolve(None))
    path.mkdir()
    files = {}
    for name, file in default.files.items():
        reader = gguf.GGUFReader(default.path / name)
        writer = gguf.GGUFWriter(path / name, default.architecture)
        new = {gguf.Keys.Tokenizer.CHAT_TEMPLATE: MetadataDetails(gguf.GGUFValueType.STRING, template)}
        copy_with_new_metadata(reader, writer, new, [])
        size = (path / name).stat().st_size
        files[name] = dataclasses.replace(file, bytes=size, sha256=bundle.sha256_file(path / name))
    tokenizer = gguf_info.read(path / name).tokenizer_sha256
    bundle.write(dataclasses.replace(default, path=path, files=files, tokenizer_sha256=tokenizer, imatrix=None))
    return path
