"""Manifests: what is read is what was written, and whatever is wrong is named in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pmpd_edge import Pmpd, bundle
from pmpd_edge.bundle import Bundle, Fallback, ImatrixFile
from pmpd_edge.errors import BundleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(bundle.default_bundle(), tmp_path / "bundle")


def edit(folder: Path, change: Any) -> None:
    path = folder / "pmpd.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_the_default_bundle_is_whole():
    loaded = bundle.load(bundle.default_bundle())
    loaded.verify()
    assert loaded.precisions == (8, 4, 2)
    bpw = [loaded.bpw(level) for level in loaded.levels]
    assert bpw == sorted(bpw, reverse=True)


def test_written_and_read_again(folder):
    loaded = bundle.load(folder)
    before = (folder / "pmpd.json").read_text()
    bundle.write(loaded)
    assert bundle.load(folder) == loaded
    assert json.loads(before) == bundle.to_document(loaded)
    assert not list(folder.glob("*.partial"))


def test_fallbacks_are_optional_and_kept(folder):
    loaded = bundle.load(folder)
    assert "fallbacks" not in (folder / "pmpd.json").read_text()
    name, file = next(iter(loaded.files.items()))
    assert file.fallbacks == ()
    fallbacks = (Fallback("Q5_0", ("blk.0.attn_q.weight", "blk.1.attn_q.weight")), Fallback("F16", ("output.weight",)))
    changed = replace(loaded, files={**loaded.files, name: replace(file, fallbacks=fallbacks)})
    bundle.write(changed)
    assert bundle.load(folder) == changed
    assert changed.fingerprint == loaded.fingerprint


@pytest.mark.parametrize("wrong", [3, [3], [{"type": "Q5_0"}], [{"tensors": ["a"]}], {"a": 1}])
def test_damaged_fallbacks_are_refused(folder, wrong):
    edit(folder, lambda document: document["files"][first_file(document)].update(fallbacks=wrong))
    with pytest.raises(BundleError, match=r"pmpd\.json: damaged"):
        bundle.load(folder)


def with_new_fields(loaded: Bundle) -> Bundle:
    """A bundle with all that manifests have learnt since the first ones; its importance matrix is no such thing."""
    matrix = loaded.path / "m-imatrix.gguf"
    matrix.write_bytes(b"GGUF and more")
    low = loaded.levels[-1].weights[0]
    file = replace(
        loaded.files[low],
        bpw_by_class={"embeddings": 8.5, "attention": 4.6641, "other": 32.0},
        overrides=(("attn_v", "Q6_K"), (r"blk\.[01]\.", "Q5_K")),
        imatrix=True,
    )
    imatrix = ImatrixFile(matrix.name, bundle.sha256_file(matrix), "text.txt", 63)
    return replace(loaded, files={**loaded.files, low: file}, imatrix=imatrix)


def forget_new_fields(document: dict[str, Any]) -> None:
    """Make a manifest as it was before."""
    document.pop("imatrix", None)
    for file in document["files"].values():
        for field in ("bpw_by_class", "overrides", "imatrix"):
            file.pop(field, None)


def test_new_fields_are_optional_and_kept(folder: Path) -> None:
    edit(folder, forget_new_fields)
    loaded = bundle.load(folder)
    assert loaded.imatrix is None
    assert all((file.bpw_by_class, file.overrides, file.imatrix) == ({}, (), False) for file in loaded.files.values())
    changed = with_new_fields(loaded)
    bundle.write(changed)
    assert bundle.load(folder) == changed
    assert changed.fingerprint == loaded.fingerprint
    document = json.loads((folder / "pmpd.json").read_text())
    assert document["imatrix"]["chunks"] == 63
    assert document["files"][loaded.levels[-1].weights[0]]["overrides"][0] == {"tensors": "attn_v", "type": "Q6_K"}


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(imatrix=3),
        lambda d: d.update(imatrix=["m"]),
        lambda d: d["imatrix"].pop("sha256"),
        lambda d: d["imatrix"].update(text="\x1b[2J"),
        lambda d: d["imatrix"].update(chunks=float("inf")),
        lambda d: d["imatrix"].update(chunks=-1),
        lambda d: d["files"][first_file(d)].update(bpw_by_class=[3]),
        lambda d: d["files"][first_file(d)].update(bpw_by_class={"attention": float("nan")}),
        lambda d: d["files"][first_file(d)].update(bpw_by_class={"attention": 10**400}),
        lambda d: d["files"][first_file(d)].update(bpw_by_class={"\x1b[2J": 4.5}),
        lambda d: d["files"][first_file(d)].update(overrides={"a": 1}),
        lambda d: d["files"][first_file(d)].update(overrides=[{"tensors": "a"}]),
    ],
)
def test_damaged_new_fields_are_refused(folder: Path, change: Any) -> None:
    bundle.write(with_new_fields(bundle.load(folder)))
    edit(folder, change)
    with pytest.raises(BundleError, match=r"pmpd\.json: damaged") as error:
        bundle.load(folder)
    assert "\n" not in str(error.value)


def test_the_importance_matrix_is_there_and_the_one_that_was_written(folder: Path) -> None:
    bundle.write(with_new_fields(bundle.load(folder)))
    loaded = bundle.load(folder)
    loaded.verify()
    matrix = folder / "m-imatrix.gguf"
    matrix.write_bytes(b"GGUF and less")
    with pytest.raises(BundleError, match=r"m-imatrix\.gguf: damaged"):
        bundle.load(folder).verify()
    matrix.unlink()
    with pytest.raises(BundleError, match=r"m-imatrix\.gguf: No such file"):
        bundle.load(folder)
    edit(folder, lambda document: document["imatrix"].update(file="../m-imatrix.gguf"))
    with pytest.raises(BundleError, match="lead out of the bundle"):
        bundle.load(folder)


def change_a_token(folder: Path, name: str) -> None:
    """Give a file another tokenizer, and the manifest that file's hash."""
    path = folder / name
    data = path.read_bytes()
    token = "▁people".encode()
    at = data.index(len(token).to_bytes(8, "little") + token) + 8
    path.write_bytes(data[:at] + "▁peeple".encode() + data[at + len(token) :])
    edit(folder, lambda document: document["files"][name].update(sha256=bundle.sha256_file(path)))


