"""Manifests: what is read is what was written, and whatever is wrong is named in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pmpd_edge import bundle
from pmpd_edge.bundle import Fallback
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
