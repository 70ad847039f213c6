"""The command line (pmpd_edge/cli.py): options, output, errors and exit statuses."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import ODD, make_bundle, odd_bundle, process, run

from pmpd_edge import __version__, bundle, chat, cli_ui, native, schedule
from pmpd_edge.bundle import ImatrixFile, StaticSchedule, Switch, WeightsFile
from pmpd_edge.calibrate import run as calibration
from pmpd_edge.cli import cli
from pmpd_edge.evaluate import tasks
from pmpd_edge.verbs.options import CACHE_TYPES, PRECISIONS

ROOT = Path(__file__).parent.parent


# The whole


def test_help_imports_nothing_heavy_and_no_verb() -> None:
    code = (
        "import sys; from pmpd_edge.cli import cli\n"
        "for arguments in ([], ['calibrate'], ['chat'], ['convert'], ['info'], ['train-scheduler']):\n"
        "    cli([*arguments, '--help'], standalone_mode=False)\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert "Commands:" in done.stdout
    heavy = {"torch", "transformers", "numpy", "llama_cpp", "huggingface_hub", "jinja2"}
    verbs = {"pmpd_edge.chat", "pmpd_edge.convert", "pmpd_edge.bundle", "pmpd_edge.runner", "pmpd_edge.calibrate"}
    assert "pmpd_edge.cli" in done.stderr.split()
    assert not (heavy | verbs) & set(done.stderr.split())


def test_the_command_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("write_commands", ROOT / "scripts" / "write_commands.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python scripts/write_commands.py"


def test_the_choices_are_those_of_the_packages_below() -> None:
    # They are written out in verbs/ so that --help imports nothing.
    options = {parameter.name: parameter for parameter in cli.commands["chat"].params}
    assert tuple(options["method"].type.choices) == schedule.METHODS  # type: ignore[attr-defined]
    assert {field.name for field in dataclasses.fields(chat.Settings)} <= options.keys()
    assert tuple(map(int, PRECISIONS)) == bundle.PRECISIONS
    options_of_tasks = {parameter.name: parameter for parameter in cli.commands["calibrate"].params}
    assert tuple(options_of_tasks["metric"].type.choices) == tasks.METRICS  # type: ignore[attr-defined]
    assert tuple(options_of_tasks["objective"].type.choices) == calibration.OBJECTIVES  # type: ignore[attr-defined]
    for name in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty"):
        assert options[name].default == getattr(chat.Settings(), name)


def test_version() -> None:
    assert run("--version").output == f"pmpd-edge, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["fly"], "No such command 'fly'"),
        (["chat", "--method", "slow"], "Invalid value for '--method'"),
        (["chat", "--temperature", "-1"], "Invalid value for '--temperature'"),
        (["chat", "--json"], "--json needs --prompt."),
        (["convert", "a"], "Missing argument 'OUT'"),
        (["convert", "a", "b", "--precisions", "8,7"], "give some of 16,8,6,5,4,3,2, each once"),
        (["convert", "a", "b", "--precisions", "4,4"], "give some of 16,8,6,5,4,3,2, each once"),
        (["convert", "a", "b", "--type", "Q4_K"], "write PRECISION=TYPE, like 4=Q4_K"),
        (["convert", "a", "b", "--schedule", "8@x"], "Invalid value for '--schedule'"),
        (["convert", "a", "b", "--schedule", "8@2"], "Invalid value for '--schedule'"),
        (["convert", "a", "b", "--prefill", "7"], "Invalid value for '--prefill'"),
        (["convert", "a", "b", "--tensor-type", "attn_v"], "write REGEX=TYPE, like attn_v=Q6_K"),
        (["convert", "a", "b", "--tensor-type", "=Q6_K"], "write REGEX=TYPE, like attn_v=Q6_K"),
        (["convert", "a", "b", "--tensor-type", "attn_v="], "write REGEX=TYPE, like attn_v=Q6_K"),
        (["convert", "a", "b", "--imatrix", "m", "--no-imatrix"], "--no-imatrix exclude each other"),
        (["convert", "a", "b", "--imatrix", "m", "--calibration-text", "t"], "--no-imatrix exclude each other"),
        (["convert", "a", "b", "--calibration-text", "t", "--no-imatrix"], "--no-imatrix exclude each other"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], reason: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert reason in result.stderr


def test_an_error_is_one_line_and_exits_with_1(tmp_path: Path) -> None:
    done = process("info", tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"Error: {tmp_path}: not a bundle (no pmpd.json): ")
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback_before_and_after_the_verb(tmp_path: Path) -> None:
    for arguments in (["--debug", "info", tmp_path], ["info", tmp_path, "--debug"]):
        done = process(*arguments)
        assert done.returncode == 1
        assert "Traceback" in done.stderr and "BundleError" in done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/x"), "Error: /x: Permission denied\n"),
        (KeyError("x"), "Error: unexpected KeyError ('x'): run again with --debug and report what it says\n"),
        (ValueError("a\nb"), "Error: unexpected ValueError (a b): run again with --debug and report what it says\n"),
    ],
)
def test_no_other_exception_shows_a_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception, line: str) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(bundle, "load", fail)
    result = run("info", ".")
    assert (result.stderr, result.exit_code) == (line, 1)


def test_ctrl_c_ends_quietly_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "load", interrupt)
    result = run("info", ".")
    assert (result.output, result.exit_code) == ("", 130)


def test_ctrl_c_while_a_string_is_evaluated_ends_with_130_as_well(tmp_path: Path) -> None:
    (tmp_path / "interrupting.py").write_text("exec('raise KeyboardInterrupt')\n", encoding="utf-8")
    command = [sys.executable, "-m", "pmpd_edge", "chat", "--prompt", "Ein Hund.", "--scheduler", "interrupting:Any"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 130)


def test_a_reader_that_goes_away_ends_the_program_quietly(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "m")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pmpd_edge", "info", str(made.path)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, encoding="utf-8", timeout=60)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 141)


# info


def test_info_shows_levels_and_schedule(tmp_path: Path) -> None:
    make_bundle(tmp_path / "m")
    assert (
        run("info", tmp_path / "m").output
        == """\
