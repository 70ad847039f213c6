"""Training the default model's learned scheduler, as users do: the file, the manifest, interruptions, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import run
from talk import SENTENCES, answer_text, messages

from pmpd_edge import Pmpd, bundle
from pmpd_edge.calibrate.train import FILE, STORE, default_pairs
from pmpd_edge.chat_template import render
from pmpd_edge.errors import BundleError
from pmpd_edge.predictor import of_bundle
from pmpd_edge.schedule.learned import choose

pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[train]'")

OPTIONS = ("--pairs", "8-2", "--prompts", "40", "--max-new-tokens", "12", "--threads", "1", "--parallel", "4")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text that the translator goes on with: captions, as it was trained on."""
    path = tmp_path_factory.mktemp("text") / "captions.txt"
    words = (("A man", "A woman", "A small dog", "Two children"), ("in a red shirt", "on a street"), ("runs", "sits"))
    lines = [f"{a} {b} {c}, and {d} looks on." for a in words[0] for b in words[1] for c in words[2] for d in words[0]]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the default bundle with a predictor."""
    folder = Path(shutil.copytree(bundle.default_bundle(), tmp_path_factory.mktemp("trained") / "model"))
    result = run("train-scheduler", folder, "--text", text, *OPTIONS)
    assert result.exit_code == 0, result.stderr
    assert "each judged by a network that has not seen it" in result.stdout and "8-2: " in result.stdout
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.default_bundle(), tmp_path / "model"))


def test_the_manifest_says_what_was_trained(trained: Path) -> None:
    made = bundle.load(trained)
    assert made.predictor and made.predictor.pairs == ((8, 2),)
    made.verify()
    (found,) = made.predictor.training["pairs"]
    assert sum(found["counts"]) == made.predictor.training["prompts"] > 20
    assert found["verdict"].startswith("8-2: ")
    assert "predictor.gguf for 8-2" in run("info", trained).output


def test_the_runner_switches_where_the_predictor_says(trained: Path) -> None:
    llm = Pmpd(trained, scheduler="learned:8-2,0.7", n_threads=1)
    predictor = of_bundle(llm.bundle)
    for sentence in SENTENCES:
        answer_text(llm, sentence)
        steps = llm.stats.decode_precisions
        tokens = render(llm, messages(sentence)).tokens
        llm.reset()
        llm.set_precision(8)
        llm.eval(tokens)
        probabilities = predictor.probabilities((8, 2), *llm.keys_values(predictor.layer))
        high_steps = min(predictor.steps[choose(probabilities, 0.7)], len(steps))
        assert steps == [8] * high_steps + [2] * (len(steps) - high_steps)
    llm.close()
    done = run("chat", trained, "--prompt", SENTENCES[0], "--scheduler", "learned", "--json", "--threads", "1")
    assert done.exit_code == 0 and json.loads(done.stdout)["stats"]["average_bitwidth"]


def test_the_random_control_draws_from_the_training_labels(trained: Path) -> None:
    llm = Pmpd(trained, scheduler="random:1", n_threads=1)
    predictor = of_bundle(llm.bundle)
    allowed = {n for n, prior in zip(predictor.steps, predictor.priors[8, 2], strict=True) if prior > 0}
    answer_text(llm, SENTENCES[0])
    steps = llm.stats.decode_precisions
    assert steps.count(8) in allowed | {len(steps)}
    llm.close()


def test_the_same_seed_gives_the_same_file(trained: Path, text: Path) -> None:
    before = (trained / FILE).read_bytes()
    assert run("train-scheduler", trained, "--text", text, *OPTIONS, "--quiet").output == ""
    assert (trained / FILE).read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals are needed")
def test_killed_and_started_again_it_is_the_same_file(trained: Path, copy: Path, text: Path) -> None:
    command = [sys.executable, "-m", "pmpd_edge", "train-scheduler", str(copy), "--text", str(text), *OPTIONS]
    manifest = (copy / "pmpd.json").read_bytes()
    for number in (signal.SIGKILL, signal.SIGINT):
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        size, deadline = _size(copy), time.monotonic() + 60
        while _size(copy) == size and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            break  # it was quicker
        assert b"Traceback" not in errors
        assert (copy / "pmpd.json").read_bytes() == manifest
    assert run("train-scheduler", copy, "--text", text, *OPTIONS).exit_code == 0
    assert (copy / FILE).read_bytes() == (trained / FILE).read_bytes()


def _size(folder: Path) -> int:
    return (folder / STORE).stat().st_size if (folder / STORE).exists() else 0


def test_a_predictor_of_other_weights_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "other"))
    manifest = json.loads((folder / "pmpd.json").read_text())
    manifest["levels"] = [level for level in manifest["levels"] if level["precision"] != 4]
    manifest["schedule"]["switches"] = [{"step": 1, "precision": 8}]
    (folder / "pmpd.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="trained for other weights"):
        Pmpd(folder, scheduler="learned", n_threads=1)
    Pmpd(folder, n_threads=1).close()


def test_a_damaged_predictor_is_told(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "damaged"))
    data = bytearray((folder / FILE).read_bytes())
    data[-100] ^= 1
    (folder / FILE).write_bytes(data)
    result = run("chat", folder, "--prompt", "Ein Hund.", "--scheduler", "learned", "--threads", "1")
    assert result.exit_code == 1 and "damaged" in result.stderr
    assert run("info", folder, "--verify").exit_code == 1
    (folder / FILE).unlink()
    result = run("chat", folder, "--prompt", "Ein Hund.", "--scheduler", "learned", "--threads", "1")
    assert result.exit_code == 1 and f"{FILE}: No such file" in result.stderr and "train it again" in result.stderr
    assert run("info", folder).exit_code == 0, "the weights are there: another predictor can be trained"


def test_a_predictor_is_of_a_precision_of_prompts(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "recalibrated"))
    made = bundle.load(folder)
    bundle.update(made, prefill=4)
    with pytest.raises(BundleError, match="trained on prompts at another precision than 4: train it again"):
        Pmpd(folder, scheduler="learned", n_threads=1)


def test_training_and_calibrating_at_the_same_time_lose_nothing(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "both"))
    early = bundle.load(folder)
    bundle.update(early, calibration={"kept": True})
    made = bundle.update(early, predictor=None)
    assert (made.calibration, made.predictor) == ({"kept": True}, None) and bundle.load(folder) == made


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ((), 2, "Give either --text FILE or --task"),
        (("--text", "TEXT", "--task", "TEXT"), 2, "Give either --text FILE or --task"),
        (("--text", "TEXT", "--limit", "3"), 2, "go with --task"),
        (("--text", "missing.txt"), 1, "missing.txt: No such file"),
        (("--text", "EMPTY"), 1, "too short"),
        (("--text", "LATIN1"), 1, "not UTF-8 at byte 1"),
        (("--text", "TEXT", "--pairs", "8"), 2, "write HIGH-LOW"),
        (("--text", "TEXT", "--pairs", "8-6"), 1, "no level of precision 6"),
        (("--text", "TEXT", "--pairs", "2-8"), 1, "2-8"),
        (("--text", "TEXT", "--max-new-tokens", "510"), 1, "do not fit a context of 512"),
        (("--text", "TEXT", "--prompts", "3", "--max-new-tokens", "8"), 1, "at least 20 are needed"),
    ],
)
def test_wrong_usage(
    copy: Path, text: Path, tmp_path: Path, options: tuple[str, ...], status: int, message: str
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin1.txt").write_bytes("gähnend".encode("latin-1"))
    files = {"TEXT": text, "EMPTY": tmp_path / "empty.txt", "LATIN1": tmp_path / "latin1.txt"}
    result = run("train-scheduler", copy, "--threads", "1", *(files.get(option, option) for option in options))
    assert (result.exit_code, message in result.stderr) == (status, True), result.stderr
    assert not (copy / FILE).exists()


def test_pairs_by_default(copy: Path) -> None:
    assert default_pairs(bundle.load(copy)) == ((8, 4), (8, 2), (4, 2))
