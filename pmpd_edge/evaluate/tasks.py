"""Tasks: how the rows of a data set become prompts and references, and what answers to them are measured by.

A task is data; what differs between two of them is here, nothing else. It knows nothing about models.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate import rows
from pmpd_edge.evaluate.rows import HubData, Row

METRICS = ("bleu", "chrf", "rougeL", "bertscore", "exact", "number")


@dataclass(frozen=True)
class Task:
    """How rows of a data set are asked and judged.

    Attributes:
        prompt: the message, with fields of the row in braces: `Translate from German to English: {de}`. A field that
            is a list has the messages of several turns.
        reference: the right answer, in the same form; None: what the reference level answers.
        metrics: out of `METRICS`; the first one is what is calibrated by.
        max_new_tokens: length of an answer at most; None is the bundle's.
        chat: whether the prompt goes through the model's chat template; otherwise it is continued as plain text.
        stop: texts that end an answer, and are no part of it.
        hub: where its rows lie on the Hugging Face Hub.
    """

    prompt: str = "{prompt}"
    reference: str | None = "{reference}"
    metrics: tuple[str, ...] = ("rougeL",)
    max_new_tokens: int | None = None
    chat: bool = True
    stop: tuple[str, ...] = ()
    hub: HubData | None = None

    @property
    def metric(self) -> str:
        """What is calibrated by."""
        return self.metrics[0]

    @property
    def asked(self) -> dict[str, Any]:
        """What answers depend on, beside the rows."""
        return {"prompt": self.prompt, "length": self.max_new_tokens, "chat": self.chat, "stop": self.stop}


def _iwslt(pair: str, source: str) -> Task:
    # The Hub's own conversion of what was a script, which `datasets` no longer runs.
    files = f"hf://datasets/IWSLT/iwslt2017@refs/convert/parquet/iwslt2017-{pair}/{{split}}/*.parquet"
    language = {"de": "German", "fr": "French"}[source]
    prompt = f"Translate from {language} to English: {{{source}}}"
    return Task(prompt, "{en}", ("bleu", "chrf", "bertscore"), 128, hub=HubData("parquet", files=files))


_SUMMARY = ("rougeL", "bertscore")
_MULTI30K = HubData("bentrevett/multi30k")

TASKS = {
    "multi30k-de-en": Task("Translate from German to English: {de}", "{en}", ("bleu", "chrf"), 64, hub=_MULTI30K),
    "multi30k-fr-en": Task("Translate from French to English: {fr}", "{en}", ("bleu", "chrf"), 64),
    "iwslt-de-en": _iwslt("de-en", "de"),
    "iwslt-fr-en": _iwslt("fr-en", "fr"),
    "dialogsum": Task(
        "Summarize the following dialogue:\n{dialogue}\nSummary:",
        "{summary}",
        _SUMMARY,
        128,
        hub=HubData("knkarthick/dialogsum"),
    ),
    "cnn-dm": Task(
        "Summarize the following article:\n{article}\nSummary:",
        "{highlights}",
        _SUMMARY,
        256,
        hub=HubData("abisee/cnn_dailymail", "3.0.0"),
    ),
    "mt-bench": Task(
        "{turns}",
        None,
        _SUMMARY,
        256,
        hub=HubData("HuggingFaceH4/mt_bench_prompts", splits={"validation": "train", "test": "train"}),
    ),
    "gsm8k": Task(
        "{question}\nThink step by step. End with a line that has #### and the answer as a number.",
        "{answer}",
        ("number",),
        512,
        hub=HubData("openai/gsm8k", "main", splits={"validation": "train"}),
    ),
}
_ALIASES = {"turns": ("prompt",)}  # fields that the Hub's copies of a data set name otherwise


@dataclass(frozen=True)
class Example:
    """One row as it is asked: the messages, of which most have but one, and the right answer.

    Attributes:
        prompt: the first message.
        reference: empty where there is none.
        turns: further messages, each after the answer to the one before.
    """

    prompt: str
    reference: str
    turns: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadRow:
    """A row that could not be used: where it is, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The examples of a file or of a split on the Hub, and what they were read from.

    Attributes:
        name: the file's or the split's name.
        sha256: over what is asked, the rows that were read and their references.
        bad: rows that could not be used.
    """

    name: str
    task: Task
    examples: tuple[Example, ...]
    sha256: str
    bad: tuple[BadRow, ...] = field(default=())


def make_task(name: str | None = None, **changed: Any) -> Task:
    """A task by name, or the plain one, with what is not None in `changed` changed.

    Args:
        name: one of `TASKS`.
        changed: fields of a Task; `metric` stands for `metrics` with but one.

    Raises:
        PmpdError: there is no such task, or a change makes no sense.
    """
    if name is not None and name not in TASKS:
        raise PmpdError(f"no task {name!r}", f"choose one of {', '.join(TASKS)}, or give a file")
    changes = {key: value for key, value in changed.items() if value not in (None, ())}
    if metric := changes.pop("metric", None):
        changes["metrics"] = (metric,)
    task = replace(TASKS[name] if name else Task(), **changes)
    for metric in task.metrics:
        if metric not in METRICS:
            raise PmpdError(f"no metric {metric!r}", f"choose one of {', '.join(METRICS)}")
    for template in filter(None, (task.prompt, task.reference)):
        if not _fields(template):
            raise PmpdError(f"{template!r} names no field of the rows", "write field names in braces: {text}")
    return task


def read(task: Task, path: Path, limit: int | None = None, least: int = 1, **how: bool) -> Dataset:
    """Read examples from JSON lines, gzipped ones too; `collect` says what the other arguments are.

    Raises:
        PmpdError: the file cannot be read, or what `collect` raises.
    """
    return collect(task, path.name, rows.of_file(path), str(path), limit, least, **how)


def read_hub(task: Task, purpose: str, limit: int | None = None, least: int = 1, **how: bool) -> Dataset:
    """Read examples from a task's data set on the Hub, or in its cache; needs `datasets`.

    Args:
        task: one with a data set.
        purpose: `train`, `validation` or `test`.

    Raises:
        PmpdError: the Hub does not give it, or what `collect` raises.
    """
    if not task.hub:
        raise PmpdError("the task has no data set on the Hub", "give its rows with --data FILE")
    name = f"{task.hub.name} {task.hub.split(purpose)}"
    return collect(task, name, rows.of_hub(task.hub, purpose, limit), name, limit, least, **how)


def collect(
    task: Task,
    name: str,
    read_rows: Iterable[Row],
    where: str,
    limit: int | None = None,
    least: int = 1,
    *,
    with_references: bool = True,
    keep_going: bool = False,
) -> Dataset:
    """Make examples out of rows.

    Args:
        task: what fields to take.
        name: the data set's.
        read_rows: its rows.
        where: what they are read from, for messages.
        limit: the first so many rows; None takes all.
        least: fewer examples are an error.
        with_references: whether rows need right answers; without, references are empty.
        keep_going: whether rows that cannot be used are left out and listed; otherwise they are an error.

    Raises:
        PmpdError: a row is not what the task needs, with its line; or there are too few.
    """
    if with_references and task.reference is None and not keep_going:
        raise PmpdError("the task has no right answers", "name their field: --reference '{answer}'")
    examples: list[Example] = []
    bad: list[BadRow] = []
    for row in islice(read_rows, limit):
        try:
            examples.append(_example(task, row, with_references))
        except PmpdError as error:
            if not keep_going:
                raise
            bad.append(BadRow(row.where, error.message.removeprefix(f"{row.where}: ")))
    if len(examples) < least:
        why = f" ({bad[0].where}: {bad[0].reason})" if bad else ""
        raise PmpdError(f"{where}: {len(examples)} examples, at least {least} are needed{why}", "give more rows")
    content = [task.asked, task.reference, [vars(example) for example in examples]]
    return Dataset(name, task, tuple(examples), hashlib.sha256(json.dumps(content).encode()).hexdigest(), tuple(bad))


def _example(task: Task, row: Row, with_references: bool) -> Example:
    fields = row.fields()
    turns = _turns(task.prompt, fields, row.where)
    has_reference = with_references and task.reference is not None
    reference = _fill(task.reference or "", fields, row.where) if has_reference else ""
    if not turns or not all(turn.strip() for turn in turns):
        raise PmpdError(f"{row.where}: an empty prompt ({task.prompt})", "leave the row out")
    if has_reference and not reference.strip():
        raise PmpdError(f"{row.where}: an empty reference ({task.reference})", "leave the row out")
    return Example(turns[0], reference, tuple(turns[1:]))


def _turns(template: str, row: Mapping[str, Any], where: str) -> list[str]:
    """The messages: several, where the template is but a field, and that is a list."""
    names = _fields(template)
    if template == f"{{{names[0]}}}":
        value = _value(names[0], row, where)
        if isinstance(value, list):
            return [_text(turn, f"a turn of {names[0]!r}", where) for turn in value]
    return [_fill(template, row, where)]


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
        if name is not None:
            parts.append(_text(_value(name, row, where), f"the field {name!r}", where))
    return "".join(parts)


def _value(name: str, row: Mapping[str, Any], where: str) -> Any:
    for key in (name, *_ALIASES.get(name, ())):
        if key in row:
            return row[key]
    raise PmpdError(f"{where}: no field {name!r}", f"the row has {', '.join(map(str, row)) or 'none'}")


def _text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str | int | float):
        raise PmpdError(f"{where}: {what} is not a text", "name another field")
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PmpdError(f"{where}: half of a character (a lone surrogate)", "leave the row out")
    return text