m
  source     org/m@abc
  model      llama, 1.23 M parameters, context 512
  layout     separate
  prefill    8 bits
  predictor  none
  imatrix    none
  hashes     not checked (--verify checks them)
  schedule   8 ━━━━━━━━━━━━━━━━ 4 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
             1                  86                                   256

  precision  type    size   bpw  file
  8          Q8_0  900 kB  8.50  m-q8.gguf
  4          Q4_K  900 kB  4.50  m-q4.gguf
"""
    )


def test_info_adds_up_the_files_of_a_nested_level(tmp_path: Path) -> None:
    make_bundle(tmp_path / "m", layout="nested")
    assert "  8          Q4_K + Q8_0  1.8 MB  13.00  m-q4.gguf + m-q8.gguf\n" in run("info", tmp_path / "m").output


def test_info_json_is_the_manifest(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "m")
    result = run("info", made.path, "--json")
    assert json.loads(result.stdout) == json.loads((made.path / bundle.MANIFEST).read_text())


def test_info_tells_parts_and_importance_matrix(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "m", layout="nested")
    parts = {"m-q4.gguf": {"embeddings": 8.5, "attention": 4.5, "other": 32.0}, "m-q8.gguf": {"attention": 4.25}}
    files = {name: dataclasses.replace(file, bpw_by_class=parts[name]) for name, file in made.files.items()}
    matrix = made.path / "m-imatrix.gguf"
    matrix.touch()
    imatrix = ImatrixFile(matrix.name, bundle.sha256_file(matrix), "text.txt", 12)
    bundle.write(dataclasses.replace(made, files=files, imatrix=imatrix))
    lines = run("info", made.path).output.splitlines()
    assert "  imatrix    text.txt, 12 chunks" in lines
    assert [line.split()[:-1] for line in lines[-3:-1]] == [
        ["precision", "type", "size", "bpw", "embeddings", "attention"],
        ["8", "Q4_K", "+", "Q8_0", "1.8", "MB", "13.00", "8.50", "8.75", "m-q4.gguf", "+"],
    ]


REPORT: dict[str, Any] = {
    "text": {"name": "held_out.txt"},
    "tokens": 512,
    "reference": {"type": "BF16", "bytes": 14_000_000, "perplexity": 5.125},
    "levels": [
        {
            "precision": 4,
            "bytes": 4_500_000,
            "bpw": 4.5,
            "perplexity": 5.25,
            "kl": 0.01234,
            "kl_error": 0.0005,
            "top1": 0.9876,
            "prefill_tokens_per_second": 100.0,
            "decode_tokens_per_second": 20.0,
        }
    ],
}


def test_info_shows_the_report(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "m")
    (made.path / "report.json").write_text(json.dumps(REPORT))
    assert run("info", made.path).output.endswith(
        """
  on 512 tokens of held_out.txt, against BF16
  precision    size   bpw  perplexity               KL  top-1  prefill t/s  decode t/s
  BF16        14 MB              5.12
  4          4.5 MB  4.50        5.25  0.0123 ± 0.0005  98.8%        100.0        20.0
