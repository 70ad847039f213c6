"""Runs one step of a conversion in a process of its own, and turns its last words into one line.

Steps run apart because llama.cpp may abort, upstream's converter needs its own `gguf`, and both must stop at once on
Ctrl-C. A child also ends by itself when its parent is killed: its standard input then reaches its end.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# An empty entry of sys.path is the current directory, where anything may lie; Python 3.10 puts it there.
_PRELUDE = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]
import os, threading
def watch():
    os.read(0, 1)
    if hasattr(os, "killpg"):
        os.killpg(0, 9)  # itself and what it started
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
"""

# Upstream's programs take options from variables too, which somebody may have set for others.
_PROGRAM = """
import subprocess
env = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_ARG_", "LLAMA_LOG_"))}
sys.exit(subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=2, env=env))
"""

_KEPT_LINES = 200

NO_SPACE = "No space left on device"


class ChildError(Exception):
    """A step failed.

    Attributes:
        lines: the last lines of its standard error.
        reason: the one that says why.
    """

    def __init__(self, lines: Sequence[str], returncode: int) -> None:
        self.lines = tuple(lines)
        self.reason = _reason(lines, returncode)
        super().__init__(self.reason)


def run(
    code: str,
    args: Sequence[str],
    on_line: Callable[[str], None] = lambda line: None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run Python code in a process of its own until it ends; it is killed when this is left by an exception.

    Args:
        code: what `python -c` runs; `args` are its `sys.argv[1:]`.
        on_line: called with every line of its standard error, also those that end in a carriage return; and with what
            there is of a line while it grows.
        env: variables to set beside the inherited ones.
        cwd: the directory to run in.

    Raises:
        ChildError: it ended with another status than 0.
    """
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    process = subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8", **(env or {})},
        start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the child
    )
    assert process.stdin and process.stderr
    try:
        for line, is_whole in _lines(process.stderr.fileno()):
            if is_whole:
                lines.append(line)
            on_line(line)
        returncode = process.wait()
    finally:
        _kill(process)
        process.wait()
        process.stdin.close()
        process.stderr.close()
    if returncode:
        raise ChildError(lines, returncode)


def run_program(
    command: Sequence[str], on_line: Callable[[str], None] = lambda line: None, cwd: Path | None = None
) -> None:
    """Run a program as `run` runs Python code; what it writes to standard output counts as well.

    Raises:
        ChildError: it ended with another status than 0.
    """
    run(_PROGRAM, command, on_line, cwd=cwd)


def _lines(descriptor: int) -> Iterator[tuple[str, bool]]:
    """What comes out of a pipe, line by line, each with whether it is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    line = ""
    while data := os.read(descriptor, 1 << 16):
        *whole, line = re.split("[\r\n]+", line + decoder.decode(data))
        yield from ((text.rstrip(), True) for text in whole if text.strip())
        if line.strip():
            yield line.rstrip(), False
    if line.strip():
        yield line.rstrip(), True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, if it still runs."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session, so its group has its number
    process.kill()


# What a line looks like that is somebody's last words: a Python exception, an error logged by upstream or the library.
_LAST_WORDS = (
    re.compile(r"^(?:[\w.]+\.)?(?:\w*(?:Error|Exception)): (?P<reason>.+)"),
    re.compile(r"^ERROR:[\w-]+:(?:Error: )?(?P<reason>.+)"),
    re.compile(r"failed to quantize: (?P<reason>.+)"),
    re.compile(r"error loading model: (?P<reason>.+)"),
    re.compile(r"^(?P<reason>.*GGML_ASSERT.*)"),
)


def _reason(lines: Sequence[str], returncode: int) -> str:
    if any(NO_SPACE in line for line in lines):
        return NO_SPACE
    for line in reversed(lines):
        for pattern in _LAST_WORDS:
            if match := pattern.search(line):
                return match["reason"].strip()
    if returncode == -signal.SIGTERM or returncode == -9:
        return "the process was killed; the system may have run out of memory"
    last = lines[-1].strip() if lines else "no reason given"
    return f"{last} (status {returncode})"
