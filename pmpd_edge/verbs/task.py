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
        show_default="from the Hub",
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

reference_option = click.option(
    "--reference", metavar="TEMPLATE", help="The right answer, likewise.", show_default="{reference}"
)

metric_option = click.option(
    "--metric",
    type=click.Choice(["bleu", "chrf", "rougeL", "bertscore", "exact", "number"]),
    help="What answers are scored by.",
    show_default="the task's, or rougeL",
)

stop_option = click.option(
    "--stop", multiple=True, metavar="TEXT", help="A text that ends an answer; several times for several."
)

parallel = number("--parallel", click.IntRange(1, 64), "Answers at a time.", default=8)


def read_dataset(
    progress: Callable[[str, float], None],
    *,
    task: str,
    data: Path | None,
    limit: int | None,
    least: int,
    purpose: str,
    with_references: bool = True,
    keep_going: bool = False,
    **changed: Any,
) -> Dataset:
    """The rows that the options name.

    Args:
        progress: called where they come from the Hub, which may take a while.
        purpose: which split of a task's data set on the Hub: `train`, `validation` or `test`.
        changed: of the task; see `tasks.make_task`.

    Raises:
        PmpdError: they are not what they should be.
    """
    from pmpd_edge.evaluate import tasks

    how = {"with_references": with_references, "keep_going": keep_going}
    if task not in tasks.TASKS:
        if data:
            raise click.UsageError(f"--data goes with a named task: {', '.join(tasks.TASKS)}.")
        return tasks.read(tasks.make_task(**changed), Path(task), limit, least, **how)
    made = tasks.make_task(task, **changed)
    if data:
        return tasks.read(made, data, limit, least, **how)
    progress(f"getting the rows of {task}", 0.0)
    return tasks.read_hub(made, purpose, limit, least, **how)
