"""Writes docs/commands.md, the command reference, from what `--help` says.

Run it after a change of options: python scripts/write_commands.py
"""

from __future__ import annotations

from pathlib import Path

import click

from pmpd_edge.cli import cli

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
HEAD = """# Commands

<!-- Written by scripts/write_commands.py from --help: edit the options, not this page. -->

Results go to standard output, progress and logs to standard error. Exit status: 0; 1 for an error, which is one line
that says what is wrong and what to do; 2 for wrong usage; 130 after Ctrl-C, 141 where
whoever reads the output left, 143 after SIGTERM.
"""


def page() -> str:
    """The whole page."""
    root = click.Context(cli, info_name="pmpd-edge", terminal_width=100, max_content_width=100)
    parts = [HEAD, _section("pmpd-edge", cli, root)]
    for name in cli.list_commands(root):
        command = cli.commands[name]
        parts.append(_section(f"pmpd-edge {name}", command, click.Context(command, parent=root, info_name=name)))
    return "\n".join(parts)


def _section(title: str, command: click.Command, ctx: click.Context) -> str:
    ctx.help_option_names = ["-h", "--help"]
    return f"## {title}\n\n```\n{command.get_help(ctx)}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
