"""The command line's `convert` (pmpd_edge/cli.py): what it passes on, what it prints, how it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command import ODD, make_bundle, odd_bundle, run

from pmpd_edge import bundle, cli_ui
from pmpd_edge.bench.random_model import write_llama
from pmpd_edge.bundle import Bundle, StaticSchedule, Switch
from pmpd_edge.convert import TensorType
from pmpd_edge.errors import ConvertError


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts a converter in place that notes what it is asked for and makes a bundle without a model."""
    calls: list[dict[str, Any]] = []

    def convert(source: Path, out: Path, **options: Any) -> Bundle:
        calls.append({"source": source, "out": out, **options})
        options["progress"]("Writing", 0.5)
        return make_bundle(out)

    module = ModuleType("pmpd_edge.convert")
    module.convert, module.TensorType = convert, TensorType  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pmpd_edge.convert", module)
    return calls


def test_convert_passes_its_options_on_and_shows_a_table(tmp_path: Path, converted: list[dict[str, Any]]) -> None:
    options = "--precisions 8,4 --layout nested --type 4=q4_0 --schedule 8@1,4@9 --max-new-tokens 30".split()  # noqa: SIM905
    options += "--name other --prefill 4 --pre-tokenizer qwen2 --threads 3 --overwrite".split()  # noqa: SIM905
    options += ["--tensor-type", "4:ffn_(up|down)=q5_k", "--tensor-type", "9:a=b=Q6_K", "--embedding-type", "q6_k"]
    options += "--calibration-text text.txt --report-text other.txt".split()  # noqa: SIM905
    result = run("convert", "org/source@v1", tmp_path / "m", *options)
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.splitlines()[0].split() == ["precision", "type", "size", "bpw", "file"]
    call = converted[0]
    assert callable(call.pop("progress")) and callable(call.pop("note"))
    assert call == {
        "source": "org/source@v1",
        "out": tmp_path / "m",
        "precisions": (8, 4),
        "layout": "nested",
        "types": {4: "Q4_0"},
        "tensor_types": [TensorType("ffn_(up|down)", "Q5_K", 4), TensorType("9:a=b", "Q6_K")],
        "shared_type": "Q6_K",
        "imatrix_file": None,
        "calibration_text": Path("text.txt"),
        "use_imatrix": True,
        "with_report": True,
        "report_text": Path("other.txt"),
        "schedule": StaticSchedule((Switch(1, 8), Switch(9, 4)), 30),
        "max_new_tokens": 30,
        "prefill": 4,
        "name": "other",
        "pre_tokenizer": "qwen2",
        "threads": 3,
        "overwrite": True,
        "show_download": True,
        "trust_remote_code": False,
    }


def test_convert_without_options_leaves_the_choice_to_the_converter(
    tmp_path: Path, converted: list[dict[str, Any]]
) -> None:
    run("convert", "source", tmp_path / "m", "--quiet")
    assert [converted[0][key] for key in ("prefill", "name", "pre_tokenizer", "types", "schedule")] == [None] * 5
    assert [converted[0][key] for key in ("imatrix_file", "calibration_text", "report_text")] == [None] * 3
    assert [converted[0][key] for key in ("show_download", "with_report", "use_imatrix")] == [False, False, True]
    assert (converted[0]["tensor_types"], converted[0]["shared_type"]) == ([], "Q8_0")


def test_convert_with_a_matrix_or_with_none(tmp_path: Path, converted: list[dict[str, Any]]) -> None:
    run("convert", "source", tmp_path / "m", "--imatrix", "matrix.gguf", "--report")
    run("convert", "source", tmp_path / "n", "--no-imatrix")
    asked = [tuple(call[key] for key in ("imatrix_file", "use_imatrix", "with_report")) for call in converted]
    assert asked == [(Path("matrix.gguf"), True, True), (None, False, False)]


def test_convert_shows_what_was_measured(
    tmp_path: Path, converted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_ui, "report", lambda made: f"measured: {made.name}")
    assert run("convert", "source", tmp_path / "m").output.endswith("m-q4.gguf\n\nmeasured: m\n")
    assert run("convert", "source", tmp_path / "n", "--quiet").output == ""


def test_convert_tells_what_is_not_as_it_seems_even_if_quiet(
    tmp_path: Path, converted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(source: str, out: Path, **options: Any) -> Bundle:
        options["note"]("token ids differ")
        return odd_bundle(out)

    monkeypatch.setattr(sys.modules["pmpd_edge.convert"], "convert", convert)
    result = run("convert", "source", tmp_path / "m", "--quiet")
    assert result.stdout == ""
    assert result.stderr.splitlines() == ["token ids differ", *ODD]


def test_convert_json_and_quiet(tmp_path: Path, converted: list[dict[str, Any]]) -> None:
    result = run("convert", "source", tmp_path / "m", "--json")
    assert json.loads(result.output) == json.loads((tmp_path / "m" / bundle.MANIFEST).read_text())
    assert run("convert", "source", tmp_path / "n", "--quiet").output == ""


def test_the_manifest_of_a_conversion(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "model-f32.gguf", layers=1)
    options = ["--tensor-type", "4:attn_v=Q6_K", "--embedding-type", "q6_k", "--no-imatrix", "--threads", "1"]
    result = run("convert", source, tmp_path / "m", *options, "--json")
    document = json.loads(result.stdout)
    assert document["layout"] == "separate" and "imatrix" not in document
    assert {name: file.get("overrides") for name, file in document["files"].items()} == {
        "model-q8.gguf": None,
        "model-q4.gguf": [{"tensors": "attn_v", "type": "Q6_K"}],
    }
    result = run("convert", source, tmp_path / "n", "--tensor-type", "attn_x=Q6_K", "--no-imatrix")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: 'attn_x' for Q6_K matches no matrix of the layers: ")


def test_convert_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, converted: list[dict[str, Any]]) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConvertError("source: no config.json", "give the directory of a model")

    monkeypatch.setattr(sys.modules["pmpd_edge.convert"], "convert", fail)
    result = run("convert", "source", "out")
    assert (result.stderr, result.exit_code) == ("Error: source: no config.json: give the directory of a model\n", 1)


def test_convert_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(self: Any, name: str, *_: Any) -> None:
        if name == "pmpd_edge.convert":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.delitem(sys.modules, "pmpd_edge.convert", raising=False)
    monkeypatch.setattr(sys, "meta_path", [type("Finder", (), {"find_spec": find_spec})(), *sys.meta_path])
    result = run("convert", "source", "out")
    assert result.stderr == "Error: converting needs torch: pip install 'pmpd-edge[convert]'\n"