@pytest.mark.parametrize("level", [0, 2])
def test_a_file_with_another_tokenizer_is_refused(folder: Path, level: int) -> None:
    (name,) = bundle.load(folder).levels[level].weights
    change_a_token(folder, name)
    loaded = bundle.load(folder)
    for use in (loaded.verify, lambda: Pmpd(folder, n_threads=1)):
        with pytest.raises(BundleError) as error:
            use()
        assert str(error.value).startswith(f"{folder / name}: its tokenizer is not that of the manifest: ")
        assert "\n" not in str(error.value)


def test_a_manifest_of_another_tokenizer_is_refused(folder: Path) -> None:
    edit(folder, lambda document: document.update(tokenizer_sha256="0" * 64))
    with pytest.raises(BundleError, match=r"q8\.gguf: its tokenizer is not that of the manifest"):
        Pmpd(folder, n_threads=1)


def first_file(document: dict[str, Any]) -> str:
    return document["levels"][0]["weights"][0]


def rename(document: dict[str, Any], name: str) -> None:
    old = first_file(document)
    document["files"][name] = document["files"].pop(old)
    document["levels"][0]["weights"] = [name]


WRONG = {
    "another format": (lambda d: d.update(format="zip"), "not the manifest of a bundle"),
    "a later version": (lambda d: d.update(version=2), "format version 2, this program reads 1"),
    "no version": (lambda d: d.pop("version"), "format version None"),
    "no levels": (lambda d: d.update(levels=[]), "no levels"),
    "a missing key": (lambda d: d.pop("tokenizer_sha256"), "no 'tokenizer_sha256'"),
    "a wrong type": (lambda d: d.update(levels=3), "damaged"),
    "a level twice": (lambda d: d["levels"].append(d["levels"][0]), "a precision twice"),
    "an unknown precision": (lambda d: d["levels"][0].update(precision=7), "precision 7"),
    "an unlisted file": (lambda d: d["levels"][0].update(weights=["x.gguf"]), "files that are not listed"),
    "prefill without level": (lambda d: d.update(prefill=16), "precision 16, which no level has"),
    "schedule without level": (lambda d: d["schedule"]["switches"][0].update(precision=3), "precision 3"),
    "schedule from step 2": (lambda d: d["schedule"]["switches"][0].update(step=2), "steps"),
    "an unknown layout": (lambda d: d.update(layout="tiled"), "layout 'tiled'"),
    "a path upwards": (lambda d: rename(d, "../evil.gguf"), "lead out of the bundle"),
    "an absolute path": (lambda d: rename(d, "/etc/passwd"), "lead out of the bundle"),
    "a path with backslashes": (lambda d: rename(d, "..\\evil.gguf"), "lead out of the bundle"),
    "a name that moves the cursor": (lambda d: d.update(name="\x1b]0;t\x07"), "name"),
    "bpw that is no number": (lambda d: d["files"][first_file(d)].update(bpw=float("nan")), "bpw nan"),
    "no tokens at all": (lambda d: d["schedule"].update(max_new_tokens=0), "max_new_tokens 0"),
    "a huge context": (lambda d: d.update(context_length=10**30), "context_length 1"),
    "a fraction of a bit": (lambda d: d["levels"][0].update(precision=8.7), "precision 8.7"),
    "a schedule of an unknown kind": (lambda d: d["schedule"].update(kind="foo"), "schedule of kind 'foo'"),
    "no schedule": (lambda d: d.update(schedule=None), "damaged"),
    "a sum in the separate layout": (lambda d: d["levels"][0]["weights"].append(d["levels"][1]["weights"][0]), "sever"),
    "dots": (lambda d: rename(d, ".."), "lead out of the bundle"),
    "a drive": (lambda d: rename(d, "c:evil.gguf"), "lead out of the bundle"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_manifest_is_refused(folder, name):
    change, message = WRONG[name]
    edit(folder, change)
    with pytest.raises(BundleError, match=message) as error:
        bundle.load(folder)
    assert "\n" not in str(error.value)
    assert "pmpd.json" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object(folder, content):
    (folder / "pmpd.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"pmpd\.json"):
        bundle.load(folder)


def test_missing_truncated_and_foreign_files(folder):
    loaded = bundle.load(folder)
    path = loaded.paths(loaded.levels[1])[0]
    data = path.read_bytes()

    path.write_bytes(data[:-1])
    with pytest.raises(BundleError, match="the manifest says"):
        bundle.load(folder)
    path.write_bytes(b"GGML" + data[4:])
    with pytest.raises(BundleError, match="not a GGUF file"):
        bundle.load(folder)
    path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    with pytest.raises(BundleError, match="damaged"):
        bundle.load(folder).verify()
    path.unlink()
    with pytest.raises(BundleError, match="No such file"):
        bundle.load(folder)


def test_finding_bundles(tmp_path, monkeypatch):
    assert bundle.resolve(None) == bundle.default_bundle()
    assert bundle.resolve(tmp_path) == tmp_path
    with pytest.raises(BundleError, match="not a bundle"):
        bundle.load(bundle.resolve(tmp_path))
    with pytest.raises(BundleError, match="no such bundle"):
        bundle.resolve(tmp_path / "missing" / "deep")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(BundleError, match="give the directory"):
        bundle.resolve(file)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BundleError, match="neither a directory nor a bundle that the Hub gives"):
        bundle.resolve("someone/nothing")


def test_a_level_that_does_not_exist():
    with pytest.raises(BundleError, match=r"no level of precision 3.*8, 4, 2"):
        bundle.load(bundle.default_bundle()).level(3)
