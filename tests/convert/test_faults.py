"""What can go wrong: one line says what, and nothing half-written is left or taken for a bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import TRANSLATOR

from pmpd_edge.convert import convert, hf, staging
from pmpd_edge.errors import ConvertError


@pytest.fixture(scope="module")
def torch() -> None:
    pytest.importorskip("torch", reason="torch is needed: pip install 'pmpd-edge[convert]'")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the translator that may be damaged."""
    return Path(shutil.copytree(TRANSLATOR, tmp_path / "model"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


def check_refused(source: Path, out: Path, *words: str) -> None:
    """The conversion fails with one line that has these words, and leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(ConvertError) as caught:
        convert(source, out, threads=1)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert sorted(out.parent.iterdir()) == before


def edit_config(source: Path, old: str, new: str) -> None:
    config = source / "config.json"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


def test_source_that_is_not_there(source: Path, out: Path) -> None:
    check_refused(source / "nowhere", out, "nowhere", "no such directory")


def test_source_that_is_a_file(source: Path, out: Path) -> None:
    check_refused(source / "config.json", out, "not a directory")


def test_missing_config(source: Path, out: Path) -> None:
    (source / "config.json").unlink()
    check_refused(source, out, "no config.json")


def test_damaged_config(source: Path, out: Path) -> None:
    (source / "config.json").write_text('{"architectures": [')
    check_refused(source, out, "config.json", "not readable")


def test_missing_weights(source: Path, out: Path) -> None:
    (source / "model.safetensors").unlink()
    check_refused(source, out, "no weights")


def test_missing_part_of_the_weights(source: Path, out: Path) -> None:
    index = '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
    (source / "model.safetensors.index.json").write_text(index)
    check_refused(source, out, "model-2.safetensors: missing")


@pytest.mark.parametrize("size", [4, 5000, 9_000_000])
def test_truncated_safetensors(source: Path, out: Path, size: int) -> None:
    os.truncate(source / "model.safetensors", size)
    check_refused(source, out, "model.safetensors", "cut short", str(size))


def test_git_lfs_pointer(source: Path, out: Path) -> None:
    (source / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    check_refused(source, out, "git lfs pull")


def test_out_that_exists(out: Path) -> None:
    out.mkdir()
    (out / "keep.txt").write_text("mine")
    check_refused(TRANSLATOR, out, "exists already")
    assert (out / "keep.txt").read_text() == "mine"


def test_out_that_is_not_a_bundle_is_not_overwritten(out: Path) -> None:
    out.mkdir()
    (out / "keep.txt").write_text("mine")
    with pytest.raises(ConvertError, match="not a bundle"):
        convert(TRANSLATOR, out, overwrite=True)
    assert (out / "keep.txt").read_text() == "mine"


def test_out_that_is_the_source_or_around_it(source: Path) -> None:
    check_refused(source, source, "inside of the model")
    check_refused(source, source.parent, "inside of the model")


def test_out_without_a_parent(source: Path, out: Path) -> None:
    with pytest.raises(ConvertError, match="no such directory"):
        convert(source, out / "deeper")
    assert not out.exists()


def test_not_enough_space(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(1 << 40, 1 << 40, 10_000_000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check_refused(TRANSLATOR, out, "10.0 MB are free", "needs 3")


def test_unknown_architecture_and_the_closest_known_ones(torch: None, source: Path, out: Path) -> None:
    edit_config(source, "LlamaForCausalLM", "Qwen9ForCausalLM")
    check_refused(source, out, "architecture Qwen9ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def test_unlike_architectures_are_not_suggested() -> None:
    assert str(hf._explain_architecture(Path("m"), "Zzz")).endswith("the architecture Zzz")
    assert {"LlamaForCausalLM", "StableLmForCausalLM", "PhiForCausalLM", "GPT2LMHeadModel"} <= {*hf.architectures()}


def test_layer_that_the_checkpoint_does_not_have(source: Path, out: Path) -> None:
    edit_config(source, '"num_hidden_layers": 8', '"num_hidden_layers": 9')
    check_refused(source, out, str(source), "tensor model.layers.8.", "9 layers")


def drop_tensor(path: Path, name: str) -> None:
    """Take a tensor out of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header, body = {}, b""
    for other, entry in json.loads(data[8:start]).items():
        if other not in (name, "__metadata__"):
            first, last = entry["data_offsets"]
            header[other] = {**entry, "data_offsets": [len(body), len(body) + last - first]}
            body += data[start + first : start + last]
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)


def test_tensor_that_the_index_lists_and_the_file_lacks(source: Path, out: Path) -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    index = {"weight_map": {name: "model.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    drop_tensor(source / "model.safetensors", name)
    check_refused(source, out, f"tensor {name} is missing")


def test_tensor_that_is_missing_from_a_layer(torch: None, source: Path, out: Path) -> None:
    drop_tensor(source / "model.safetensors", "model.layers.3.mlp.up_proj.weight")
    check_refused(source, out, str(source), "blk.3.ffn_up.weight")


def test_missing_torch(torch: None, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    monkeypatch.setenv("PYTHONPATH", str(hidden), prepend=os.pathsep if "PYTHONPATH" in os.environ else None)
    check_refused(TRANSLATOR, out, "pip install 'pmpd-edge[convert]'")


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of some kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# Full in the 16-bit file, behind it, in a level.
@pytest.mark.parametrize("small_disk", [8000, 14500, 18000], indirect=True)
def test_disk_that_becomes_full(torch: None, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "check_space", lambda directory, needed: None)
    check_refused(TRANSLATOR, small_disk / "out", "No space left")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_a_model_brings_is_not_run_unasked(source: Path, out: Path, name: str) -> None:
    edited = source / name
    edited.write_text(edited.read_text().replace("{", '{"auto_map": {"AutoTokenizer": "evil.Tokenizer"},', 1))
    check_refused(source, out, name, "--trust-remote-code")
