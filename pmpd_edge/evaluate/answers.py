"""Answers to a data set's prompts under one schedule after another, made once and kept in a file.

What has been made is found again after an interruption, by the key of all that went into it. Answers are made in parts
of a fixed size, and a part is written whole or not at all: which sequences are evaluated together, and so the last bits
of their logits, does not depend on where a run was interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmpd_edge.batch import Answer, Batch, Finish, Job
from pmpd_edge.evaluate.drafted import OneByOne
from pmpd_edge.schedule import Scheduler

PART = 64  # answers


@dataclass(frozen=True)
class Kept:
    """What is kept of an answer: its text, its tokens, the precision of every token, and why it ended."""

    text: str
    tokens: tuple[int, ...]
    precisions: tuple[int, ...]
    finish: Finish

    @property
    def decode_precisions(self) -> tuple[int, ...]:
        """Precision of each decode step, from step 1 on."""
        return self.precisions[1:]


class Store:
    """A file of JSON lines, each a part of a run's answers or another figure, by key.

    Args:
        path: read where it exists; a last line that was not written whole is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = {}
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
                self._found[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                continue  # somebody else's line: what it held is made again

    def get(self, inputs: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What `make` returned for these inputs, now or earlier."""
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        if key not in self._found:
            self._found[key] = make()
            line = json.dumps({"key": key, "inputs": inputs, "value": self._found[key]}, ensure_ascii=False) + "\n"
            with open(self._path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        return self._found[key]


class Answers:
    """Answers a data set's prompts.

    Args:
        store: where they are kept.
        batch: what decodes, several answers at a time or one by one.
        prompts: token ids of each.
        max_new_tokens: length of an answer at most.
        inputs: what else decides about the answers and is not in the other arguments.
        stop: texts that end an answer, and are left out of it.
    """

    def __init__(
        self,
        store: Store,
        batch: Batch | OneByOne,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        inputs: Mapping[str, Any],
        stop: tuple[str, ...] = (),
    ) -> None:
        self._store, self._batch, self._prompts = store, batch, prompts
        self._max_new_tokens, self._stop = max_new_tokens, stop
        self._inputs = {**inputs, **batch.numerics, "max_new_tokens": max_new_tokens}

    def make(
        self,
        name: str,
        prefill: int,
        scheduler: Callable[[int], Scheduler],
        progress: Callable[[float], None] = lambda fraction: None,
    ) -> list[Kept]:
        """Answer all prompts.

        Args:
            name: of the schedule: the same name is the same schedule.
            prefill: precision at which prompts are evaluated.
            scheduler: makes that of the prompt of an index.
            progress: called with the fraction that is done.
        """
        kept: list[Kept] = []
        total = len(self._prompts)
        for at in range(0, total, PART):
            part = range(at, min(at + PART, total))

            def answer(part: range = part) -> list[Any]:
                jobs = [Job(self._prompts[i], scheduler(i), prefill, self._max_new_tokens, self._stop) for i in part]
                done = self._batch.run(jobs, lambda n_done: progress((part.start + n_done) / total))
                return [self._document(answer) for answer in done]

            inputs = {**self._inputs, "schedule": name, "prefill": prefill, "first": part.start, "count": len(part)}
            kept += map(_kept, self._store.get(inputs, answer))
            progress(part.stop / total)
        return kept

    def _document(self, answer: Answer) -> list[Any]:
        runs = [[precision, len(list(run))] for precision, run in itertools.groupby(answer.precisions)]
        text = self._batch.detokenize(answer.tokens)
        end = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=len(text))
        return [text[:end].strip(), answer.tokens, runs, answer.finish]


def _kept(document: Any) -> Kept:
    text, tokens, runs, finish = document
    precisions = tuple(precision for precision, count in runs for _ in range(count))
    return Kept(text, tuple(tokens), precisions, finish)
