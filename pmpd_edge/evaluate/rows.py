"""Rows of data sets: from files of JSON lines, and from the Hugging Face Hub. What they are for, tasks.py knows."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pmpd_edge.errors import PmpdError


@dataclass(frozen=True)
class Row:
    """A row of a data set, not yet looked into.

    Attributes:
        where: names it in messages.
        fields: what it holds; raises PmpdError where it is no JSON object.
    """

    where: str
    fields: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class HubData:
    """A data set on the Hub.

    Attributes:
        repo: its id, or `parquet` where `files` name it.
        config: which part of it.
        splits: the names of its splits, where they are not `train`, `validation` and `test`.
        files: its files, with `{split}`.
    """

    repo: str
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    files: str | None = None

    @property
    def name(self) -> str:
        """For messages."""
        if self.files:
            return self.files.removeprefix("hf://datasets/").partition("/{split}")[0]
        return f"{self.repo} {self.config}" if self.config else self.repo

    def split(self, purpose: str) -> str:
        """The split for `train`, `validation` or `test`."""
        return self.splits.get(purpose, purpose)


def of_file(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines, which may be gzipped; blank lines are none.

    Raises:
        PmpdError: the file cannot be read.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield Row(where, partial(_parse, line, where))
    except (EOFError, zlib.error):
        raise PmpdError(f"{path}: damaged or truncated", "get the file again") from None
    except OSError as error:
        raise PmpdError(f"{path}: {error.strerror or error}", "give a file of JSON lines") from None


def _parse(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig" if where.endswith(", line 1") else "utf-8"))
    except UnicodeDecodeError:
        raise PmpdError(f"{where}: not UTF-8", "convert the file to UTF-8") from None
    except (ValueError, RecursionError):  # among them: JSONDecodeError, and numbers of thousands of digits
        raise PmpdError(f"{where}: not JSON", "give one JSON object a line") from None
    if not isinstance(row, dict):
        raise PmpdError(f"{where}: not a JSON object", "give one object a line")
    return row


def of_hub(data: HubData, purpose: str, limit: int | None = None) -> Iterator[Row]:
    """The rows of a split; what the Hub's cache holds is not fetched again.

    Args:
        data: which data set.
        purpose: `train`, `validation` or `test`.
        limit: no more than so many are looked at.

    Raises:
        PmpdError: `datasets` is not installed, or does not get it.
    """
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise PmpdError(
            "data sets from the Hub need datasets", "pip install 'pmpd-edge[eval]', or --data FILE"
        ) from None
    split = data.split(purpose)
    files = {split: data.files.format(split=split)} if data.files else None
    try:
        table = load_dataset(data.repo, data.config, data_files=files, split=split)
    except Exception as error:  # datasets raises many kinds; all mean that the rows are not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PmpdError(f"{data.name}: not to be had ({reason})", "give the rows with --data FILE") from None
    for number in range(min(len(table), limit if limit is not None else len(table))):
        yield Row(f"{data.name} {split}, row {number + 1}", partial(_flat, table[number]))


def _flat(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row, and what lies in objects within it: translations come as `{"translation": {"de": ..., "en": ...}}`."""
    inner = {key: value for part in row.values() if isinstance(part, Mapping) for key, value in part.items()}
    return {**inner, **row}
