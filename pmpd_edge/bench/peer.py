"""llama-bench beside our own figures: the same file, threads, test, batches and flash attention.

Both run in processes of their own, by turns, each first in every second pair: where a process finds its memory alone
makes up to a fifth on some machines, and hits both alike.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pmpd_edge.bench import child
from pmpd_edge.bench.levels import Workload
from pmpd_edge.bench.place import Place
from pmpd_edge.bench.timing import Series
from pmpd_edge.bundle import Bundle, Level
from pmpd_edge.errors import PmpdError

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Pair:
    """A workload at a level, in both: tokens/s, one of each pair of processes."""

    precision: int
    workload: Workload
    ours: Series
    theirs: Series

    @property
    def ratios(self) -> Series:
        """Ours over theirs, of each pair."""
        return Series(tuple(a / b for a, b in zip(self.ours.values, self.theirs.values, strict=True)))

    @property
    def standard_error(self) -> float:
        """Of the ratios' mean."""
        return self.ratios.deviation / len(self.ratios.values) ** 0.5


def compare(
    program: Path,
    bundle: Bundle,
    place: Place,
    workloads: Sequence[Workload],
    n_ctx: int,
    pairs: int,
    progress: Progress = lambda label, done: None,
) -> list[Pair]:
    """Measure the levels that are one file each, which llama-bench can read, in pairs of processes.

    Raises:
        PmpdError: llama-bench does not run, or the bundle has no such level.
    """
    levels = [level for level in bundle.levels if len(level.weights) == 1]
    if not levels:
        raise PmpdError(
            f"{bundle.path}: all levels are sums of files, which llama-bench cannot read", "leave out --peer"
        )
    found = []
    for i, level in enumerate(levels):
        both = []
        for pair in range(pairs):
            progress(f"beside llama-bench: {level.precision} bits", (i + pair / pairs) / len(levels))
            both.append(_pair(program, bundle, level, place, list(workloads), n_ctx, ours_first=pair % 2 == 0))
        for at, workload in enumerate(workloads):
            ours, theirs = (Series(tuple(rates[at] for rates in side)) for side in zip(*both, strict=True))
            found.append(Pair(level.precision, workload, ours, theirs))
    return found


def _pair(
    program: Path, bundle: Bundle, level: Level, place: Place, workloads: list[Workload], n_ctx: int, ours_first: bool
) -> tuple[list[float], list[float]]:
    """Ours and theirs, in this order or the other."""
    theirs = [] if ours_first else rates(program, bundle.paths(level)[0], place, workloads)
    ours = child.rates(bundle, level.precision, place, workloads, n_ctx)
    return ours, theirs or rates(program, bundle.paths(level)[0], place, workloads)


def rates(program: Path, model: Path, place: Place, workloads: Sequence[Workload]) -> list[float]:
    """Tokens/s that llama-bench finds for each workload, once after its warm-up."""
    return [_rate(program, model, place, workload) for workload in workloads]


def _rate(program: Path, model: Path, place: Place, workload: Workload) -> float:
    test = ["-p", workload.prompt, "-n", workload.steps, "-d", workload.depth, "-r", 1, "-o", "json"]
    command = [str(part) for part in (program.resolve(), "-m", model, *place.peer_options(), *test)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise PmpdError(f"{program}: {error.strerror}", "give llama-bench's path with --peer") from None
    try:
        return float(json.loads(done.stdout)[0]["samples_ts"][0])
    except (ValueError, LookupError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it printed no result"])[-1]
        raise PmpdError(f"{program} failed (status {done.returncode}): {last}") from None
