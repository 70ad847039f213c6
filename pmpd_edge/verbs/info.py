"""pmpd-edge info"""

from __future__ import annotations

import click

from pmpd_edge.verbs.options import debug


@click.command()
@click.argument("bundle", required=False)
@click.option("--verify", is_flag=True, help="Check the SHA-256 of every file and of the tokenizer in it.")
@click.option("--json", "as_json", is_flag=True, help="Print the bundle's manifest.")
@debug
def info(bundle: str | None, verify: bool, as_json: bool) -> None:
    """Show what a bundle holds.

    BUNDLE is a directory or a Hub id; without it, the small model in the package is shown.
    """
    from pmpd_edge import bundle as bundles
    from pmpd_edge import cli_ui as ui

    loaded = bundles.load(bundles.resolve(bundle))
    if verify:
        total = sum(file.bytes for file in loaded.files.values())
        with ui.Progress() as progress:
            done = 0

            def read(n_bytes: int) -> None:
                nonlocal done
                done += n_bytes
                progress("Reading", done / max(1, total))

            loaded.verify(read)
    click.echo(ui.manifest(loaded) if as_json else ui.describe(loaded, verified=verify))
