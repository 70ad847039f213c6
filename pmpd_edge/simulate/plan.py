"""Which precision each token of a simulated answer has: from a schedule's name, or from a real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pmpd_edge.bundle import Bundle
from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule.spec import make_scheduler, parse_switches
from pmpd_edge.schedule.static import StaticScheduler
from pmpd_edge.simulate.model import Model

HINT = "give what 'pmpd-edge chat --json' prints, or a list of precisions such as [8, 8, 4]"


def scheduled(spec: str, model: Model, steps: int, bundle: Bundle | None) -> list[int]:
    """The precision of every token under a scheduler that looks at nothing but the step.

    Args:
        spec: as `--scheduler` takes it; without a bundle `static:...` or `fixed:...`.
        model: its levels.
        steps: decode steps.
        bundle: the bundle that the model was made of, or None.

    Returns:
        The precision of prefill's token, then one for each step; prefill's is the bundle's, or that of step 1.

    Raises:
        PmpdError: there is no such schedule, or it depends on what the model answers.
    """
    if bundle:
        scheduler: Any = make_scheduler(spec, bundle)
    else:
        scheduler = StaticScheduler(parse_switches(_switches(spec), steps))
    try:
        scheduler.start(None)
        planned = [int(scheduler.next(step, None)) for step in range(1, steps + 1)]
    except AttributeError:  # it looked at the evaluation, which there is none of
        raise PmpdError(f"{spec}: depends on the answer", "run it, and give its precisions with --precisions") from None
    for precision in dict.fromkeys(planned):
        model.level(precision)
    return [bundle.prefill if bundle else planned[0], *planned]


def _switches(spec: str) -> str:
    kind, _, argument = spec.partition(":")
    if kind == "fixed" and argument and "@" not in argument:
        return f"{argument}@1"
    if kind != "static" or not argument:
        raise PmpdError(f"no schedule {spec!r} without a bundle", "give static:16@1,4@86 or fixed:4")
    return argument


def recorded(path: Path) -> tuple[list[int], int | None]:
    """The precisions of a real run.

    Returns:
        That of every token, the first (prefill's) included, and the prompt's tokens where the file tells.

    Raises:
        PmpdError: the file does not hold them.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            prompt = _positive(found["stats"]["prompt_tokens"])
            return [_positive(token["precision"]) for token in found["tokens"]], prompt
        return [_positive(precision) for precision in found], None
    except OSError as error:
        raise PmpdError(f"{path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise PmpdError(f"{path}: no precisions of a run ({error})", HINT) from None


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is not a positive whole number")
    return value
