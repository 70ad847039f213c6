"""pmpd-edge simulate"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmpd_edge.errors import PmpdError
from pmpd_edge.verbs.options import debug, number

if TYPE_CHECKING:
    from pmpd_edge.bundle import Bundle
    from pmpd_edge.simulate.roofline import Roofline

PROMPT_TOKENS, NEW_TOKENS = 256, 128
PAPER_DEVICE = "npu"

_A_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle", required=False)
@click.option("--model", metavar="NAME", help="A known model's shape instead of a bundle; --list names them.")
@click.option("--device", metavar="NAME|FILE", help="A device by name, or a profile of yours; --list names them.")
@click.option(
    "--scheduler",
    metavar="SPEC",
    help="static:16@1,4@86 (precision 16 from step 1, 4 from step 86) or fixed:4; of a bundle also static, "
    "first:SHARE (or middle, last, alternate), or MODULE:NAME of your own.",
    show_default="a bundle's schedule",
)
@click.option("--precisions", type=_A_FILE, metavar="FILE", help="Those of a real run: what 'chat --json' prints.")
@number("--prompt-tokens", click.IntRange(1), "Length of the prompt.", str(PROMPT_TOKENS))
@number("--new-tokens", click.IntRange(1), "Decode steps of the answer.", f"{NEW_TOKENS}, or the run's")
@click.option("--paper", is_flag=True, help="The paper's NPU throughput beside what this model says of it.")
@click.option("--list", "as_list", is_flag=True, help="Name the devices and models.")
@click.option(
    "--plot", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Draw it, as PNG and SVG."
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@debug
def simulate(
    bundle: str | None,
    model: str | None,
    device: str | None,
    scheduler: str | None,
    precisions: Path | None,
    prompt_tokens: int | None,
    new_tokens: int | None,
    paper: bool,
    as_list: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Estimate what a device would gain.

    Computes from a device's profile and a model's shape how long prompts, decode steps and switches take: no weights
    are read, and the device need not be at hand. BUNDLE is a directory or a Hub id.
    """
    if plot and not importlib.util.find_spec("matplotlib"):
        raise PmpdError("plots are drawn with matplotlib", "pip install 'pmpd-edge[eval]'")
    if as_list:
        _list(as_json)
    elif paper:
        if bundle or model or scheduler or precisions or prompt_tokens or new_tokens:
            raise click.UsageError("--paper has its own models, schedules and lengths.")
        _paper(device or PAPER_DEVICE, plot, as_json)
    elif scheduler and precisions:
        raise click.UsageError("Give --scheduler or --precisions, not both.")
    elif precisions and new_tokens:
        raise click.UsageError("--precisions tells the number of new tokens itself.")
    elif device is None:
        raise click.UsageError("Say on which --device; --list names those known.")
    else:
        roofline, opened = _open(bundle, model, device)
        _run(roofline, opened, scheduler, precisions, prompt_tokens, new_tokens, plot, as_json)


def _list(as_json: bool) -> None:
    from pmpd_edge.simulate import device as devices
    from pmpd_edge.simulate.shapes import SHAPES
    from pmpd_edge.verbs import simulation_table

    titles = {name: devices.load(name).title for name in devices.names()}
    parameters = {name: shape.parameters for name, shape in SHAPES.items()}
    if as_json:
        click.echo(json.dumps({"devices": titles, "models": parameters}, indent=1))
    else:
        click.echo(simulation_table.names(titles, parameters))


def _paper(device: str, plot: Path | None, as_json: bool) -> None:
    from pmpd_edge.simulate import device as devices
    from pmpd_edge.simulate import paper
    from pmpd_edge.verbs import simulation_table

    cells = paper.cells(devices.load(device))
    if plot:
        from pmpd_edge.simulate.plot import draw_paper

        draw_paper(cells, plot)
    click.echo(json.dumps(paper.document(cells), indent=1) if as_json else simulation_table.paper(cells))


def _open(bundle: str | None, model: str | None, device: str) -> tuple[Roofline, Bundle | None]:
    if bundle and model:
        raise click.UsageError("Give a bundle or --model, not both.")
    if not bundle and not model:
        raise click.UsageError("Give a bundle, or a shape's name with --model; --list names those known.")
    from pmpd_edge import bundle as bundles
    from pmpd_edge.simulate import device as devices
    from pmpd_edge.simulate.bundles import of_bundle
    from pmpd_edge.simulate.roofline import Roofline
    from pmpd_edge.simulate.shapes import named

    target = devices.load(device)
    if model:
        return Roofline(named(model, target), target), None
    loaded = bundles.load(bundles.resolve(bundle))
    return Roofline(of_bundle(loaded), target), loaded


def _run(
    roofline: Roofline,
    bundle: Bundle | None,
    scheduler: str | None,
    precisions: Path | None,
    prompt_tokens: int | None,
    new_tokens: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    from pmpd_edge.simulate import plan
    from pmpd_edge.simulate.comparison import compare
    from pmpd_edge.verbs import simulation_table

    name, planned, prompt = "", None, prompt_tokens or PROMPT_TOKENS
    steps = new_tokens or NEW_TOKENS
    if precisions:
        planned, told = plan.recorded(precisions)
        name, prompt, steps = precisions.name, prompt_tokens or told or PROMPT_TOKENS, len(planned) - 1
    elif spec := scheduler or (bundle and "static"):
        name, planned = spec, plan.scheduled(spec, roofline.model, steps, bundle)
    compared = compare(roofline, prompt, steps, name, planned)
    if plot:
        from pmpd_edge.simulate.plot import draw

        draw(roofline, compared.levels, compared.answers, plot)
    click.echo(json.dumps(compared.document(), indent=1) if as_json else simulation_table.describe(compared))
