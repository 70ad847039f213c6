"""Results for people: what was measured on, and titled tables, the same for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pmpd_edge.bench.machine import IDLE, Machine
from pmpd_edge.bench.place import N_BATCH, N_UBATCH
from pmpd_edge.bench.run import OpsResult, Options, Result


@dataclass(frozen=True)
class Section:
    """A table with a title.

    Attributes:
        rows: cells; the first row is the head.
        text: the columns that hold words, not numbers.
        notes: lines below it.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]
    text: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def heading(result: Result | OpsResult) -> list[str]:
    """What was measured on and how, in lines."""
    options, machine = result.options, result.machine
    read = result.bandwidth
    lines = [
        f"Machine: {machine.device}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in machine.versions.items())}. {machine.time}.",
        _settings(options, machine),
        f"Read bandwidth of {read.device}: {read.bytes_per_second / 1e9:.1f} GB/s.",
    ]
    if result.others is None:
        lines.append("Whether other processes ran is not known here.")
    elif result.others > IDLE:
        lines.append(f"Other processes used {result.others:.2f} cores meanwhile: measure again on an idle machine.")
    return lines


def _settings(options: Options, machine: Machine) -> str:
    place = options.place
    where = place.device or (f"{place.n_gpu_layers} layers on GPUs" if place.n_gpu_layers >= 0 else place.backend)
    cpus = f"on CPUs {machine.affinity}" if machine.affinity else "on any CPU"
    return (
        f"{where}, {place.n_threads} threads {cpus}; batches of {N_BATCH} and {N_UBATCH}, flash attention, no mmap; "
        f"{options.repetitions} repetitions by turns after a warm-up."
    )


def markdown(title: str, lines: Sequence[str], sections: Sequence[Section]) -> str:
    """A page of lines and tables."""
    return "\n\n".join([f"# {title}", "\n".join(lines), *map(_markdown, sections)])


def _markdown(section: Section) -> str:
    head, *rows = section.rows
    rule = ["---" if at in section.text else "---:" for at in range(len(head))]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    parts = [f"## {section.title}", "\n".join(lines), "\n".join(section.notes)]
    return "\n\n".join(part for part in parts if part)
