"""The tables of a result: what each measurement says, in the units that people read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pmpd_edge.bench.document import bandwidth_share, bytes_per_step
from pmpd_edge.bench.levels import Row
from pmpd_edge.bench.page import Section
from pmpd_edge.bench.run import LevelFacts, OpsResult, Result
from pmpd_edge.bench.schedules import Answers, Comparison
from pmpd_edge.bench.timing import Series

NOT_AVAILABLE = "not available"


def sections(result: Result | OpsResult) -> list[Section]:
    """The tables of a result."""
    if isinstance(result, OpsResult):
        return _ops(result)
    found = [_speed(result), _traffic(result), _first_tokens(result), _levels(result)]
    if result.switchings:
        found += [_switchings(result), _alternating(result)]
    if result.answers:
        found.append(_answers(result.answers))
    found.append(_energy(result))
    if result.pairs:
        found.append(_pairs(result))
    return found


def _speed(result: Result) -> Section:
    place = result.options.place
    on_gpu = place.backend != "CPU"
    head = ["precision", "model", "size", "params", "backend", *(["ngl"] if on_gpu else []), "threads", "test", "t/s"]
    rows = []
    for row in result.rows:
        alone = result.levels[row.precision].alone
        ngl = [str(place.n_gpu_layers)] if on_gpu else []
        model = [alone.description, _size(alone.size), _parameters(alone.parameters), place.backend]
        rate = f"{row.rate.mean:.2f} ± {row.rate.deviation:.2f}"
        rows.append((str(row.precision), *model, *ngl, str(place.n_threads), row.workload.name, rate))
    return Section(
        "Speed", (tuple(head), *rows), (1, 4, len(head) - 2), ("Mean ± standard deviation, as llama-bench.",)
    )


def _traffic(result: Result) -> Section:
    head = (
        "precision",
        "test",
        "MiB a step",
        "of them cache",
        "t/s, median",
        "low to high",
        "GB/s",
        "of bandwidth",
        "gain",
    )
    rows, notes = [], []
    for row in _decoding(result):
        step, rate = bytes_per_step(result, row), row.rate
        gain = _gain(result, row)
        above = _above(result, row)
        if above and _over(row, above) < 1:
            notes.append(f"{row.precision} bits are no faster than {above.precision} here ({row.workload.name}).")
        cells = [f"{step / 2**20:.1f}", f"{row.cache_bytes / 2**20:.1f}", f"{rate.median:.2f}", _range(rate)]
        share = f"{bandwidth_share(result, row):.0%}"
        rows.append((str(row.precision), row.workload.name, *cells, f"{step * rate.median / 1e9:.1f}", share, gain))
    notes.append("gain: times the speed of the highest level, the median over the repetitions.")
    return Section("Decoding and memory bandwidth", (head, *rows), (1, 5), tuple(notes))


def _decoding(result: Result) -> list[Row]:
    return [row for row in result.rows if row.workload.steps]


def _at(result: Result, precision: int, row: Row) -> Row:
    """The same test at another level."""
    return next(r for r in result.rows if r.precision == precision and r.workload == row.workload)


def _above(result: Result, row: Row) -> Row | None:
    """The same test at the next higher level."""
    higher = [precision for precision in result.levels if precision > row.precision]
    return _at(result, min(higher), row) if higher else None


def _over(row: Row, other: Row) -> float:
    """How many times as fast, the median over the repetitions, which are measured by turns."""
    pairs = zip(row.rate.values, other.rate.values, strict=True)
    return Series(tuple(a / b for a, b in pairs)).median


def _gain(result: Result, row: Row) -> str:
    return f"{_over(row, _at(result, max(result.levels), row)):.2f}"


def _first_tokens(result: Result) -> Section:
    head = ("precision", "prompt", "to the first token, ms", "low to high")
    rows = [
        (
            str(row.precision),
            row.workload.name,
            f"{1e3 * row.first_token.median:.1f}",
            _range(row.first_token.each(1e3)),
        )
        for row in result.rows
        if row.workload.prompt
    ]
    return Section("Time to the first token", (head, *rows), (1, 3))


def _levels(result: Result) -> Section:
    on_gpu = result.options.place.main_device.is_gpu
    head = (
        "precision",
        "load, s",
        "peak, MiB",
        "anonymous, MiB",
        "file-backed, MiB",
        *(["GPU, MiB"] if on_gpu else []),
    )
    rows = [(str(precision), *_level(facts, on_gpu)) for precision, facts in result.levels.items()]
    note = "Each level alone in a process, Python included; loaded from the system's file cache, without mmap."
    return Section("Loading and memory", (head, *rows), (), (note,))


def _level(facts: LevelFacts, on_gpu: bool) -> Iterator[str]:
    memory = facts.alone.memory
    yield f"{facts.alone.load_seconds:.2f}"
    for held in (memory.peak, memory.anonymous, memory.file_backed):
        yield NOT_AVAILABLE if held is None else f"{held / 2**20:.0f}"
    if on_gpu:
        yield f"{facts.alone.device_memory / 2**20:.0f}"


def _switchings(result: Result) -> Section:
    count = len(result.switchings[0].first)
    head = ("from", "to", "call, ms", "a step, ms", *(f"step {i + 1}" for i in range(count)))
    rows = [
        (
            str(one.before),
            str(one.after),
            f"{1e3 * one.call.median:.3f}",
            f"{1e3 * one.normal.median:.2f}",
            *(f"{ratio:.2f}" for ratio in one.first_over_normal),
        )
        for one in result.switchings
    ]
    return Section("Switching", (head, *rows), (), ("step 1, 2, ...: after the switch, against a normal step.",))


def _alternating(result: Result) -> Section:
    head = ("levels", "a step, ms", "mean of both levels, ms", "ratio")
    rows = [
        (
            f"{one.high} and {one.low}",
            f"{1e3 * one.step.median:.2f}",
            f"{1e3 * one.mean.median:.2f}",
            f"{one.over_mean:.3f}",
        )
        for one in result.alternating
    ]
    return Section("Switching at every token", (head, *rows), (0,))


def _answers(found: Comparison) -> Section:
    head = (
        "schedule",
        "prompt at",
        "first token, ms",
        "decode t/s",
        "answer, s",
        "low to high",
        "speed-up of the schedule",
    )
    steps = len(found.scheduled.precisions)
    ways = {found.scheduled.scheduler: found.scheduled, "high": found.high, "low": found.low}
    if found.lossless:
        ways["lossless"] = found.lossless
    rows = [(name, *_answer(answers), f"{found.speedup(answers):.2f}") for name, answers in ways.items()]
    gain = found.speedup(found.high)
    verdict = "Stepping down pays here" if gain > 1 else "Stepping down does not pay here"
    notes = [
        f"{found.prompt} tokens of prompt, {steps} decode steps ({_segments(found.scheduled.precisions)}).",
        f"The sum of its parts is {found.ideal_seconds:.3f} s; the schedule takes {found.over_ideal:.3f} of that.",
        f"{verdict}: answers take {1 / gain:.2f} of the time at {found.high.prefill} bits throughout.",
    ]
    if found.lossless:
        notes.append("lossless gives what high gives; how many drafts stand depends on the text, which is random here.")
    return Section("Answers under a schedule", (head, *rows), (0, 5), tuple(notes))


def _answer(answers: Answers) -> Iterator[str]:
    yield str(answers.prefill)
    yield f"{1e3 * answers.first_token.median:.1f}"
    yield f"{answers.decode_rate.median:.2f}"
    yield f"{answers.seconds.median:.3f}"
    yield _range(answers.seconds, 3)


def _segments(precisions: Sequence[int]) -> str:
    """How many steps at which precision."""
    counts = {precision: precisions.count(precision) for precision in sorted(set(precisions), reverse=True)}
    return ", ".join(f"{count} at {precision}" for precision, count in counts.items())


def _energy(result: Result) -> Section:
    names = list(result.rows[0].joules)
    if not names:
        return Section("Energy", (("energy",), (NOT_AVAILABLE,)), (0,), ("No RAPL, NVML or battery that may be read.",))
    rows = [
        (str(row.precision), row.workload.name, *(_joules(row.joules[name]) for name in names)) for row in result.rows
    ]
    return Section("Energy, J a token", (("precision", "test", *names), *rows), (1,), ("Idle draw included.",))


def _joules(used: float) -> str:
    return f"{used:.3f}" if used else "too short to tell"  # counters move on tens of times a second, batteries' less


def _pairs(result: Result) -> Section:
    head = ("precision", "test", "llama-bench t/s", "pmpd-edge t/s", "ratio")
    rows = [
        (
            str(pair.precision),
            pair.workload.name,
            f"{pair.theirs.mean:.2f} ± {pair.theirs.deviation:.2f}",
            f"{pair.ours.mean:.2f} ± {pair.ours.deviation:.2f}",
            f"{pair.ratios.mean:.3f} ± {pair.standard_error:.3f}",
        )
        for pair in result.pairs
    ]
    note = "Processes by turns; ratio: ours over theirs in each pair, the mean with its standard error."
    return Section("Beside llama-bench", (head, *rows), (1,), (note,))


def _ops(result: OpsResult) -> list[Section]:
    head = ("part", "type", "buffer", "µs", "low to high", "speed-up over F16", "GB/s", "of bandwidth")
    rows: dict[str, list[tuple[str, ...]]] = {}
    for cost in result.costs:
        micro, share = cost.seconds.each(1e6), cost.bytes_per_second / result.bandwidth.bytes_per_second
        cells = (f"{micro.median:.1f}", _range(micro, 1), f"{cost.speedup:.2f}", f"{cost.bytes_per_second / 1e9:.1f}")
        rows.setdefault(cost.model, []).append((cost.part, cost.type, cost.buffer, *cells, f"{share:.0%}"))
    note = "One layer's matrices, each times a vector, cold; F16 is measured by turns with each type."
    return [Section(f"Operators of {model}", (head, *found), (0, 1, 2, 4), (note,)) for model, found in rows.items()]


def _range(series: Series, digits: int = 2) -> str:
    return f"{min(series.values):.{digits}f} to {max(series.values):.{digits}f}"


def _size(n_bytes: int) -> str:
    """As llama-bench writes it."""
    return f"{n_bytes / 2**20:.2f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.2f} GiB"


def _parameters(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count < 1e9 else f"{count / 1e9:.2f} B"
