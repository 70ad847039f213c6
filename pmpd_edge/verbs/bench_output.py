"""Writes what `bench` found: tables for a terminal, Markdown, JSON, JSON lines, CSV, plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pmpd_edge.bench import compare, document, ggml, tables
from pmpd_edge.bench.page import Section, heading, markdown
from pmpd_edge.bench.run import OpsResult, Result
from pmpd_edge.cli_ui import aligned
from pmpd_edge.errors import PmpdError


def text(result: Result | OpsResult, output: str) -> str:
    """A result in one of the forms that `--output` names."""
    if output == "json":
        return json.dumps(document.document(result), indent=1)
    if output == "jsonl":
        return document.to_jsonl(document.flat_rows(result))
    if output == "csv":
        return document.to_csv(document.flat_rows(result))
    name = result.bundle.name if isinstance(result, Result) else "operators"
    return _page(f"Benchmark of {name}", heading(result), tables.sections(result), output)


def comparison(first: Path, second: Path, output: str) -> str:
    """Two results side by side; raises PmpdError where they cannot be."""
    section = compare.compare(document.read(first), document.read(second))
    return _page(f"{first.name} and {second.name}", [], [section], output)


def write(result: Result | OpsResult, path: Path) -> None:
    """Write a result as JSON, as `comparison` reads it."""
    path.write_text(json.dumps(document.document(result), indent=1) + "\n", encoding="utf-8")


def draw(result: Result | OpsResult, folder: Path) -> list[Path]:
    """Draw the plots of a result into a folder; returns the files."""
    from pmpd_edge.bench import plot  # matplotlib takes a while

    if isinstance(result, OpsResult):
        raise PmpdError("operators have no plots", "leave out --plot")
    return plot.draw(result, folder)


def devices() -> str:
    """What can compute here."""
    head = ["name", "kind", "backend", "free, MiB", "of", "description"]
    rows = [
        [
            found.name,
            found.kind,
            found.backend,
            f"{found.free / 2**20:.0f}",
            f"{found.total / 2**20:.0f}",
            found.description,
        ]
        for found in ggml.devices()
    ]
    return aligned([head, *rows], text=(0, 1, 2, 5))


def _page(title: str, lines: Sequence[str], sections: Sequence[Section], output: str) -> str:
    if output == "markdown":
        return markdown(title, lines, sections)
    return "\n\n".join(part for part in (title, "\n".join(lines), *map(_section, sections)) if part)


def _section(section: Section) -> str:
    table = aligned(section.rows, section.text)
    return "\n".join([section.title, table, *(f"  {note}" for note in section.notes)])
