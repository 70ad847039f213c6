"""llama-bench beside our own figures (pmpd_edge/bench/peer.py), with programs that stand for it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from pmpd_edge.bench import child, peer
from pmpd_edge.bench.levels import Workload
from pmpd_edge.bench.peer import Pair
from pmpd_edge.bench.place import Place
from pmpd_edge.bench.timing import Series
from pmpd_edge.bundle import Bundle, Level
from pmpd_edge.errors import PmpdError

WORKLOADS = [Workload(prompt=8), Workload(steps=4, depth=16)]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the programs are scripts")


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([f"#!{sys.executable}", "import json, sys", *lines]))
    path.chmod(0o755)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Writes down what it is asked, and finds 50 tokens/s for prompts and 20 for decoding."""
    return script(
        tmp_path / "llama-bench",
        f"open({str(tmp_path / 'asked.jsonl')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')",
        "asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))",
        "print(json.dumps([{'samples_ts': [50.0 if int(asked['-p']) else 20.0]}]))",
    )


def asked(program: Path) -> list[dict[str, str]]:
    lines = (program.parent / "asked.jsonl").read_text().splitlines()
    return [dict(zip(words[::2], words[1::2], strict=True)) for words in map(json.loads, lines)]


def test_a_program_in_the_working_directory_is_that_one(
    program: Path, short: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without a slash is a path here, and not looked for elsewhere."""
    monkeypatch.chdir(program.parent)
    model = short.paths(short.levels[0])[0].resolve()
    assert peer.rates(Path(program.name), model, Place(1), WORKLOADS) == [50.0, 20.0]


def test_llama_bench_is_asked_for_the_same_test(program: Path, short: Bundle) -> None:
    model = short.paths(short.levels[0])[0]
    assert peer.rates(program, model, Place(3, 7), WORKLOADS) == [50.0, 20.0]
    prompt, decode = asked(program)
    assert prompt["-m"] == str(model)
    assert [prompt[name] for name in ("-p", "-n", "-d", "-r", "-t", "-ngl", "-fa")] == [
        "8",
        "0",
        "0",
        "1",
        "3",
        "7",
        "1",
    ]
    assert [decode[name] for name in ("-p", "-n", "-d")] == ["0", "4", "16"]


def test_both_take_turns_and_each_is_the_first_in_half_of_the_pairs(
    program: Path, short: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = peer.rates
    monkeypatch.setattr(peer, "rates", lambda *args: (order.append("theirs"), real(*args))[1])
    monkeypatch.setattr(child, "rates", lambda *args: (order.append("ours"), [25.0, 10.0])[1])
    found = peer.compare(program, short, Place(1), WORKLOADS, 256, 2)
    assert order == ["ours", "theirs", "theirs", "ours"] * 2
    assert [(pair.precision, pair.workload) for pair in found] == [(p, w) for p in (8, 4) for w in WORKLOADS]
    assert all(pair.ratios.values == (0.5, 0.5) for pair in found)


def test_levels_that_are_sums_are_left_out(program: Path, short: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "rates", lambda *args: [25.0, 10.0])
    low = short.levels[1]
    nested = dataclasses.replace(short, levels=(Level(8, (*low.weights, *short.levels[0].weights)), low))
    assert {pair.precision for pair in peer.compare(program, nested, Place(1), WORKLOADS, 256, 1)} == {4}
    with pytest.raises(PmpdError, match="all levels are sums of files"):
        peer.compare(program, dataclasses.replace(nested, levels=nested.levels[:1]), Place(1), WORKLOADS, 256, 1)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("sys.exit('error: failed to load model')",), r"\(status 1\): error: failed to load model"),
        (("print('no JSON')",), r"\(status 0\): it printed no result"),
        (("print('[]')",), r"\(status 0\): it printed no result"),
    ],
)
def test_a_program_that_fails_is_one_line(lines: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    program = script(tmp_path / "llama-bench", *lines)
    with pytest.raises(PmpdError, match=rf"llama-bench failed {reason}$"):
        peer.rates(program, Path("m.gguf"), Place(1), WORKLOADS)


def test_what_is_no_program_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")
    with pytest.raises(PmpdError, match="text: Permission denied: give llama-bench's path with --peer"):
        peer.rates(tmp_path / "text", Path("m.gguf"), Place(1), WORKLOADS)


def test_the_ratio_is_the_mean_of_pairs_with_its_standard_error() -> None:
    pair = Pair(8, WORKLOADS[0], Series((2.0, 4.0)), Series((2.0, 2.0)))
    assert pair.ratios.mean == 1.5
    assert pair.standard_error == pytest.approx(0.5)
