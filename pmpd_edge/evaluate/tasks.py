"""Tasks: how the rows of a data set become prompts and references, and what answers to them are measured by.

A task is data; what differs between two of them is here, nothing else. It knows nothing about models.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import string
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pmpd_edge.errors import PmpdError

METRICS = ("bleu", "chrf", "rougeL", "exact")


@dataclass(frozen=True)
class Task:
    """How rows of a data set are asked and judged.

    Attributes:
        prompt: the message, with fields of the row in braces: `Translate from German to English: {de}`.
        reference: the right answer, in the same form.
        metric: one of `METRICS`.
        max_new_tokens: length of an answer at most; None is the bundle's.
        chat: whether the prompt goes through the model's chat template; otherwise it is continued as plain text.
    """

    prompt: str = "{prompt}"
    reference: str = "{reference}"
    metric: str = "rougeL"
    max_new_tokens: int | None = None
    chat: bool = True


TASKS = {
    "multi30k-de-en": Task("Translate from German to English: {de}", "{en}", "bleu", 64),
    "multi30k-fr-en": Task("Translate from French to English: {fr}", "{en}", "bleu", 64),
    "iwslt-de-en": Task("Translate from German to English: {de}", "{en}", "bleu", 128),
    "iwslt-fr-en": Task("Translate from French to English: {fr}", "{en}", "bleu", 128),
    "dialogsum": Task("Summarize the following dialogue:\n{dialogue}\nSummary:", "{summary}", "rougeL", 128),
    "cnn-dm": Task("Summarize the following article:\n{article}\nSummary:", "{highlights}", "rougeL", 256),
}


@dataclass(frozen=True)
class Example:
    """One row as it is asked: the message and the right answer."""

    prompt: str
    reference: str


@dataclass(frozen=True)
class Dataset:
    """The examples of a file, and what they were read from.

    Attributes:
        name: the file's name.
        sha256: over the task and the rows that were read.
    """

    name: str
    task: Task
    examples: tuple[Example, ...]
    sha256: str


def make_task(name: str | None = None, **changed: Any) -> Task:
    """A task by name, or the plain one, with what is not None in `changed` changed.

    Raises:
        PmpdError: there is no such task, or a change makes no sense.
    """
    if name is not None and name not in TASKS:
        raise PmpdError(f"no task {name!r}", f"choose one of {', '.join(TASKS)}, or give a file")
    changes = {key: value for key, value in changed.items() if value is not None}
    task = replace(TASKS[name] if name else Task(), **changes)
    if task.metric not in METRICS:
        raise PmpdError(f"no metric {task.metric!r}", f"choose one of {', '.join(METRICS)}")
    for template in (task.prompt, task.reference):
        if not _fields(template):
            raise PmpdError(f"{template!r} names no field of the rows", "write field names in braces: {text}")
    return task


def read(task: Task, path: Path, limit: int | None = None, least: int = 1, with_references: bool = True) -> Dataset:
    """Read examples from JSON lines, gzipped ones too.

    Args:
        task: what fields to take.
        path: the file.
        limit: the first so many rows; None takes all.
        least: fewer examples are an error.
        with_references: whether rows need right answers; without, references are empty.

    Raises:
        PmpdError: a row is not what the task needs, with its line; or there are too few.
    """
    examples: list[Example] = []
    for number, row in _rows(path):
        if limit is not None and len(examples) >= limit:
            break
        where = f"{path}, line {number}"
        prompt = _fill(task.prompt, row, where)
        reference = _fill(task.reference, row, where) if with_references else ""
        if not prompt.strip():
            raise PmpdError(f"{where}: an empty prompt ({task.prompt})", "leave the row out")
        if with_references and not reference.strip():
            raise PmpdError(f"{where}: an empty reference ({task.reference})", "leave the row out")
        examples.append(Example(prompt, reference))
    if len(examples) < least:
        raise PmpdError(f"{path}: {len(examples)} examples, at least {least} are needed", "give more rows")
    digest = hashlib.sha256(json.dumps([vars(task), [vars(example) for example in examples]]).encode()).hexdigest()
    return Dataset(path.name, task, tuple(examples), digest)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(row, dict):
                    raise PmpdError(f"{path}, line {number}: not a JSON object", "give one object a line")
                yield number, row
    except UnicodeDecodeError:
        raise PmpdError(f"{path}, line {number}: not UTF-8", "convert the file to UTF-8") from None
    except (ValueError, RecursionError):  # among them: JSONDecodeError, and numbers of thousands of digits
        raise PmpdError(f"{path}, line {number}: not JSON", "give one JSON object a line") from None
    except (EOFError, zlib.error):
        raise PmpdError(f"{path}: damaged or truncated", "get the file again") from None
    except OSError as error:
        raise PmpdError(f"{path}: {error.strerror or error}", "give a file of JSON lines") from None


def _fields(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        raise PmpdError(f"{template!r} has a brace that is not closed", "write {{ and }} for braces") from None


def _fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """The template with the row's fields; names are keys as they stand, not Python expressions."""
    parts = []
    for text, name, _, _ in string.Formatter().parse(template):
        parts.append(text)
        if name is None:
            continue
        if name not in row:
            raise PmpdError(f"{where}: no field {name!r}", f"the row has {', '.join(map(str, row)) or 'none'}")
        if not isinstance(row[name], str | int | float):
            raise PmpdError(f"{where}: the field {name!r} is not a text", "name another field")
        parts.append(str(row[name]))
    text = "".join(parts)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PmpdError(f"{where}: half of a character (a lone surrogate)", "leave the row out")
    return text
