"""Options of verbs that answer the prompts of a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmpd_edge.verbs.options import number, options

if TYPE_CHECKING:
    from pmpd_edge.evaluate.tasks import Dataset


def task_option(required: bool) -> Callable[[Any], Any]:
    """--task: the prompts."""
    return click.option(
        "--task",
        required=required,
        metavar="TASK|FILE",
        help=f"Prompts{' and right answers' if required else ''}: a file of JSON lines, or a task's name.",
    )


prompt_options = options(
    click.option(
        "--data",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="The rows of a named task, as JSON lines; may be gzipped.",
    ),
    click.option(
        "--prompt",
        metavar="TEMPLATE",
        help="The message, with a row's fields in braces: 'Translate to English: {de}'.",
        show_default="{prompt}",
    ),
    click.option(
        "--chat/--plain",
        default=None,
        help="Prompts as messages of a chat, or as text to continue.",
        show_default="chat",
    ),
    number("--max-new-tokens", click.IntRange(1), "Length of the longest answer.", "the task's, or the bundle's"),
    number("--limit", click.IntRange(1), "The first N rows only.", "all"),
)

judge_options = options(
    click.option("--reference", metavar="TEMPLATE", help="The right answer, likewise.", show_default="{reference}"),
    click.option(
        "--metric",
        type=click.Choice(["bleu", "chrf", "rougeL", "exact"]),
        help="What answers are scored by.",
        show_default="rougeL",
    ),
)

parallel = number("--parallel", click.IntRange(1, 64), "Answers at a time.", default=8)


def read_dataset(
    task: str, data: Path | None, limit: int | None, least: int, with_references: bool = True, **changed: Any
) -> Dataset:
    """The rows that the options name; raises PmpdError where they are not what they should be."""
    from pmpd_edge.evaluate import tasks

    named = task in tasks.TASKS
    if not named and data:
        raise click.UsageError(f"--data goes with a named task: {', '.join(tasks.TASKS)}.")
    if named and not data:
        raise click.UsageError(f"The task {task} needs its rows: --data FILE.")
    made = tasks.make_task(task if named else None, **changed)
    return tasks.read(made, data or Path(task), limit, least, with_references)
