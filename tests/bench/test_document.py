"""Results as JSON, lines, CSV, tables and comparisons (pmpd_edge/bench/document.py, tables.py, page.py, compare.py)."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pmpd_edge.bench import compare, document, page, tables
from pmpd_edge.bench.bandwidth import Bandwidth
from pmpd_edge.bench.machine import Machine
from pmpd_edge.bench.ops import OpCost
from pmpd_edge.bench.place import Place
from pmpd_edge.bench.run import OpsResult, Options, Result
from pmpd_edge.bench.timing import Series
from pmpd_edge.errors import PmpdError

# Fields of llama-bench's own rows (tools/llama-bench/README.md) that ours have.
THEIR_FIELDS = {
    "build_commit", "cpu_info", "backends", "model_filename", "model_type", "model_size", "model_n_params", "n_batch",
    "n_ubatch", "n_threads", "n_gpu_layers", "flash_attn", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns",
    "stddev_ns", "avg_ts", "stddev_ts", "samples_ts",
}  # fmt: skip


@pytest.fixture
def ops_result() -> OpsResult:
    fast, slow = Series((0.001, 0.002)), Series((0.004, 0.004))
    return OpsResult(
        Machine("a CPU", "", {"llama-cpp-python": "2"}, "now"),
        Options(Place(1), repetitions=2),
        None,
        Bandwidth("CPU", Series((10e9,))),
        [OpCost("Vicuna-7B", "attention", "Q4_K", 6_000_000, "CPU_REPACK", fast, slow)],
    )


def section(result: Result | OpsResult, title: str) -> list[dict[str, str]]:
    """The rows of a table, by its head."""
    (found,) = (s for s in tables.sections(result) if s.title == title)
    head, *rows = found.rows
    assert all(len(row) == len(head) for row in rows)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_document_has_every_figure(result: Result) -> None:
    found = json.loads(json.dumps(document.document(result)))
    assert (found["format"], found["version"], found["kind"]) == ("pmpd-bench", 1, "levels")
    decode = next(test for test in found["tests"] if test["precision"] == 4 and test["n_gen"])
    assert decode["test"] == "tg2 @ d4"
    assert decode["tokens_per_second"]["values"] == pytest.approx([100, 100, 50])
    assert decode["tokens_per_second"]["median"] == pytest.approx(100)
    assert decode["share_of_bandwidth"] == pytest.approx(0.5)  # 50 MB * 100/s of 10 GB/s
    assert decode["joules_per_token"] == {"battery": 1.0}
    prompt = next(test for test in found["tests"] if test["precision"] == 8 and test["n_prompt"])
    assert prompt["first_token_seconds"]["median"] == pytest.approx(0.05)
    assert found["levels"][1]["weight_bytes_per_step"] == 50_000_000
    assert found["schedule"]["over_ideal"] == pytest.approx(0.18 / 0.16)
    assert found["schedule"]["over_high"] == pytest.approx(0.22 / 0.18)
    assert found["switches"][0]["first_over_normal"] == pytest.approx([1.5, 1.0])
    assert found["llama_bench"][0]["ratio"]["mean"] == pytest.approx(1.01)


def test_no_path_of_this_machine_is_in_the_document(result: Result) -> None:
    assert str(result.bundle.path) not in json.dumps(document.document(result))


def test_rows_have_llama_benchs_fields(result: Result) -> None:
    rows = document.flat_rows(result)
    assert len(rows) == 4
    assert set(rows[0]) >= THEIR_FIELDS
    fast = rows[3]
    assert fast["avg_ts"] == pytest.approx((100 + 100 + 50) / 3)
    assert fast["avg_ns"] == pytest.approx(1e9 * (0.02 + 0.02 + 0.04) / 3, rel=1e-6)
    assert fast["stddev_ts"] == pytest.approx(28.8675, rel=1e-4)


def test_lines_and_columns_say_the_same(result: Result, ops_result: OpsResult) -> None:
    for one in (result, ops_result):
        rows = document.flat_rows(one)
        lines = [json.loads(line) for line in document.to_jsonl(rows).splitlines()]
        table = list(csv.DictReader(io.StringIO(document.to_csv(rows))))
        assert lines == rows and len(table) == len(rows)
        for row, cells in zip(rows, table, strict=True):
            single = {name: value for name, value in row.items() if not isinstance(value, dict | list)}
            assert cells == {name: "" if value is None else str(value) for name, value in single.items()}


def test_the_speed_table_is_llama_benchs(result: Result) -> None:
    rows = section(result, "Speed")
    assert list(rows[0])[1:] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert rows[0]["size"] == "7.00 MiB" and rows[0]["params"] == "7.34 M"
    assert rows[3]["test"] == "tg2 @ d4" and rows[3]["t/s"] == "83.33 ± 28.87"


def test_decoding_is_held_against_the_bandwidth_and_the_highest_level(result: Result) -> None:
    high, low = section(result, "Decoding and memory bandwidth")
    assert (high["gain"], low["gain"]) == ("1.00", "2.00")
    assert (low["of bandwidth"], low["GB/s"], low["t/s, median"]) == ("50%", "5.0", "100.00")


def test_a_lower_level_that_is_slower_is_told(result: Result) -> None:
    rows = [dataclasses.replace(row, precision=12 - row.precision) for row in result.rows]  # 8 and 4 change places
    slower = dataclasses.replace(result, rows=rows)
    (traffic,) = (s for s in tables.sections(slower) if s.title == "Decoding and memory bandwidth")
    assert "4 bits are no faster than 8 here (tg2 @ d4)." in traffic.notes


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "Stepping down pays here"), (3.0, "Stepping down does not pay here")]
)
def test_the_verdict_is_of_whole_answers(factor: float, verdict: str, result: Result) -> None:
    assert result.answers
    slow = dataclasses.replace(
        result.answers.scheduled,
        runs=tuple(dataclasses.replace(run, prefill=factor * run.prefill) for run in result.answers.scheduled.runs),
    )
    changed = dataclasses.replace(result, answers=dataclasses.replace(result.answers, scheduled=slow))
    (answers,) = (s for s in tables.sections(changed) if s.title == "Answers under a schedule")
    assert any(note.startswith(verdict) for note in answers.notes)


def test_what_the_platform_does_not_report_is_not_available(result: Result) -> None:
    assert {row["file-backed, MiB"] for row in section(result, "Loading and memory")} == {"not available"}
    silent = [
        dataclasses.replace(row, samples=tuple(dataclasses.replace(s, joules={}) for s in row.samples))
        for row in result.rows
    ]
    assert section(dataclasses.replace(result, rows=silent), "Energy") == [{"energy": "not available"}]
    assert section(result, "Energy, J a token")[0]["battery"] == "2.000"


def test_switches_are_told_step_by_step(result: Result) -> None:
    (row,) = section(result, "Switching")
    assert row == {
        "from": "8",
        "to": "4",
        "call, ms": "0.100",
        "a step, ms": "20.00",
        "step 1": "1.50",
        "step 2": "1.00",
    }
    (row,) = section(result, "Switching at every token")
    assert row["ratio"] == "1.100"


def test_operators_are_told_by_model(ops_result: OpsResult) -> None:
    (row,) = section(ops_result, "Operators of Vicuna-7B")
    assert (row["µs"], row["speed-up over F16"], row["GB/s"], row["of bandwidth"]) == ("1500.0", "3.00", "4.0", "40%")


def test_other_processes_are_told(result: Result, ops_result: OpsResult) -> None:
    assert not any("processes" in line for line in page.heading(result))
    assert any("used 0.50 cores" in line for line in page.heading(dataclasses.replace(result, others=0.5)))
    assert any("not known" in line for line in page.heading(ops_result))


def test_markdown_tables_are_whole(result: Result) -> None:
    text = page.markdown("Title", page.heading(result), tables.sections(result))
    assert text.startswith("# Title\n\nMachine: a CPU.\n")
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        lines = block.strip().splitlines()
        assert len({line.count("|") for line in lines}) == 1 and set(lines[1]) <= set("|-: ")


# Comparing


def written(result: Result | OpsResult) -> Any:
    return json.loads(json.dumps(document.document(result)))


def test_a_comparison_tells_change_from_spread(result: Result) -> None:
    faster = [
        dataclasses.replace(row, samples=tuple(dataclasses.replace(s, seconds=s.seconds / 4) for s in row.samples))
        if row.precision == 4
        else row
        for row in result.rows
    ]
    found = compare.compare(written(result), written(dataclasses.replace(result, rows=faster)))
    cells = {row[:2]: row[2:] for row in found.rows[1:]}
    assert cells["8", "pp4"] == ("100.00", "100.00", "1.000", "within the spread")
    assert cells["4", "tg2 @ d4"] == ("100.00", "400.00", "4.000", "")


def test_only_common_tests_are_compared(result: Result) -> None:
    fewer = dataclasses.replace(result, rows=result.rows[:1])
    assert [row[1] for row in compare.compare(written(result), written(fewer)).rows] == ["test", "pp4"]
    with pytest.raises(PmpdError, match="no test in common"):
        compare.compare(written(result), written(dataclasses.replace(result, rows=[])))


def test_operators_are_compared_too(ops_result: OpsResult, result: Result) -> None:
    found = compare.compare(written(ops_result), written(ops_result))
    assert found.rows[1][:3] == ("Vicuna-7B", "attention", "Q4_K") and found.rows[1][5] == "1.000"
    with pytest.raises(PmpdError, match="compare two of a kind"):
        compare.compare(written(ops_result), written(result))


def test_what_is_no_result_is_refused(result: Result, tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"format": "pmpd-bench", "version": 2}', "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(PmpdError, match="not a result of 'pmpd-edge bench'"):
            document.read(tmp_path / "a.json")
    with pytest.raises(PmpdError, match=r"none\.json: No such file"):
        document.read(tmp_path / "none.json")
    for key in ("tests", "machine"):
        damaged = {name: value for name, value in written(result).items() if name != key}
        with pytest.raises(PmpdError, match="damaged"):
            compare.compare(damaged, written(result))
