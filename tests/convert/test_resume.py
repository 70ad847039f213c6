"""Conversions that are interrupted, and those that go on from what they left: the same bytes as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_llama

from pmpd_edge import bundle
from pmpd_edge.bench.random_model import write_llama
from pmpd_edge.convert import TensorType, convert
from pmpd_edge.errors import BundleError, ConvertError

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers and torch are not ours
POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX signals are needed")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL] if os.name == "posix" else []

SHAPE: dict[str, Any] = {"hidden": 64, "layers": 1, "heads": 2, "kv_heads": 1, "ff": 256}
PRECISIONS = (16, 8, 4, 2)

# Stays in the midst of a stage, where one is named.
_CONVERT = """
import json, sys, time
from pmpd_edge.convert import convert

source, out, held, options = sys.argv[1:]
labels = []

def progress(label, fraction):
    if held and label.startswith(held) and label in labels:
        print("held", flush=True)
        time.sleep(3600)
    if label not in labels:
        print(label, flush=True)
    labels.append(label)

def note(text):
    print(text, file=sys.stderr)

convert(source, out, threads=1, progress=progress, note=note, **json.loads(options))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face model of some hundred kB."""
    pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")
    return tiny_llama(tmp_path_factory.mktemp("checkpoint") / "tiny", tie=True, **SHAPE)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of some hundred kB: converts without torch, which takes seconds to start."""
    return write_llama(tmp_path_factory.mktemp("gguf") / "tiny-f16.gguf", dtype=np.float16, **SHAPE)


@pytest.fixture(scope="module")
def undisturbed(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What an undisturbed conversion of the GGUF file makes, by the layout."""
    made: dict[str, Path] = {}

    def make(layout: str) -> Path:
        if layout not in made:
            out = tmp_path_factory.mktemp("undisturbed") / "out"
            made[layout] = convert(gguf, out, precisions=PRECISIONS, layout=layout, threads=1).path
        return made[layout]

    return make


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


def partial(out: Path) -> Path:
    return out.with_name("out.partial")


def start(source: Path, out: Path, held: str = "", **options: Any) -> subprocess.Popen[str]:
    """A conversion in another process."""
    arguments = [str(source), str(out), held, json.dumps({"precisions": PRECISIONS, **options})]
    return run_python(_CONVERT, arguments, out.parent)


def run_python(code: str, arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    # The installed package, not the sources that may lie here; temporary files where pytest clears them up.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "TMPDIR": str(folder.parent)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], **pipes, text=True, env=environment, cwd=folder)


def start_until(stage: str, source: Path, out: Path, **options: Any) -> subprocess.Popen[str]:
    """A conversion in another process, which stays in the midst of a stage."""
    process = start(source, out, stage, **options)
    assert process.stdout
    if "held\n" not in iter(process.stdout.readline, ""):
        raise AssertionError(f"never came to {stage}: {process.communicate()[1]}")
    return process


def interrupt(process: subprocess.Popen[str], number: int) -> str:
    """Send a signal and wait for the end; returns what went to standard error."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode
    return errors


def running(partial: Path) -> list[str]:
    """The command lines that name a path, of all processes (Linux)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(partial) in line:
            found.append(line)
    return found


def check_all_end(partial: Path) -> None:
    deadline = time.monotonic() + 60
    while running(partial) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(partial) == []


def check_same(out: Path, undisturbed: Path) -> None:
    """Two bundles are equal: manifests with the hashes of all files, the files themselves, and nothing besides."""
    made = bundle.load(out)
    made.verify()
    assert bundle.to_document(made) == bundle.to_document(bundle.load(undisturbed))
    assert names(out) == names(undisturbed)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@POSIX
def test_ctrl_c_in_the_16_bit_file_leaves_nothing(checkpoint: Path, out: Path) -> None:
    errors = interrupt(start_until("16 bits", checkpoint, out), signal.SIGINT)
    assert "KeyboardInterrupt" in errors
    check_all_end(partial(out))
    assert names(out.parent) == set()


@POSIX
@pytest.mark.parametrize(
    ("stage", "finished"),
    [
        ("Importance matrix", ["tiny-16.gguf"]),
        ("2 bits", ["tiny-16.gguf", "tiny-imatrix.gguf"]),
        ("8 bits", ["tiny-16.gguf", "tiny-imatrix.gguf", "tiny-q2.gguf", "tiny-q4.gguf"]),
    ],
)
def test_ctrl_c_leaves_finished_files_and_no_processes(gguf: Path, out: Path, stage: str, finished: list[str]) -> None:
    errors = interrupt(start_until(stage, gguf, out), signal.SIGINT)
    assert "KeyboardInterrupt" in errors
    check_all_end(partial(out))
    assert names(partial(out)) == {*finished, "keys.json"}
    assert names(out.parent) == {"out.partial"}


@POSIX
@pytest.mark.parametrize("layout", ["separate", "nested"])
@pytest.mark.parametrize("number", SIGNALS[1:])
def test_killed_conversion_is_not_taken_for_a_bundle_and_the_next_one_goes_on(
    gguf: Path, out: Path, undisturbed: Callable[[str], Path], layout: str, number: int
) -> None:
    interrupt(start_until("4 bits", gguf, out, layout=layout), number)
    assert not out.exists()
    with pytest.raises(BundleError):
        bundle.load(partial(out))
    check_all_end(partial(out))

    notes: list[str] = []
    convert(gguf, out, precisions=PRECISIONS, layout=layout, threads=1, note=notes.append)
    assert notes == [f"tiny-{part}.gguf: finished by an earlier run" for part in ("16", "imatrix", "q2")]
    check_same(out, undisturbed(layout))
    assert names(out.parent) == {"out"}


_RUN_PROGRAM = """
import sys
from pmpd_edge.convert import child

program = "import time; print('runs', flush=True); time.sleep(3600)"
child.run_program([sys.executable, "-c", program, sys.argv[1]], lambda line: print(line, flush=True))
"""


@POSIX
@pytest.mark.parametrize("number", SIGNALS)
def test_program_ends_with_the_conversion_that_started_it(tmp_path: Path, number: int) -> None:
    mark = tmp_path / "mark"
    process = run_python(_RUN_PROGRAM, [str(mark)], tmp_path)
    assert process.stdout and process.stdout.readline() == "runs\n"
    interrupt(process, number)
    check_all_end(mark)


@POSIX
def test_second_conversion_to_the_same_place_is_refused(gguf: Path, out: Path) -> None:
    process = start_until("4 bits", gguf, out)
    before = names(partial(out))
    with pytest.raises(ConvertError) as caught:
        convert(gguf, out, threads=1)
    assert "another conversion is writing there" in str(caught.value) and "\n" not in str(caught.value)
    assert names(partial(out)) == before
    interrupt(process, signal.SIGKILL)


def convert_until(stage: str, source: Path, out: Path, options: Mapping[str, Any]) -> None:
    """A conversion that is interrupted at the beginning of a stage."""

    def progress(label: str, fraction: float) -> None:
        if label.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, out, precisions=PRECISIONS, threads=1, progress=progress, **options)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two calibration texts, and the first by another name."""
    folder = tmp_path_factory.mktemp("texts")
    for name, word in {"one": "house", "two": "river", "like one": "house"}.items():
        (folder / name).write_text(f"There was a {word} that nobody had seen. " * 400)
    return folder


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        pytest.param({"types": {4: "Q4_0"}}, ["16", "imatrix", "q2"], id="type"),
        pytest.param({"tensor_types": [TensorType("ffn_down", "Q6_K", 4)]}, ["16", "imatrix", "q2"], id="tensor type"),
        pytest.param({"shared_type": "F16"}, ["16", "imatrix"], id="shared type"),
        pytest.param({"layout": "nested"}, ["16", "imatrix", "q2"], id="layout"),
        pytest.param({"calibration_text": "two"}, ["16"], id="calibration text"),
        pytest.param({"calibration_text": "like one"}, ["16"], id="name of the calibration text"),
        pytest.param({"calibration_text": None, "use_imatrix": False}, ["16"], id="no importance matrix"),
        pytest.param({"types": {16: "BF16"}}, [], id="type of 16 bits"),
    ],
)
def test_only_what_would_be_the_same_is_taken(
    gguf: Path, out: Path, tmp_path: Path, texts: Path, changed: dict[str, Any], taken: list[str]
) -> None:
    options: dict[str, Any] = {"calibration_text": "one", **changed}
    options["calibration_text"] = options["calibration_text"] and texts / options["calibration_text"]
    convert_until("8 bits", gguf, out, {"calibration_text": texts / "one"})
    notes: list[str] = []
    convert(gguf, out, precisions=PRECISIONS, threads=1, note=notes.append, **options)
    assert notes == [f"tiny-{part}.gguf: finished by an earlier run" for part in taken]
    check_same(out, convert(gguf, tmp_path / "undisturbed", precisions=PRECISIONS, threads=1, **options).path)


