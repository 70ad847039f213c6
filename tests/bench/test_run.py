"""Planning a benchmark, what is refused, and all of it in its order (pmpd_edge/bench/run.py)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pmpd_edge.bench import machine, memory, place, run, switches
from pmpd_edge.bench.ggml import Device
from pmpd_edge.bench.levels import Workload
from pmpd_edge.bench.place import Place
from pmpd_edge.bundle import Bundle, StaticSchedule
from pmpd_edge.errors import PmpdError

ONE = Place(1)


def names(plan: run.Plan) -> list[str]:
    return [workload.name for workload in plan.workloads]


def test_the_usual_tests_are_those_that_fit(short: Bundle) -> None:
    large = dataclasses.replace(short, context_length=4096)
    assert names(run.make_plan(large, run.Options(ONE))) == ["pp128", "pp512", "tg128", "tg128 @ d1024"]
    assert names(run.make_plan(short, run.Options(ONE))) == ["pp128", "pp512", "tg128"]
    tiny = dataclasses.replace(short, context_length=100)
    assert names(run.make_plan(tiny, run.Options(ONE))) == ["pp50", "tg50"]


def test_what_was_asked_for_is_what_is_measured(short: Bundle) -> None:
    options = run.Options(ONE, prompt_lengths=(7, 9), depths=(0, 3), steps=5)
    assert run.make_plan(short, options).workloads == (
        Workload(prompt=7),
        Workload(prompt=9),
        Workload(steps=5),
        Workload(steps=5, depth=3),
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (run.Options(ONE, prompt_lengths=(513,)), "pp513 needs a context of 513 tokens, and translator-7m has 512"),
        (run.Options(ONE, steps=513), "tg513 needs a context of 513"),
        (run.Options(ONE, depths=(0, 500), steps=13), "tg13 @ d500 needs a context of 513"),
    ],
)
def test_a_longer_context_than_the_models_is_refused(options: run.Options, reason: str, short: Bundle) -> None:
    with pytest.raises(PmpdError, match=reason):
        run.make_plan(short, options)


@pytest.mark.parametrize(("context", "longest"), [(512, 7), (512, 256), (512, 600), (64, 600), (512, 1)])
def test_answers_fit_the_context(context: int, longest: int, short: Bundle) -> None:
    schedule = StaticSchedule(short.schedule.switches, longest)
    plan = run.make_plan(dataclasses.replace(short, context_length=context, schedule=schedule), run.Options(ONE))
    assert plan.prompt >= 1 and plan.steps >= 1
    assert plan.prompt + plan.steps < context
    assert plan.steps == min(max(longest - 1, 1), context - plan.prompt - 1)


def test_the_context_holds_everything(short: Bundle) -> None:
    plan = run.make_plan(short, run.Options(ONE, prompt_lengths=(7,), depths=(0,), steps=5))
    assert plan.n_ctx == max(switches.TOKENS, 7 + plan.steps + 1)


def room(monkeypatch: pytest.MonkeyPatch, free: int | None, *gpus: int) -> None:
    found = [Device(f"GPU{i}", "a GPU", "GPU", "CUDA", size, size) for i, size in enumerate(gpus)]
    found.append(Device("CPU", "a CPU", "CPU", "CPU", 0, 0))
    monkeypatch.setattr(place.ggml, "devices", lambda: found)
    monkeypatch.setattr(run, "devices", lambda: found)
    monkeypatch.setattr(memory, "available", lambda: free)


MIB = 2**20


@pytest.mark.parametrize(
    ("where", "free", "gpus", "fits"),
    [
        (Place(1), 40 * MIB, (), True),
        (Place(1), 10 * MIB, (), False),
        (Place(1), None, (), True),  # not known here
        (Place(1), 0, (40 * MIB,), True),
        (Place(1), 40 * MIB, (10 * MIB,), False),  # all layers go to the GPU
        (Place(1, 2), 40 * MIB, (10 * MIB,), True),
        (Place(1, 0), 40 * MIB, (10 * MIB,), True),
        (Place(1), 0, (12 * MIB, 12 * MIB), True),
        (Place(1, device="GPU1"), 0, (40 * MIB, 12 * MIB), False),
        (Place(1, device="CPU"), 40 * MIB, (1 * MIB,), True),
    ],
)
def test_what_does_not_fit_the_memory_is_refused(
    where: Place, free: int | None, gpus: tuple[int, ...], fits: bool, short: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 15 MiB of weights, and 2 MiB for 512 tokens.
    room(monkeypatch, free, *gpus)
    if fits:
        run.check_room(short, where, 512)
    else:
        with pytest.raises(PmpdError, match=r"do not fit the .* MiB of memory that are free"):
            run.check_room(short, where, 512)


def test_the_cache_counts(short: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 40 * MIB)
    with pytest.raises(PmpdError, match="for a context of 1000000 tokens do not fit"):
        run.check_room(short, ONE, 1_000_000)


OPTIONS = run.Options(ONE, prompt_lengths=(6,), depths=(0, 4), steps=2, repetitions=2, force=True)


@pytest.mark.usefixtures("small_reads", "no_processes")
def test_everything_is_measured(short: Bundle) -> None:
    labels: list[str] = []
    found = run.bench(short, OPTIONS, lambda label, done: labels.append(label))
    assert list(found.levels) == [8, 4]
    assert [(row.precision, row.workload.name) for row in found.rows] == [
        (p, name) for p in (8, 4) for name in ("pp6", "tg2", "tg2 @ d4")
    ]
    assert [(one.before, one.after) for one in found.switchings] == [(8, 4), (4, 8)]
    assert found.answers is not None and found.answers.scheduled.precisions == (8, 8, 4, 4, 4, 4)
    assert found.pairs == [] and found.bandwidth.bytes_per_second > 0
    assert {"loading levels alone", "pp6", "switching", "answers: static"} <= set(labels)


@pytest.mark.usefixtures("small_reads", "no_processes")
def test_one_level_is_measured_without_switches(short: Bundle, tmp_path: Path) -> None:
    from pmpd_edge import bundle

    schedule = StaticSchedule(short.schedule.switches[:1], 7)
    (tmp_path / "model").symlink_to(short.path, target_is_directory=True)
    alone = dataclasses.replace(short, path=tmp_path, levels=short.levels[:1], schedule=schedule, imatrix=None)
    for name in short.files:
        (tmp_path / name).symlink_to(short.path / name)
    bundle.write(alone)
    found = run.bench(alone, OPTIONS)
    assert found.switchings == [] and found.alternating == [] and found.answers is None
    assert {row.precision for row in found.rows} == {8}


@pytest.mark.usefixtures("small_reads", "no_processes")
def test_a_busy_machine_is_refused_unless_forced(short: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy() -> None:
        raise PmpdError("busy")

    monkeypatch.setattr(machine, "check_idle", busy)
    for measure in (run.bench, run.bench_ops):
        with pytest.raises(PmpdError, match="busy"):
            measure(short, dataclasses.replace(OPTIONS, force=False))
    assert run.bench_ops(short, OPTIONS).costs


def test_a_scheduler_that_does_not_exist_is_refused_at_once(short: Bundle) -> None:
    with pytest.raises(PmpdError, match="no scheduler 'fastest'"):
        run.bench(short, dataclasses.replace(OPTIONS, scheduler="fastest"))
