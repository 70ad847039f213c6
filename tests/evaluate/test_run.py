"""Evaluating the default model, as users do: figures, interruptions, what is wrong with rows and answers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import run
from models import TRANSLATOR

from pmpd_edge import bundle, gguf_info
from pmpd_edge.evaluate import tasks
from pmpd_edge.evaluate.report import EXAMPLES, MARKDOWN, RESULTS
from pmpd_edge.evaluate.run import STORE, Options, evaluate

pytest.importorskip("sacrebleu", reason="pip install 'pmpd-edge[eval]'")

PAIRS = [
    ("Ein Mann steht auf der Straße.", "A man is standing on the street."),
    ("Eine Frau sitzt auf einer Bank.", "A woman sits on a bench."),
    ("Ein Kind springt ins Wasser.", "A child jumps into the water."),
    ("Ein Hund läuft über die Wiese.", "A dog runs across the meadow."),
    ("Zwei Kinder spielen Fußball.", "Two children play soccer."),
    ("Ein alter Mann liest eine Zeitung.", "An old man reads a newspaper."),
    ("Drei Männer reparieren ein Dach.", "Three men are fixing a roof."),
    ("Ein Kletterer hängt an einem Seil unter einem Felsvorsprung.", "A climber hangs from a rope."),
    ("Eine Gruppe von Menschen wartet.", "A group of people waits."),
    ("Ein Mädchen isst ein Eis.", "A girl eats ice cream."),
]
OPTIONS = ("--metric", "bleu", "--metric", "chrf", "--max-new-tokens", "20", "--threads", "1", "--parallel", "4")
METHODS = "high,low,uniform:4,pmpd:static:8@1,2@4"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "captions.jsonl"
    rows = [{"prompt": f"Translate from German to English: {de}", "reference": en} for de, en in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def evaluated(data: Path, out: Path, *options: str, methods: str = METHODS) -> dict[str, Any]:
    arguments = ("--methods", methods, "--timed", "0", *OPTIONS, *options, "--out", out, "--json")
    result = run("eval", "--task", data, *arguments)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert found == json.loads((out / RESULTS).read_text(encoding="utf-8"))
    return found


def examples(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / EXAMPLES).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("done")
    return evaluated(data, out, "--timed", "1"), out


def test_scores_are_the_librarys_of_the_answers_that_were_kept(done):
    from sacrebleu import corpus_bleu, corpus_chrf

    found, out = done
    assert [method["name"] for method in found["methods"]] == ["high", "low", "uniform:4", "pmpd:static:8@1,2@4"]
    for method in found["methods"]:
        kept = [line for line in examples(out) if line["method"] == method["name"]]
        assert [line["reference"] for line in kept] == [en for _, en in PAIRS]
        answers, references = [line["answer"] for line in kept], [[line["reference"] for line in kept]]
        for name, library in (("bleu", corpus_bleu), ("chrf", corpus_chrf)):
            score = method["scores"][name]
            assert score["value"] == pytest.approx(library(answers, references).score, abs=1e-9)
            assert score["low"] <= score["value"] <= score["high"]
    high, *others = found["methods"]
    assert high["differences"]["bleu"] == {"value": 0, "low": 0, "high": 0}
    for method in others:
        difference = method["scores"]["bleu"]["value"] - high["scores"]["bleu"]["value"]
        assert method["differences"]["bleu"]["value"] == pytest.approx(difference)


def test_differences_are_from_the_baseline(data, done, tmp_path):
    from sacrebleu import corpus_bleu

    _, out = done
    (tmp_path / STORE).write_bytes((out / STORE).read_bytes())
    found = evaluated(data, tmp_path, "--baseline", "low")
    assert found["baseline"] == "low"
    references = [[en for _, en in PAIRS]]
    scores = {
        name: corpus_bleu([line["answer"] for line in examples(out) if line["method"] == name], references).score
        for name in METHODS.split(",", 3)
    }
    for method in found["methods"]:
        expected = scores[method["name"]] - scores["low"]
        assert method["differences"]["bleu"]["value"] == pytest.approx(expected, abs=1e-9)


def test_bits_are_those_of_the_steps(done):
    found, out = done
    model = bundle.load(bundle.default_bundle())
    bpw = {level.precision: model.bpw(level) for level in model.levels}
    for method in found["methods"]:
        steps = [
            precision
            for line in examples(out)
            if line["method"] == method["name"]
            for precision in [p for p, count in line["precisions"][0] for _ in range(count)][1:]
        ]
        assert method["bits"] == pytest.approx(sum(steps) / len(steps))
        assert method["bpw"] == pytest.approx(sum(bpw[p] for p in steps) / len(steps))
        assert method["steps"] == len(steps) / len(PAIRS)
    pmpd = found["methods"][-1]
    assert pmpd["shares"][2] == {"8": 1.0} and set(pmpd["shares"][3]) == {"2"}


def test_fidelity_and_speed_come_with_it(done):
    found, _ = done
    high, low, four, pmpd = (method["fidelity"] for method in found["methods"])
    assert high["kl"]["value"] < 1e-3 and high["top1"]["value"] > 0.99
    assert low["kl"]["value"] > four["kl"]["value"] > high["kl"]["value"]
    assert 0 < pmpd["steps_after"] < pmpd["steps"] == low["steps"]
    # After the switch it computes as `low` does: of so few sentences, either may be ahead.
    assert pmpd["kl"]["value"] < min(pmpd["kl_after"]["value"], low["kl"]["value"])
    for method in found["methods"]:
        assert method["timing"]["decode_tokens_per_second"] > 0 < method["timing"]["first_token_seconds"]


def test_all_files_are_there(done):
    found, out = done
    for name in ("quality", "timeline"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / f"{name}.svg").read_text(encoding="utf-8")
    page = (out / MARKDOWN).read_text(encoding="utf-8")
    for method in found["methods"]:
        assert f"| {method['name']} | {method['prefill']} | {method['bits']:.2f} |" in page
    assert not list(out.glob("*.partial"))
    facts = found["facts"]
    assert facts["versions"].keys() == {"pmpd-edge", "llama-cpp-python", "sacrebleu"}
    assert facts["bundle"]["fingerprint"] == bundle.load(bundle.default_bundle()).fingerprint
    assert facts["seed"] == 0 and len(facts["data"]["sha256"]) == 64


def test_without_json_it_prints_a_table(data, tmp_path):
    result = run("eval", "--task", data, *OPTIONS, "--methods", "high,low", "--timed", "0", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "BLEU" in result.stdout and "first token" not in result.stdout
    assert "no 16-bit level: the reference is that of 8 bits" in result.stderr
    assert result.stdout.endswith(f"Written: {tmp_path / 'out'}\n")


class Stopped(Exception):
    pass


def test_stopped_anywhere_and_resumed_equals_undisturbed(data, done, tmp_path):
    """Also with a half-written line, as a killed process leaves it."""
    expected, out = done
    rng = random.Random(0)
    model = bundle.load(bundle.default_bundle())
    dataset = tasks.read(tasks.make_task(metrics=("bleu", "chrf"), max_new_tokens=20), data)
    options = Options(methods=tuple(METHODS.split(",", 3)), timed=0, n_threads=1, parallel=4)
    stops = 0
    for _ in range(6):
        left = len(PAIRS) + rng.randint(1, 12)  # after the prompts have been read

        def progress(label: str, fraction: float) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Stopped(label)

        try:
            evaluate(model, dataset, options, tmp_path, progress)
        except Stopped:
            stops += 1
        store = tmp_path / STORE
        if store.exists():
            store.write_bytes(store.read_bytes() + b'{"key": "half')
    assert stops >= 3
    evaluated(data, tmp_path)
    assert examples(tmp_path) == examples(out)
    found = json.loads((tmp_path / RESULTS).read_text(encoding="utf-8"))
    for one, other in zip(found["methods"], expected["methods"], strict=True):
        assert {**one, "timing": None} == {**other, "timing": None}


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
def test_killed_and_resumed_equals_undisturbed(data, done, tmp_path):
    _, out = done
    arguments = ["--task", data, "--methods", METHODS, "--timed", "0", *OPTIONS, "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "pmpd_edge", "eval", *map(str, arguments)]
    for wait in (0.3, 0.6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
        until = time.monotonic() + 60
        while not (tmp_path / "out" / STORE).exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert examples(tmp_path / "out") == examples(out)


def test_parallel_equals_serial(data, done, tmp_path):
    """Up to what evaluating several together changes in the last bits of logits."""
    _, out = done
    evaluated(data, tmp_path, "--parallel", "1")
    pairs = list(zip(examples(out), examples(tmp_path), strict=True))
    differ = [(one["answer"], other["answer"]) for one, other in pairs if one["answer"] != other["answer"]]
    assert len(differ) <= 2, differ


def test_a_second_run_answers_nothing_again(data, done, tmp_path, monkeypatch):
    _, out = done
    (tmp_path / STORE).write_bytes((out / STORE).read_bytes())
    monkeypatch.setattr("pmpd_edge.batch.Batch.run", lambda *_: pytest.fail("it decodes"))
    found = evaluated(data, tmp_path, "--metric", "rougeL", "--seed", "7")
    assert set(found["methods"][0]["scores"]) == {"bleu", "chrf", "rougeL"}


def test_bad_rows_are_counted(data, tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines()[:3]
    path.write_text("\n".join([*lines, "no JSON", '{"prompt": "a", "reference": ""}', '{"prompt": "a"}']))
    found = evaluated(path, tmp_path / "out", methods="high")
    assert found["facts"]["examples"] == 3
    assert [row["reason"] for row in found["bad_rows"]] == [
        "not JSON",
        "an empty reference ({reference})",
        "no field 'reference'",
    ]
    page = (tmp_path / "out" / MARKDOWN).read_text(encoding="utf-8")
    assert f"3 rows could not be used, the first one: {path}, line 4: not JSON" in page


def test_answers_that_were_cut_are_counted(tmp_path):
    """By the limit, and by the context: a prompt may not fit at all."""
    path = tmp_path / "rows.jsonl"
    long = "Ein Hund läuft über die Wiese und ein Mann steht auf der Straße. " * 40
    rows = [{"prompt": prompt, "reference": "A dog."} for prompt in (PAIRS[0][0], long, PAIRS[1][0])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = evaluated(path, tmp_path / "out", "--max-new-tokens", "4", methods="high")
    assert found["methods"][0]["finishes"] == {"length": 2, "context": 1}
    page = (tmp_path / "out" / MARKDOWN).read_text(encoding="utf-8")
    assert "high: 2 of 3 answers were cut at the longest answer" in page
    assert "high: 1 of 3 answers were cut by the context" in page
    kept = examples(tmp_path / "out")
    assert kept[1]["answer"] == "" and kept[1]["finish"] == "context" and "scores" in kept[1]


def test_no_prompt_fits(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Ein Hund. " * 2000, "reference": "A dog."}))
    result = run("eval", "--task", path, *OPTIONS, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "the shortest prompt has" in result.stderr and result.stderr.count("\n") <= 3


def test_several_turns_are_judged_by_the_reference_levels_own_answers(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"turns": [PAIRS[i][0], PAIRS[i + 1][0]]} for i in range(3)] + [{"turns": [PAIRS[5][0]]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = ("--data", path, "--metric", "rougeL", "--max-new-tokens", "12", "--threads", "1", "--timed", "0")
    result = run("eval", "--task", "mt-bench", *common, "--methods", "high,low", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    high, low = found["methods"]
    assert high["scores"]["rougeL"]["value"] == pytest.approx(100)
    assert low["scores"]["rougeL"]["value"] < 100
    kept = examples(tmp_path / "out")
    assert [len(line["precisions"]) for line in kept] == [2, 2] * 3 + [1, 1]
    assert kept[0]["answer"] == kept[0]["reference"] and "\n\n" in kept[0]["answer"]


def test_bertscore_without_an_encoder_is_left_out(data, tmp_path, monkeypatch):
    pytest.importorskip("bert_score", reason="pip install 'pmpd-edge[eval]'")
    options = ("--metric", "bertscore", "--bert-model", str(tmp_path))
    found = evaluated(data, tmp_path / "out", *options, methods="high")
    assert found["left_out"].keys() == {"bertscore"} and "bertscore" not in found["methods"][0]["scores"]
    assert "left out: bertscore" in (tmp_path / "out" / MARKDOWN).read_text(encoding="utf-8")


# DNS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="pip install 'pmpd-edge[convert]'")
    from pmpd_edge.convert import hf

    path = tmp_path_factory.mktemp("source") / "translator.gguf"
    hf.to_gguf(TRANSLATOR, path)
    return path


@pytest.mark.filterwarnings("default")
def test_dns_has_the_bits_of_pmpd(data, source, tmp_path):
    found = evaluated(data, tmp_path, "--source", str(source), methods="low,pmpd:static:8@1,2@4,dns,dns:8")
    _, pmpd, dns, larger = found["methods"]
    assert dns["bpw"] == pytest.approx(pmpd["bpw"], rel=0.01) and larger["bpw"] == pytest.approx(8, rel=0.01)
    model = bundle.load(bundle.default_bundle())
    sparse = dns["bpw"] - model.bpw(model.level(2))
    assert dns["bits"] == pytest.approx(2 + sparse, abs=0.01) and dns["prefill"] == 2
    kl = {method["name"]: method["fidelity"]["kl"]["value"] for method in found["methods"]}
    assert max(kl["dns:8"], kl["dns"]) < kl["low"]
    assert found["facts"]["reference_precision"] == 16
    assert dns["timing"] is None and "of the weights exactly" in dns["note"]
    assert gguf_info.read(tmp_path / "dns.gguf").tokenizer_sha256 == model.tokenizer_sha256


@pytest.mark.filterwarnings("default")
def test_a_budget_that_dns_cannot_meet_is_said(data, source, tmp_path):
    found = evaluated(data, tmp_path, "--source", str(source), methods="high,dns:3")
    assert [method["name"] for method in found["methods"]] == ["high"]
    assert "cannot spend 3 bits" in found["left_out"]["dns:3"]


@pytest.mark.filterwarnings("default")
def test_nothing_that_can_be_had_is_an_error(data, source, tmp_path):
    options = ("--methods", "dns:3", "--source", source, "--kl", "0", "--timed", "0", "--out", tmp_path / "out")
    result = run("eval", "--task", data, *OPTIONS, *options)
    assert result.exit_code == 1 and "nothing to compare: " in result.stderr and "cannot spend 3 bits" in result.stderr


def test_dns_without_16_bits_is_refused_at_once(data, tmp_path):
    result = run("eval", "--task", data, *OPTIONS, "--methods", "high,dns:5", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "--source" in result.stderr
    assert not (tmp_path / "out" / STORE).exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--task", "nothing"], 1, "nothing: No such file"),
        (["--task", "multi30k-fr-en"], 1, "no data set on the Hub"),
        (["--baseline", "dns"], 1, "the baseline 'dns' is not compared"),
        (["--methods", "best"], 1, "no method 'best'"),
        (["--methods", ""], 1, "no methods"),
        (["--metric", "wer"], 2, "'wer' is not one of"),
        (["--parallel", "0"], 2, "0 is not in the range"),
        (["--prompt", "Translate"], 1, "names no field"),
    ],
)
def test_wrong_usage(data, tmp_path, arguments, status, message):
    task = [] if "--task" in arguments else ["--task", str(data)]
    result = run("eval", *task, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == status and message in result.stderr
    assert not (tmp_path / "out").exists()
