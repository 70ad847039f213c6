"""pmpd-edge simulate: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import run

from pmpd_edge import bundle as bundles
from pmpd_edge.simulate import device as devices
from pmpd_edge.simulate.shapes import SHAPES

PHONE = ("--model", "llama-3.2-1b", "--device", "phone")


def document(*arguments: str | Path) -> dict:
    done = run("simulate", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_papers_bars_as_json():
    found = document("--paper")
    assert found.keys() == {"mean_error", "cells"}
    assert len(found["cells"]) == 24
    assert 0 < found["mean_error"] < 0.1


def test_the_papers_bars_for_a_person():
    lines = run("simulate", "--paper").stdout.splitlines()
    assert len(lines) == 1 + 1 + 24 + 1
    assert lines[-1].endswith("of 24 bars") and lines[-1].startswith("Mean error ")


def test_the_list_names_every_device_and_model():
    text = run("simulate", "--list").stdout
    assert all(name in text for name in (*devices.names(), *SHAPES))
    found = document("--list")
    assert list(found["devices"]) == list(devices.names())
    assert found["models"]["phi-1.5"] == SHAPES["phi-1.5"].parameters


def test_a_schedule_beside_its_precisions_alone():
    found = document(*PHONE, "--scheduler", "static:8@1,4@33", "--prompt-tokens", "64", "--new-tokens", "96")
    assert (found["model"], found["device"], found["prompt_tokens"], found["new_tokens"]) == (
        "llama-3.2-1b",
        "phone",
        64,
        96,
    )
    speeds = {level["precision"]: level["decode_tokens_per_second"] for level in found["levels"]}
    assert list(speeds) == [16, 8, 6, 5, 4, 3, 2]
    schedule = found["schedule"]
    assert schedule["average_bitwidth"] == pytest.approx((32 * 8 + 64 * 4) / 96)
    assert speeds[8] < schedule["decode_tokens_per_second"] < speeds[4]
    assert [(s["step"], s["precision"]) for s in schedule["switches"]] == [(33, 4)]


def test_a_table_of_levels_and_of_the_schedule():
    arguments = (*PHONE, "--scheduler", "static:8@1,4@33")
    text, found = run("simulate", *arguments).stdout, document(*arguments)
    assert text.startswith("llama-3.2-1b on phone (a phone: ")
    rows = [line.split() for line in text.splitlines()]
    for level, row in zip(found["levels"], rows[3:], strict=False):
        assert (row[0], row[1], row[-1]) == (str(level["precision"]), level["type"], level["bound"])
        assert float(row[4]) == pytest.approx(level["decode_tokens_per_second"], abs=0.051)
    high = next(level for level in found["levels"] if level["precision"] == 8)
    gain = high["decode_seconds"] / found["schedule"]["decode_seconds"]
    (schedule,) = (row for row in rows if row and row[0] == "static:8@1,4@33")
    assert float(schedule[3]) == pytest.approx(gain, abs=0.0051) and gain > 1


def test_without_a_schedule_there_are_only_levels():
    assert document(*PHONE)["schedule"] is None
    assert "gain" not in run("simulate", *PHONE).stdout


def test_a_bundle_follows_its_own_schedule():
    default = bundles.load(bundles.default_bundle())
    found = document("--device", "phone", str(default.path), "--new-tokens", "48")
    assert [level["precision"] for level in found["levels"]] == list(default.precisions)
    for level in found["levels"]:
        assert level["bpw"] == pytest.approx(default.bpw(default.level(level["precision"])), abs=1e-3)
    assert found["schedule"]["name"] == "static"


def test_the_precisions_of_a_run(tmp_path):
    path = tmp_path / "run.json"
    tokens = [{"precision": p} for p in (8, 8, 4, 4)]
    path.write_text(json.dumps({"tokens": tokens, "stats": {"prompt_tokens": 21}}))
    found = document(*PHONE, "--precisions", path)
    assert (found["prompt_tokens"], found["new_tokens"]) == (21, 3)
    assert found["schedule"]["average_bitwidth"] == pytest.approx(16 / 3)
    assert document(*PHONE, "--precisions", path, "--prompt-tokens", "9")["prompt_tokens"] == 9


def test_levels_that_do_not_fit_are_left_out_and_told():
    text = run("simulate", "--model", "llama-3.1-8b", "--device", "phone").stdout
    assert "left out: llama-3.1-8b: 15.0 GiB of weights and KV cache, phone has 12.0" in text
    found = document("--model", "llama-3.1-8b", "--device", "phone")
    assert found["levels"][0]["precision"] == 8


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--model", "phi-1.5"), 2, "Say on which --device; --list names those known."),
        (("--device", "npu"), 2, "Give a bundle, or a shape's name with --model"),
        (("--device", "npu", "--model", "phi-1.5", "x"), 2, "Give a bundle or --model, not both."),
        (("--paper", "--model", "phi-1.5"), 2, "--paper has its own models, schedules and lengths."),
        ((*PHONE, "--precisions", __file__, "--scheduler", "fixed:4"), 2, "--scheduler or --precisions, not both"),
        ((*PHONE, "--precisions", __file__, "--new-tokens", "4"), 2, "tells the number of new tokens itself"),
        ((*PHONE, "--precisions", __file__), 1, "no precisions of a run"),
        ((*PHONE, "--prompt-tokens", "many"), 2, "'many' is not a valid integer"),
        ((*PHONE, "--new-tokens", "0"), 2, "0 is not in the range x>=1"),
        (("--model", "phi-1.5", "--device", "rtx"), 1, "no device 'rtx': choose one of a40, laptop, npu"),
        (("--model", "phi", "--device", "npu"), 1, "no model 'phi': choose one of vicuna-7b"),
        (
            ("--model", "phi-1.5", "--device", "npu", "--scheduler", "fixed:8"),
            1,
            "no level of precision 8: choose one of 16, 4",
        ),
        (
            ("--model", "llama-2-13b", "--device", "npu", "--scheduler", "fixed:16"),
            1,
            "GiB of weights and KV cache, npu has",
        ),
        ((*PHONE, "--prompt-tokens", "200000"), 1, "200128 tokens, its context has 131072"),
        (("--device", "phone", "no/such/bundle"), 1, "no such bundle"),
        (("--paper", "--device", "phone"), 1, "vicuna"),
    ],
)
def test_the_impossible_is_refused_in_a_line(arguments, status, message):
    done = run("simulate", *arguments)
    assert done.exit_code == status
    assert message in done.stderr and "Traceback" not in done.output
    assert done.stdout == ""


def test_plots_are_written_as_png_and_svg(tmp_path):
    run("simulate", *PHONE, "--scheduler", "static:8@1,4@33", "--plot", tmp_path)
    run("simulate", "--paper", "--plot", tmp_path)
    names = {f"{name}.{kind}" for name in ("throughput", "roofline", "tokens", "paper") for kind in ("png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())
