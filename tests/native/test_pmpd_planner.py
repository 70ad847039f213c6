"""libpmpd's planner chooses what Python's does, round by round (native/pmpd/planner.cpp).

What is right is in tests/lossless/test_planner.py.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from pmpd_edge.lossless.planner import MEASURED, Costs, Planner
from pmpd_edge.stats import Round

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "native" / "pmpd"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("there is no C++ compiler: apt-get install g++")
    made = tmp_path_factory.mktemp("planner") / "planner"
    sources = [HERE / "pmpd_planner.cpp", SOURCES / "planner.cpp"]
    subprocess.run([compiler, "-std=c++17", f"-I{SOURCES}", *sources, "-o", made], check=True)
    return made


def play(planner: Planner, acceptance: float, n: int, true: Costs, rng: random.Random) -> tuple[list[Round], list[int]]:
    """Rounds as the planner wants them, some of them shorter or stalled, and the number of drafts before each."""
    rounds, asked = [], [planner.next()]
    for _ in range(n):
        drafts = max(asked[-1] - (rng.random() < 0.1), 0)
        kept = next((i for i in range(drafts) if rng.random() >= acceptance), drafts)
        jitter = 1 + rng.random() + 20 * (rng.random() < 0.02)
        drafting = jitter * (true.begin + drafts * true.draft) if drafts else 0.0
        done = Round(
            drafts, kept, kept < drafts and rng.random() < 0.9, kept + 1, drafting, jitter * true.verify[drafts]
        )
        planner.record(done)
        rounds.append(done)
        asked.append(planner.next())
    return rounds, asked


@pytest.mark.parametrize("draft", [0.1, 0.4, 0.7, 1.2])
@pytest.mark.parametrize("acceptance", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("n_measured", [2, 4])
def test_the_same_rounds_give_the_same_numbers(program: Path, draft: float, acceptance: float, n_measured: int) -> None:
    rng = random.Random(repr((draft, acceptance)))
    known = [0.037, 0.002, 0.037 * draft, *(0.037 * (1 + 0.1 * drafts) for drafts in MEASURED[:n_measured])]
    costs = Costs.of(known[0], known[1], known[2], known[3:])
    promised = (costs.break_even(), costs.gain(costs.most, 1))
    rounds, expected = play(Planner(costs), acceptance, 1500, Costs.of(known[0], known[1], known[2], known[3:]), rng)

    lines = [
        f"{r.drafted} {r.kept} {int(r.rejected)} {r.tokens} {r.drafting_seconds!r} {r.verifying_seconds!r}\n"
        for r in rounds
    ]
    done = subprocess.run(
        [program, *map(repr, known)], input="".join(lines), capture_output=True, text=True, check=True
    )
    first, *numbers = done.stdout.splitlines()
    break_even, gain = map(float, first.split())
    assert break_even == (1.01 if promised[0] is None else promised[0])
    assert gain == pytest.approx(promised[1])
    assert list(map(int, numbers)) == expected
    assert len(set(expected)) > 1 or draft > 1, "else nothing was chosen"