"""
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        json.dumps({**REPORT, "levels": 3}).encode(),
        json.dumps({**REPORT, "levels": [3]}).encode(),
        json.dumps({**REPORT, "levels": [{}]}).encode(),
        json.dumps({**REPORT, "reference": {"type": "BF16", "bytes": 10**400, "perplexity": 5.1}}).encode(),
        json.dumps({**REPORT, "reference": {"type": 16, "bytes": 1, "perplexity": 5.1}}).encode(),
    ],
)
def test_a_damaged_report_breaks_nothing(tmp_path: Path, content: bytes) -> None:
    made = make_bundle(tmp_path / "m")
    whole = run("info", made.path).output
    (made.path / "report.json").write_bytes(content)
    result = run("info", made.path)
    assert (result.output, result.exit_code) == (f"{whole}\n  report.json: damaged\n", 0)


def test_nothing_in_a_bundle_moves_the_cursor(tmp_path: Path) -> None:
    made = odd_bundle(tmp_path / "m")
    evil = "\x1b[2J\r"
    (fallback, *_) = made.files["m-q4.gguf"].fallbacks
    odd = dataclasses.replace(made.files["m-q4.gguf"], fallbacks=(dataclasses.replace(fallback, type=evil),))
    source, files = {"repo": evil, "revision": evil}, {**made.files, "m-q4.gguf": odd}
    bundle.write(dataclasses.replace(made, source=source, files=files))
    report = {**REPORT, "text": {"name": evil}, "reference": {**REPORT["reference"], "type": evil}}
    (made.path / "report.json").write_text(
        json.dumps({**report, "levels": [{**REPORT["levels"][0], "precision": evil}]})
    )
    output = run("info", made.path).output
    assert not set(output) & set(evil[0] + evil[-1]) and output.count("[2J") == 7


def test_info_verify(tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle.default_bundle(), tmp_path / "m"))
    assert "hashes     all match\n" in run("info", path, "--verify").output
    file = path / "translator-7m-q4.gguf"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    result = run("info", path, "--verify")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {file}: damaged (its SHA-256 is not")
    assert run("info", path).exit_code == 0


def test_info_without_a_bundle_shows_the_model_of_the_package() -> None:
    assert run("info").output.startswith("translator-7m\n")


@pytest.mark.parametrize(
    ("switches", "end", "line"),
    [
        ([(1, 4)], 10, "4 " + "━" * 53 + "\n1" + " " * 55 + "10"),
        ([(1, 8), (2, 4), (3, 2)], 1000, "8 ━ 4 ━ 2 " + "━" * 53 + "\n1  2  3" + " " * 55 + "1000"),
        ([(1, 8), (300, 4)], 256, None),
    ],
)
def test_a_schedule_is_drawn_to_scale_with_room_for_every_step(
    switches: list[tuple[int, int]], end: int, line: str | None
) -> None:
    drawn = cli_ui.schedule_line(StaticSchedule(tuple(Switch(*switch) for switch in switches), end))
    bar, steps = drawn.split("\n")
    for step, precision in switches:
        assert bar[steps.split().index(str(step)) and steps.index(f" {step}") + 1] == str(precision)
    assert line is None or len(bar) < len(line)


def test_info_shows_what_is_not_as_it_seems(tmp_path: Path) -> None:
    made = odd_bundle(tmp_path / "m")
    assert run("info", made.path).output.splitlines()[-4:] == ["", *(f"  {line}" for line in ODD)]
    listed = json.loads(run("info", made.path, "--json").stdout)["files"]["m-q4.gguf"]["fallbacks"]
    assert listed[1] == {"type": "F16", "tensors": ["output.weight"]}


@pytest.mark.parametrize(("bpw", "words"), [(8.2, None), (8.21, "0.29 fewer"), (9.0, "0.50 more")])
def test_levels_of_almost_one_size_are_told(tmp_path: Path, bpw: float, words: str | None) -> None:
    made = make_bundle(tmp_path / "m")
    made = dataclasses.replace(made, files={**made.files, "m-q4.gguf": WeightsFile("Q4_K", 1, "", bpw)})
    told = cli_ui.notes(made)
    assert [words in line for line in told] == [True] if words else told == []


# Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_progress_says_nothing_for_two_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with cli_ui.Progress() as progress:
        clock.now += 1.9
        progress("Writing", 0.9)
    assert capsys.readouterr().err == ""


def test_progress_draws_label_share_and_time_left_on_a_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with cli_ui.Progress() as progress:
        clock.now += 30
        progress("Writing", 0.25)
        progress("Writing", 0.26)  # too early to draw again
    assert capsys.readouterr().err == f"\r\x1b[K{'Writing':<32} {'━' * 6:<24}  25%, 1:30 left\r\x1b[K"


def test_progress_in_a_pipe_is_a_line_for_every_label(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with cli_ui.Progress() as progress:
        clock.now += 3
        for label in ("Reading", "Reading", "Writing"):
            progress(label, 0.5)
    assert capsys.readouterr().err == "Reading ...\nWriting ...\n"


def test_a_note_leaves_the_bar_alone(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    with cli_ui.Progress() as progress:
        progress.note("first")
        clock.now += 3
        progress("Writing", 0.5)
        progress.note("second")
    first, bar = capsys.readouterr().err.split("\n", 1)
    assert first == "first" and bar.endswith("\r\x1b[Ksecond\n\r\x1b[K")


# chat, with the model of the package


class TestChat:
    def test_json(self) -> None:
        done = process("chat", "--threads", "1", "--prompt", "Ein Mann geht im Park.", "--json", "--high-steps", "2")
        document = json.loads(done.stdout)
        assert set(document) == {"text", "tokens", "stats"} and done.returncode == 0
        assert "".join(token["text"] for token in document["tokens"]) == document["text"] != ""
        assert [token["precision"] for token in document["tokens"]][:4] == [8, 8, 8, 4]
        assert all(set(token) == {"id", "text", "precision"} for token in document["tokens"])
        assert document["stats"]["switches"][0] == {"step": 3, "precision": 4}
        assert document["stats"]["decode_steps"] == len(document["tokens"]) - 1
        assert done.stderr == ""

    def test_a_precision_that_does_not_exist(self) -> None:
        result = run("chat", "--scheduler", "fixed:5", "--prompt", "Hallo")
        assert result.exit_code == 1
        assert (
            result.stderr.startswith("Error: ") and "no level of precision 5: choose one of 8, 4, 2\n" in result.stderr
        )

    def test_a_prompt_longer_than_the_context(self) -> None:
        result = run("chat", "--threads", "1", "--prompt", "Hallo " * 600)
        assert result.exit_code == 1 and result.stderr.count("\n") == 1
        assert "does not fit: the context has 512, of which" in result.stderr

    def test_an_answer_that_reaches_the_end_of_the_context_stops_there(self) -> None:
        options = ["--temperature", "1000000", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", "2"]
        result = run(
            "chat", "--ctx-size", "256", "--threads", "1", "--prompt", "Hallo", "--max-new-tokens", "300", *options
        )
        assert result.exit_code == 0, result.output
        assert result.stderr.endswith(" · the context is full\n")

    @pytest.mark.parametrize("size", ["100", "300"])
    def test_any_context_size_works(self, size: str) -> None:
        result = run("chat", "--ctx-size", size, "--threads", "1", "--prompt", "Ein Hund.", "--max-new-tokens", "5")
        assert result.exit_code == 0, result.output

    def test_a_manifest_of_another_version(self, tmp_path: Path) -> None:
        made = make_bundle(tmp_path / "m")
        manifest = made.path / bundle.MANIFEST
        manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
        result = run("chat", made.path, "--prompt", "Hallo")
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {manifest}: format version 2, this program reads 1: ")

    def test_a_missing_bundle(self, tmp_path: Path) -> None:
        result = run("chat", tmp_path / "none", "--prompt", "Hallo")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"Error: {tmp_path / 'none'}: no such bundle: ")

    def test_a_file_that_is_no_model(self, tmp_path: Path) -> None:
        made = make_bundle(tmp_path / "m")
        result = run("chat", made.path, "--prompt", "Hallo")
        assert result.exit_code == 1 and result.stderr.count("\n") == 1
        assert result.stderr.startswith(f"Error: {made.path / 'm-q8.gguf'}: ")

    def test_an_empty_prompt(self) -> None:
        assert run("chat", "--prompt", " ").stderr == "Error: an empty prompt: give a text to answer\n"

    @pytest.mark.parametrize("kind", ["q8_0", "f32"])
    def test_the_cache_takes_other_types(self, kind: str) -> None:
        result = run("chat", "--threads", "1", "--cache-type-k", kind, "--cache-type-v", kind, "--prompt", "Ein Hund.")
        assert result.exit_code == 0 and result.stdout.startswith("A dog")

    def test_a_quantised_v_cache_without_flash_attention_is_one_error(self) -> None:
        result = run("chat", "--no-flash-attn", "--cache-type-v", "q8_0", "--prompt", "Ein Hund.")
        assert result.exit_code == 1 and "flash_attn" in result.stderr and result.stderr.count("\n") == 1

    def test_verbose_shows_what_the_library_logs(self) -> None:
        done = process("chat", "--threads", "1", "--verbose", "--prompt", "Ein Hund.")
        assert "llama_context" in done.stderr and done.stdout.startswith("A dog")

    def test_every_cache_type_is_known_to_the_library(self) -> None:
        llama_cpp = native.load()
        assert all(hasattr(llama_cpp, f"GGML_TYPE_{name.upper()}") for name in CACHE_TYPES)


@pytest.mark.parametrize("option", ["--temperature", "--top-p", "--min-p", "--repeat-penalty"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_are_finite(option: str, value: str) -> None:
    result = run("chat", "--prompt", "hi", option, value)
    assert result.exit_code == 2 and option in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="POSIX streams and signals are needed")
class TestSurroundings:
    @pytest.mark.parametrize("closed", [0, 1, 2])
    def test_closed_standard_streams(self, closed: int) -> None:
        run = (
            f'import os, sys; os.close({closed}); os.execv(sys.executable, [sys.executable, "-m", "pmpd_edge", "info"])'
        )
        done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    def test_sigterm_ends_with_its_status(self) -> None:
        command = [sys.executable, "-m", "pmpd_edge", "chat", "--threads", "1"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin and process.stdout
        process.stdin.write("Zwei Hunde.\n")
        process.stdin.flush()
        assert process.stdout.readline()  # it is at work
        process.terminate()
        assert process.wait(30) == 143
        process.stdin.close()
        process.stdout.close()
