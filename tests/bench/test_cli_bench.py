"""`pmpd-edge bench` as users call it (pmpd_edge/verbs/bench.py, bench_output.py)."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import Result
from command import process, run

from pmpd_edge import native
from pmpd_edge.bundle import Bundle

QUICK = ("--threads", "1", "--prompt-lengths", "6", "--depths", "0,4", "--steps", "2", "--repetitions", "2", "--force")

pytestmark = pytest.mark.usefixtures("small_reads", "no_processes")


def bench(short: Bundle, *more: str | Path) -> Result:
    return run("bench", short.path, *QUICK, *more)


def test_the_tables_say_what_was_measured(short: Bundle) -> None:
    result = bench(short)
    assert result.exit_code == 0, result.output
    for title in ("Speed", "Decoding and memory bandwidth", "Switching", "Answers under a schedule", "Energy"):
        assert title in result.stdout
    assert "tg2 @ d4" in result.stdout and "1 threads" in result.stdout


def test_json_is_one_document_and_out_keeps_it(short: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    result = bench(short, "--json", "--out", out)
    assert json.loads(result.stdout) == json.loads(out.read_text())
    assert run("bench", "--compare", out, out).stdout.count("within the spread") == 6
    assert run("bench", "--compare", out, out, "-o", "markdown").stdout.startswith("# a.json and a.json\n")


def test_each_form_has_all_tests(short: Bundle) -> None:
    names = ["pp6", "tg2", "tg2 @ d4"] * 2
    lines = bench(short, "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["test"] for line in lines] == names
    table = csv.DictReader(io.StringIO(bench(short, "-o", "csv").stdout))
    assert [row["test"] for row in table] == names
    assert bench(short, "-o", "markdown").stdout.startswith(f"# Benchmark of {short.name}\n")


def test_plots_are_drawn(short: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    result = bench(short, "--plot", tmp_path / "plots")
    assert len(list((tmp_path / "plots").iterdir())) == 6
    assert "throughput.png" in result.stderr


def test_operators_of_a_bundle(short: Bundle) -> None:
    result = run("bench", short.path, "--ops", "--threads", "1", "--repetitions", "2", "--force", "-o", "jsonl")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["model"] for row in rows} == {short.name}
    assert {row["part"] for row in rows} == {"attention", "feed-forward"}


def test_another_schedule(short: Bundle) -> None:
    found = json.loads(bench(short, "--scheduler", "static:4@1,8@4", "--json").stdout)
    assert found["schedule"]["scheduled"]["precisions"] == [4, 4, 4, 8, 8, 8]


def test_operators_have_no_plots(tmp_path: Path) -> None:
    result = run("bench", "--ops", "--plot", tmp_path)
    assert result.exit_code == 2 and "--plot has no meaning with --ops" in result.stderr


def test_devices_are_listed() -> None:
    result = run("bench", "--list-devices")
    assert result.exit_code == 0 and "CPU" in result.stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--repetitions", "0"), "Invalid value for '--repetitions'"),
        (("--prompt-lengths", "0"), "give numbers of 1 and more, each once"),
        (("--prompt-lengths", "6,6"), "give numbers of 1 and more, each once"),
        (("--prompt-lengths", "six"), "write numbers like 128,512"),
        (("--depths", "-1"), "give numbers of 0 and more"),
        (("--peer", "nowhere"), "does not exist"),
        (("--ops",), "--prompt-lengths has no meaning with --ops"),
        (("--compare", "a", "b", "--json"), "--compare prints a table"),
    ],
)
def test_wrong_usage_exits_with_2(options: tuple[str, ...], reason: str, short: Bundle) -> None:
    result = bench(short, *options)
    assert result.exit_code == 2 and result.stdout == ""
    assert reason in result.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--depths", "511"), "Error: tg2 @ d511 needs a context of 513 tokens, and translator-7m has 512: ask for"),
        (("--device", "TPU0"), "Error: no device 'TPU0': choose one of "),
        (("--scheduler", "fixed:3"), "no level of precision 3"),
    ],
)
def test_what_is_impossible_is_one_line(options: tuple[str, ...], reason: str, short: Bundle) -> None:
    result = bench(short, *options)
    assert result.exit_code == 1 and result.stdout == ""
    assert reason in result.stderr and result.stderr.count("\n") == 1


def test_a_bundle_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    result = run("bench", tmp_path / "none")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'none'}: no such bundle: give a directory ")
    assert result.stderr.count("\n") == 1


def test_all_of_it_in_processes_of_their_own(short: Bundle) -> None:
    # What the fixtures leave out: 512 MiB are read, and each level is loaded alone.
    done = process("bench", short.path, *QUICK[:-3], "--repetitions", "1", "--force", "--quiet", "--json")
    assert done.returncode == 0 and done.stderr == ""
    found = json.loads(done.stdout)
    assert [level["description"].split()[0] for level in found["levels"]] == ["llama", "llama"]
    assert found["machine"]["versions"]["llama-cpp-python"] == native.load().__version__
