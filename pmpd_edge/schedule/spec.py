"""Schedulers by their names on the command line."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable

from pmpd_edge.bundle import Bundle, StaticSchedule, Switch
from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule import Scheduler
from pmpd_edge.schedule.patterns import PATTERNS

CHOICES = (
    "static, static:PRECISION@STEP,..., fixed:PRECISION, learned, confidence, random, first:SHARE (or middle, last, "
    "alternate), or MODULE:NAME of your own"
)
_RANDOM_SHARES = (0, 1 / 3, 2 / 3, 1)  # of the longest answer, where no predictor says which


def make_scheduler(spec: str, bundle: Bundle, high_steps: int | None = None) -> Scheduler:
    """Make a scheduler from its specification on the command line.

    Where it has two levels of its own, they are the first and the last of the bundle's schedule.

    Args:
        spec: one of

            - `static`: the bundle's own schedule; `static:8@1,4@86`: precision 8 from step 1, 4 from step 86;
            - `fixed:4`: every step at precision 4;
            - `learned`, `learned:8-2`, `learned:8-2,0.9`: the bundle's predictor, for a pair, at a confidence;
            - `confidence`, `confidence:0.85,0.55`: down at and above the first, up below the second;
            - `random`, `random:7`: steps drawn at random, by this seed;
            - `first:0.5`, `middle:0.5`, `last:0.5`, `alternate:0.5`: this share of the longest answer's steps high;
            - `my_module:Calm`: whatever this gives when it is called with the bundle.
        bundle: the bundle whose levels are scheduled.
        high_steps: for `static`: number of steps before the first switch; the later switches keep their distance.

    Raises:
        PmpdError: the specification is not one of these, or names a level that the bundle does not have.
    """
    kind, colon, argument = spec.partition(":")
    if high_steps is not None and kind != "static":
        raise PmpdError(f"high steps have no meaning for {spec!r}", "leave them out, or choose static")
    if kind == "static" and not (colon and not argument):
        scheduler = _static(argument, bundle, high_steps)
    elif make := _MAKERS.get(kind):
        try:
            scheduler = make(bundle, argument)
        except ValueError:
            raise PmpdError(f"no scheduler {spec!r}", f"choose {CHOICES}") from None
    elif argument.isidentifier() and all(part.isidentifier() for part in kind.split(".")):
        scheduler = _imported(kind, argument, bundle)
    else:
        raise PmpdError(f"no scheduler {spec!r}", f"choose {CHOICES}")
    for precision in scheduler.precisions:
        bundle.level(precision)
    return scheduler


def parse_switches(text: str, max_new_tokens: int) -> StaticSchedule:
    """Read `8@1,4@86`: precision 8 from step 1, 4 from step 86; raises PmpdError where it is not of that form."""
    parts = [part.partition("@") for part in text.split(",")]
    switches = [Switch(step=_integer(step), precision=_integer(precision)) for precision, _, step in parts]
    return StaticSchedule(tuple(switches), max_new_tokens)


def format_switches(schedule: StaticSchedule) -> str:
    """The opposite of `parse_switches`."""
    return ",".join(f"{switch.precision}@{switch.step}" for switch in schedule.switches)


def ladder(bundle: Bundle) -> tuple[int, ...]:
    """The precisions of the bundle's schedule from the highest to the lowest; all of them where it has but one."""
    scheduled = {switch.precision for switch in bundle.schedule.switches}
    return tuple(sorted(scheduled, reverse=True)) if len(scheduled) > 1 else bundle.precisions


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise PmpdError(
            f"{text!r} in a schedule is not a number", "write PRECISION@STEP,..., like 8@1,4@86, or a PRECISION"
        ) from None


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _static(argument: str, bundle: Bundle, high_steps: int | None) -> Scheduler:
    from pmpd_edge.schedule.static import StaticScheduler, with_high_steps

    schedule = parse_switches(argument, bundle.schedule.max_new_tokens) if argument else bundle.schedule
    return StaticScheduler(schedule if high_steps is None else with_high_steps(schedule, high_steps))


def _fixed(bundle: Bundle, argument: str) -> Scheduler:
    from pmpd_edge.schedule.fixed import FixedScheduler

    if not argument:
        raise ValueError(argument)
    return FixedScheduler(_integer(argument))


def _pair(bundle: Bundle) -> tuple[int, int]:
    levels = ladder(bundle)
    return levels[0], levels[-1]


def _confidence(bundle: Bundle, argument: str) -> Scheduler:
    from pmpd_edge.schedule.confidence import ConfidenceScheduler

    calm, _, unsure = argument.partition(",")
    thresholds = {"calm": _number(calm), "unsure": _number(unsure)} if argument else {}
    return ConfidenceScheduler(ladder(bundle), **thresholds)


def _learned(bundle: Bundle, argument: str) -> Scheduler:
    from pmpd_edge.predictor import of_bundle
    from pmpd_edge.schedule.learned import CONFIDENCE, LearnedScheduler

    predictor = of_bundle(bundle)
    name, _, confidence = argument.partition(",")
    pair = _pair(bundle)
    if name:
        high, _, low = name.partition("-")
        pair = int(high), int(low)
    return LearnedScheduler(predictor, pair, _number(confidence) if confidence else CONFIDENCE)


def _random(bundle: Bundle, argument: str) -> Scheduler:
    from pmpd_edge.schedule.learned import RandomScheduler

    seed, pair, longest = int(argument or 0), _pair(bundle), bundle.schedule.max_new_tokens
    if bundle.predictor and pair in bundle.predictor.pairs:
        from pmpd_edge.predictor import of_bundle

        predictor = of_bundle(bundle)
        return RandomScheduler(pair, predictor.steps, predictor.priors[pair], seed)
    return RandomScheduler(pair, [round(share * longest) for share in _RANDOM_SHARES], seed=seed)


def _pattern(name: str) -> Callable[[Bundle, str], Scheduler]:
    def make(bundle: Bundle, argument: str) -> Scheduler:
        from pmpd_edge.schedule.patterns import PatternScheduler

        share, (high, low), longest = _number(argument), _pair(bundle), bundle.schedule.max_new_tokens
        if not 0 <= share <= 1:
            raise ValueError(argument)
        return PatternScheduler(name, high, low, round(share * longest), longest)

    return make


_MAKERS: dict[str, Callable[[Bundle, str], Scheduler]] = {
    "fixed": _fixed,
    "confidence": _confidence,
    "learned": _learned,
    "random": _random,
    **{name: _pattern(name) for name in PATTERNS},
}


def _imported(module: str, name: str, bundle: Bundle) -> Scheduler:
    """What `module:name` gives for the bundle; modules in the working directory are found too, as with `python -m`."""
    added = "" not in sys.path
    if added:
        sys.path.insert(0, "")
    try:
        make = getattr(importlib.import_module(module), name)
        scheduler: Scheduler = make(bundle)
    except Exception as error:  # of somebody else's code
        raise PmpdError(f"the scheduler {module}:{name} cannot be made ({type(error).__name__}: {error})") from error
    finally:
        if added:
            sys.path.remove("")
    for attribute in ("precisions", "start", "next"):
        if not hasattr(scheduler, attribute):
            raise PmpdError(f"{module}:{name} makes no scheduler", f"it lacks {attribute!r}: see docs/schedules.md")
    return scheduler
