"""Runs one step of a conversion in a process of its own, and turns its last words into one line.

Steps run apart because llama.cpp may abort, upstream's converter needs its own `gguf`, and both must stop at once on
Ctrl-C. A child also ends by itself when its parent is killed: its standard input then reaches its end.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence

# An empty entry of sys.path is the current directory, where anything may lie; Python 3.10 puts it there.
_PRELUDE = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]
import os, threading
def watch():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
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
) -> None:
    """Run Python code in a process of its own until it ends; it is killed when this is left by an exception.

    Args:
        code: what `python -c` runs; `args` are its `sys.argv[1:]`.
        on_line: called with every line of its standard error, also those that end in a carriage return.
        env: variables to set beside the inherited ones.

    Raises:
        ChildError: it ended with another status than 0.
    """
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    process = subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8", **(env or {})},
        start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the child
    )
    assert process.stdin and process.stderr
    try:
        for line in process.stderr:
            if line.strip():
                lines.append(line.rstrip())
                on_line(lines[-1])
        returncode = process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stderr.close()
    if returncode:
        raise ChildError(lines, returncode)


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