def test_nothing_is_taken_of_a_model_that_has_changed(gguf: Path, out: Path, tmp_path: Path, texts: Path) -> None:
    source = Path(shutil.copy(gguf, tmp_path / gguf.name))
    options: dict[str, Any] = {"calibration_text": texts / "one"}
    convert_until("8 bits", source, out, options)
    write_llama(source, dtype=np.float16, seed=1, **SHAPE)
    notes: list[str] = []
    convert(source, out, precisions=PRECISIONS, threads=1, note=notes.append, **options)
    assert notes == []
    check_same(out, convert(source, tmp_path / "undisturbed", precisions=PRECISIONS, threads=1, **options).path)


@POSIX
@pytest.mark.timeout(1800)
def test_interrupted_50_times_at_random_moments(checkpoint: Path, out: Path, tmp_path: Path) -> None:
    """Moments are drawn over the time to the run's end or over that to its next file's, so that all stages have some.

    Where a run completes before its moment, the next one starts from nothing. What a killed run has started may still
    be ending when the next one begins.
    """
    precisions = (8, 4, 2)
    (tmp_path / "elsewhere").mkdir()
    undisturbed = tmp_path / "elsewhere" / "out"
    began = time.monotonic()
    process = start(checkpoint, undisturbed, precisions=precisions)
    assert process.stdout
    times = [time.monotonic() - began for _ in process.stdout]  # when checking began, each of five files, and the end
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(times) == 7

    drawn = random.Random(0)
    interruptions = 0
    while interruptions < 50:
        number = drawn.choice([*SIGNALS, signal.SIGKILL])
        finished = len([*partial(out).glob("*.gguf")])
        saved = times[finished + 1] - times[1]
        longest = drawn.choice([times[6] - saved, 1.3 * (times[min(finished + 2, 6)] - saved)])
        process = start(checkpoint, out, precisions=precisions)
        try:
            _, errors = process.communicate(timeout=drawn.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            _, errors = process.communicate()
        if process.returncode:
            assert process.returncode == -number or "KeyboardInterrupt" in errors, errors
            interruptions += 1
        else:
            assert out.exists()
        if out.exists():
            check_same(out, undisturbed)
            shutil.rmtree(out)

    process = start(checkpoint, out, precisions=precisions)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    check_same(out, undisturbed)
    check_all_end(partial(out))
    assert names(out.parent) == names(undisturbed.parent) == {"out"}
