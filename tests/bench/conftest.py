"""What tests of the benchmarks share: a bundle whose answers are short, and a result whose figures are made up."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmpd_edge import Pmpd, bundle
from pmpd_edge.bench import bandwidth, child, run
from pmpd_edge.bench.bandwidth import Bandwidth
from pmpd_edge.bench.child import Alone
from pmpd_edge.bench.levels import Row, Sample, Workload
from pmpd_edge.bench.machine import Machine
from pmpd_edge.bench.memory import Memory
from pmpd_edge.bench.peer import Pair
from pmpd_edge.bench.place import Place
from pmpd_edge.bench.schedules import Answers, Comparison, Run
from pmpd_edge.bench.switches import Alternating, Switching
from pmpd_edge.bench.timing import Series
from pmpd_edge.bundle import Bundle, StaticSchedule, Switch

SECONDS = {8: (0.04, 0.05, 0.04), 4: (0.02, 0.02, 0.04)}  # of 2 decode steps
MIB = 2**20


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The translator at 8 and 4 bits, which answers with 7 tokens and switches at step 3."""
    folder = Path(shutil.copytree(bundle.default_bundle(), tmp_path_factory.mktemp("bench") / "model"))
    loaded = bundle.load(folder)
    made = dataclasses.replace(
        loaded,
        levels=loaded.levels[:2],
        schedule=StaticSchedule((Switch(1, 8), Switch(3, 4)), 7),
    )
    bundle.write(made)
    return bundle.load(folder)


@pytest.fixture
def short_llm(short: Bundle) -> Iterator[Pmpd]:
    llm = Pmpd(short.path, n_threads=1, n_ctx=256)
    llm.levels.load(*short.precisions)
    yield llm
    llm.close()


@pytest.fixture
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have few bytes count as more than caches hold: these tests are not about what is measured."""
    monkeypatch.setattr(bandwidth, "COLD", 1 << 16)
    monkeypatch.setattr(bandwidth, "last_level_cache", lambda: 0)


def answers(scheduler: str, prefill: int, steps: dict[int, float], precisions: tuple[int, ...]) -> Answers:
    """Three runs whose steps take the seconds of their precision."""
    one = Run(0.1, tuple(steps[precision] for precision in precisions), precisions)
    return Answers(scheduler, prefill, (one, one, one))


@pytest.fixture
def result(short: Bundle) -> run.Result:
    """A result whose figures can be worked out by hand: 10 GB/s of bandwidth, 100 and 50 MB of weights."""
    facts = {
        precision: run.LevelFacts(
            Alone(precision, f"llama 7M Q{precision}", 7 * MIB, 7_344_384, 0.5, Memory(90 * MIB, None, 99 * MIB), 0),
            weights,
            5e6,
        )
        for precision, weights in ((8, 100_000_000), (4, 50_000_000))
    }
    rows = [
        Row(8, Workload(prompt=4), tuple(Sample(s, s + 0.01, 0, {"battery": 8.0}) for s in SECONDS[8])),
        Row(8, Workload(steps=2, depth=4), tuple(Sample(s, 0, 0, {"battery": 4.0}) for s in SECONDS[8])),
        Row(4, Workload(prompt=4), tuple(Sample(s, s + 0.01, 0, {"battery": 4.0}) for s in SECONDS[4])),
        Row(4, Workload(steps=2, depth=4), tuple(Sample(s, 0, 0, {"battery": 2.0}) for s in SECONDS[4])),
    ]
    normal = Series((0.02, 0.02, 0.02))
    switching = Switching(8, 4, Series((1e-4,) * 3), (Series((0.03,) * 3), normal), normal)
    steps = {8: 0.02, 4: 0.01}
    comparison = Comparison(
        4,
        answers("static", 8, steps, (8, 8, 4, 4, 4, 4)),
        answers("fixed:8", 8, steps, (8,) * 6),
        answers("fixed:4", 4, steps, (4,) * 6),
        0.16,
    )
    return run.Result(
        bundle=short,
        machine=Machine("a CPU", "0-1", {"pmpd-edge": "1", "llama-cpp-python": "2"}, "2025-01-01T00:00:00+00:00"),
        options=run.Options(Place(2), repetitions=3),
        others=0.01,
        bandwidth=Bandwidth("CPU", Series((9e9, 10e9))),
        levels=facts,
        rows=rows,
        switchings=[switching],
        alternating=[Alternating(8, 4, Series((0.033,) * 3), Series((0.03,) * 3))],
        answers=comparison,
        pairs=[Pair(8, Workload(prompt=4), Series((99.0, 101.0, 103.0)), Series((100.0, 100.0, 100.0)))],
    )


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load levels alone without a process for each."""

    def alone(loaded: Bundle, precision: int, place: Place, prompt: int, n_ctx: int) -> Alone:
        return Alone(precision, "llama", 1, 1, 0.1, Memory(1, 1, 1), 0)

    monkeypatch.setattr(child, "alone", alone)
