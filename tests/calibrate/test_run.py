"""Calibrating the default model, as users do: the choice, the manifest, interruptions, errors."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import run
from talk import answer_text

from pmpd_edge import Pmpd, bundle
from pmpd_edge.calibrate.run import PLOT, STORE

SUBJECTS = ("Ein Mann", "Eine Frau", "Ein Kind", "Ein Hund", "Ein junges Mädchen", "Ein alter Mann")
PLACES = ("steht auf der Straße", "sitzt auf einer Bank", "läuft über eine Wiese", "springt ins Wasser")
OPTIONS = ("--metric", "bleu", "--max-new-tokens", "24", "--objective", "bpw", "--threads", "1", "--parallel", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with the highest level's own answers as references: it loses nothing against itself."""
    path = tmp_path_factory.mktemp("data") / "captions.jsonl"
    llm = Pmpd(method="high", n_threads=1)
    with open(path, "w", encoding="utf-8") as file:
        for subject in SUBJECTS:
            for place in PLACES:
                prompt = f"{subject} {place}."
                file.write(json.dumps({"prompt": prompt, "reference": answer_text(llm, prompt)}) + "\n")
    llm.close()
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.default_bundle(), tmp_path / "model"))


def calibrate(folder: Path, data: Path, *options: str) -> dict[str, Any]:
    result = run("calibrate", folder, "--task", data, *OPTIONS, *options, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def without_times(found: Any) -> Any:
    """What does not depend on how fast the machine was."""
    if isinstance(found, dict):
        times = ("seconds", "gain", "decode_tokens_per_second", "prefill_tokens_per_second")
        return {key: without_times(value) for key, value in found.items() if key not in times}
    return [without_times(value) for value in found] if isinstance(found, list) else found


def test_chooses_and_writes_into_the_manifest(copy: Path, data: Path) -> None:
    before = bundle.load(copy)
    found = calibrate(copy, data)
    assert found["reference"]["score"]["value"] == pytest.approx(100)
    assert len(found["pairs"]) == 9
    low = next(pair for pair in found["pairs"] if (pair["prefill"], pair["schedule"]) == (2, "2@1"))
    assert low["loss"]["value"] > 5, "2 bits throughout are worse, or this test shows nothing"
    assert found["chosen"]["loss"]["value"] <= 1.0
    assert found["chosen"]["average_bpw"] <= found["reference"]["average_bpw"]
    after = bundle.load(copy)
    assert after.calibration == found
    assert found["chosen"]["prefill"] == after.prefill
    assert found["chosen"]["schedule"] == ",".join(f"{s.precision}@{s.step}" for s in after.schedule.switches)
    assert after.schedule.max_new_tokens == before.schedule.max_new_tokens, "the task's limit is not the bundle's"
    assert found["within"] is True
    assert (after.files, after.levels, after.imatrix) == (before.files, before.levels, before.imatrix)
    assert (copy / PLOT).read_bytes().startswith(b"\x89PNG")
    assert run("chat", copy, "--prompt", "Ein Hund läuft.", "--threads", "1").exit_code == 0
    assert "captions.jsonl" in run("info", copy).output


def test_the_curve_is_what_the_runner_gives(copy: Path, data: Path) -> None:
    """Answers were made in a batch; one by one, by the bundle as it was written, they score alike."""
    from pmpd_edge.evaluate import metrics

    found = calibrate(copy, data, "--parallel", "1")
    llm = Pmpd(copy, n_threads=1)
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    answers = [answer_text(llm, row["prompt"], 24) for row in rows]
    metric = metrics.make("bleu")
    total = metric.rows(answers, [row["reference"] for row in rows]).sum(axis=0)
    assert metric.score(total) == pytest.approx(found["chosen"]["score"]["value"], abs=1e-9)
    llm.close()


def test_another_tolerance_makes_only_what_is_new(copy: Path, data: Path) -> None:
    calibrate(copy, data)
    before = (copy / STORE).read_bytes()
    again = calibrate(copy, data)
    loose = calibrate(copy, data, "--tolerance", "100")
    added = (copy / STORE).read_bytes().removeprefix(before).splitlines()
    assert all(json.loads(line)["inputs"].get("speed") for line in added), "speed is measured anew, answers are kept"
    assert len(added) == 2
    assert loose["chosen"]["average_bitwidth"] == 2 < again["chosen"]["average_bitwidth"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals are needed")
def test_killed_again_and_again_it_finds_the_same(copy: Path, data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    undisturbed = calibrate(other, data)
    manifest = (copy / "pmpd.json").read_bytes()
    command = [sys.executable, "-m", "pmpd_edge", "calibrate", str(copy), "--task", str(data), *OPTIONS]
    chance = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline, size = time.monotonic() + 60, _size(copy)
        while _size(copy) == size and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)  # until it has made something new
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            break  # it was quicker
        assert b"Traceback" not in errors
        assert (copy / "pmpd.json").read_bytes() == manifest, "nothing half-chosen"
    assert without_times(calibrate(copy, data)) == without_times(undisturbed)


def _size(folder: Path) -> int:
    store = folder / STORE
    return store.stat().st_size if store.exists() else 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 examples, at least 8 are needed"),
        (b'{"prompt": "a", "reference": "b"}\n', "1 examples, at least 8 are needed"),
        (b'{"prompt": "a", "answer": "b"}\n', "line 1: no field 'reference': the row has prompt, answer"),
        (b'\n{"prompt": "\xff"}\n', "line 2: not UTF-8"),
    ],
)
def test_a_wrong_task_file(copy: Path, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    result = run("calibrate", copy, "--task", path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {path}") and message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (copy / STORE).exists()


def test_wrong_usage(copy: Path, data: Path) -> None:
    for options, message in (
        (["--task", data, "--data", data], "--data goes with a named task"),
        (["--task", data, "--tolerance", "nan"], "not a finite number"),
        (["--task", data, "--metric", "wer"], "'wer' is not one of"),
    ):
        result = run("calibrate", copy, *options)
        assert result.exit_code == 2 and message in result.stderr


def test_what_cannot_be_calibrated(copy: Path, data: Path) -> None:
    result = run("calibrate", copy, "--task", "multi30k-fr-en")
    assert result.exit_code == 1 and "no data set on the Hub: give its rows with --data FILE" in result.stderr
    result = run("calibrate", copy, "--task", data, "--prefill", "6")
    assert result.exit_code == 1 and "no level of precision 6" in result.stderr
    long = data.with_name("long.jsonl")
    long.write_text((json.dumps({"prompt": "Ein Mann. " * 400, "reference": "b"}) + "\n") * 8)
    result = run("calibrate", copy, "--task", long, "--threads", "1")
    assert result.exit_code == 1 and "in a context of 512" in result.stderr
    manifest = json.loads((copy / "pmpd.json").read_text())
    manifest["levels"] = manifest["levels"][:1]
    manifest["schedule"]["switches"] = [{"step": 1, "precision": 8}]
    (copy / "pmpd.json").write_text(json.dumps(manifest))
    result = run("calibrate", copy, "--task", data)
    assert result.exit_code == 1 and "one level only: convert with more" in result.stderr
