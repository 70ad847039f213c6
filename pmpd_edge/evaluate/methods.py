"""What is compared: methods by their names on the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pmpd_edge.bundle import Bundle, sha256_file
from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule import Scheduler
from pmpd_edge.schedule.fixed import FixedScheduler
from pmpd_edge.schedule.learned import LearnedScheduler
from pmpd_edge.schedule.spec import format_switches, make_scheduler

CHOICES = (
    "high, low, uniform (every level), uniform:PRECISION, pmpd (the bundle's schedule), pmpd:SCHEDULER, lossless (as "
    "high), lossless:SCHEDULER, dns (at the bits of the first pmpd), dns:BPW, or dns-sensitive likewise"
)
DNS = {"dns": "magnitude", "dns-sensitive": "sensitivity"}  # by what outliers are chosen
KINDS = ("high", "low", "uniform", "pmpd", "lossless", *DNS)
_NEXT = re.compile(rf",\s*(?=(?:{'|'.join(KINDS)})(?:[:,]|$))")  # schedules have commas too


@dataclass(frozen=True)
class Method:
    """A way to answer a prompt.

    Attributes:
        name: as it is written.
        prefill: the precision at which prompts are evaluated.
        scheduler: makes the scheduler of an answer.
        key: methods that share it give the same answers.
        drafts: whether the lowest level drafts what the scheduler's precisions verify, one answer at a time.
    """

    name: str
    prefill: int
    scheduler: Callable[[], Scheduler]
    key: str
    drafts: bool = False


@dataclass(frozen=True)
class Dns:
    """The dense-and-sparse baseline, at a number of real bits per weight; None: as many as the first `pmpd` reads.

    `by` is one of `convert.dns.RULES`.
    """

    name: str
    bpw: float | None
    by: str = "magnitude"


def split(text: str) -> list[str]:
    """Divide `high,pmpd:static:8@1,4@9,low` at its methods."""
    return [name.strip() for name in _NEXT.split(text) if name.strip()]


def make(names: Sequence[str], bundle: Bundle) -> list[Method | Dns]:
    """The methods of these names, each once, in their order.

    Args:
        names: each one of `CHOICES`.
        bundle: whose levels they use.

    Raises:
        PmpdError: a name is none of them, or the bundle does not have what it needs.
    """
    made = {method.name: method for name in names for method in _make(name, bundle)}
    if not made:
        raise PmpdError("no methods", f"choose {CHOICES}")
    if any(isinstance(method, Dns) and method.bpw is None for method in made.values()) and not any(
        name.startswith("pmpd") for name in made
    ):
        raise PmpdError("dns without a pmpd whose bits it could have", "name one, or give bits per weight: dns:4.5")
    return list(made.values())


def _make(name: str, bundle: Bundle) -> Sequence[Method | Dns]:
    kind, _, argument = name.partition(":")
    if kind == "uniform":
        precisions = [_precision(argument, name)] if argument else bundle.precisions
        return [uniform(f"uniform:{precision}", precision, bundle) for precision in precisions]
    if name in ("high", "low"):
        return [uniform(name, bundle.precisions[0 if name == "high" else -1], bundle)]
    if kind == "pmpd":
        return [_progressive(name, argument or "static", bundle)]
    if kind == "lossless":
        verifier = _progressive(name, argument, bundle) if argument else uniform(name, bundle.precisions[0], bundle)
        return [replace(verifier, key=f"lossless {verifier.key}", drafts=True)]
    if kind in DNS:
        return [Dns(name, _bpw(argument, name) if argument else None, DNS[kind])]
    raise PmpdError(f"no method {name!r}", f"choose {CHOICES}")


def uniform(name: str, precision: int, bundle: Bundle) -> Method:
    """Everything at one level."""
    bundle.level(precision)
    return Method(name, precision, partial(FixedScheduler, precision), f"fixed:{precision}")


def _progressive(name: str, spec: str, bundle: Bundle) -> Method:
    scheduler = make_scheduler(spec, bundle)
    # What a scheduler makes of its name: the schedule, the longest answer, the predictor, and the code of one's own.
    parts = [spec, format_switches(bundle.schedule), str(bundle.schedule.max_new_tokens)]
    if bundle.predictor:
        parts.append(bundle.predictor.sha256)
    module = inspect.getmodule(type(scheduler))
    if module and module.__file__ and not module.__name__.startswith("pmpd_edge."):
        parts.append(sha256_file(Path(module.__file__)))
    make: Callable[[], Scheduler] = partial(make_scheduler, spec, bundle)
    if isinstance(scheduler, LearnedScheduler):
        make = scheduler.fresh  # with the same predictor, which takes a while to load
    return Method(name, bundle.prefill, make, " ".join(parts))


def _precision(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise PmpdError(f"no method {name!r}", f"choose {CHOICES}") from None


def _bpw(text: str, name: str) -> float:
    try:
        bpw = float(text)
    except ValueError:
        bpw = 0.0
    if not 0 < bpw <= 16:
        raise PmpdError(f"no method {name!r}", "give bits per weight: dns:4.5")
    return bpw
