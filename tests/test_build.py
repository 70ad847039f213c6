"""The source that gets built: fetched, checked, patched (native/llama_source.py). No network, no compiler."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("patch_ng", reason="patch-ng is needed: pip install '.[dev]'")
ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "native" / "llama_source.py"
TOP = "llama_cpp_python-1.0/"
SOURCE = {
    "src/llama.cpp": "one\ntwo\nthree\nfour\nfive\n",
    "src/other.cpp": "alpha\nbeta\n",
    "LICENSE": "licence\n",
    "models/vocab.gguf": "not needed\n",
}


@pytest.fixture(scope="module")
def source() -> ModuleType:
    spec = importlib.util.spec_from_file_location("llama_source", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["llama_source"] = module  # dataclasses looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_network(source: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(source, "_download", download)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in SOURCE.items():
            member = tarfile.TarInfo(f"{TOP}vendor/llama.cpp/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def pin(source: ModuleType, archive: Path):
    return source.Pin("1.0", hashlib.sha256(archive.read_bytes()).hexdigest())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tmp_path / "build" / "llama.cpp"


def write_patch(path: Path, line: int, old: str, new: str, file: str = "src/llama.cpp") -> Path:
    """A patch as `git format-patch` writes it, which replaces one line between two of context."""
    lines = SOURCE[file].splitlines()
    before, after = lines[line - 2], lines[line]
    path.write_text(
        f"From 0123456789 Mon Sep 17 00:00:00 2001\nSubject: [PATCH] {new}\n\n---\n {file} | 2 +-\n\n"
        f"diff --git a/{file} b/{file}\nindex 0123456..89abcde 100644\n--- a/{file}\n+++ b/{file}\n"
        f"@@ -{line - 1},3 +{line - 1},3 @@ some function\n {before}\n-{old}\n+{new}\n {after}\n-- \n2.39.5\n\n"
    )
    return path


def names_left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def test_unpacks_only_what_is_built(source, pin, archive, tree):
    assert source.prepare(tree, pin, [], archive)
    files = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    assert files == {"LICENSE", os.path.join("src", "llama.cpp"), os.path.join("src", "other.cpp"), source.STAMP}
    assert names_left(tree.parent) == ["llama.cpp"]


def test_wrong_hash_is_refused_in_one_line_and_leaves_no_tree(source, archive, tree):
    with pytest.raises(source.SourceError) as error:
        source.prepare(tree, source.Pin("1.0", "0" * 64), [], archive)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert all(part in str(error.value) for part in (str(archive), found, "0" * 64))
    assert "\n" not in str(error.value)
    assert names_left(tree.parent) == []


def test_missing_archive_names_the_file_wanted(source, pin, tree, tmp_path):
    with pytest.raises(source.SourceError, match=r"nowhere\.tar\.gz: no such file.*llama_cpp_python-1\.0\.tar\.gz"):
        source.prepare(tree, pin, [], tmp_path / "nowhere.tar.gz")


def test_patches_apply_in_order(source, pin, archive, tree, tmp_path):
    first = write_patch(tmp_path / "0001-first.patch", 3, "three", "THREE")
    second = write_patch(tmp_path / "0002-second.patch", 3, "THREE", "3")
    source.prepare(tree, pin, [first, second], archive)
    assert (tree / "src/llama.cpp").read_text() == "one\ntwo\n3\nfour\nfive\n"


def test_patch_can_add_a_file(source, pin, archive, tree, tmp_path):
    patch = tmp_path / "0001-new.patch"
    patch.write_text(
        "diff --git a/src/new/x.h b/src/new/x.h\nnew file mode 100644\nindex 0000000..89abcde\n"
        "--- /dev/null\n+++ b/src/new/x.h\n@@ -0,0 +1,2 @@\n+int x;\n+int y;\n"
    )
    source.prepare(tree, pin, [patch], archive)
    assert (tree / "src/new/x.h").read_text() == "int x;\nint y;\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "source file is different"),
        ("--- a/src/gone.cpp\n+++ b/src/gone.cpp\n@@ -1,1 +1,1 @@\n-a\n+b\n", "does not exist"),
        ("--- a/src/other.cpp\n+++ b/src/other.cpp\n@@ -1,2 +1,2 @@\n-before\n+alpha\n beta\n", "already patched"),
        ("--- /dev/null\n+++ b/src/other.cpp\n@@ -0,0 +1,1 @@\n+b\n", "is there already"),
        ("--- a/src/other.cpp\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-alpha\n-beta\n", "would delete or rename"),
        ("Not a patch at all\n", "no patch data"),
        ("", "no patch data"),
        ("--- a/src/other.cpp\n+++ b/src/other.cpp\n@@ -1,2 +1,2 @@\n-alpha\n", "incomplete"),
    ],
)
def test_patch_that_does_not_apply_stops_with_its_name_and_leaves_no_tree(
    source, pin, archive, tree, tmp_path, text, reason
):
    good = write_patch(tmp_path / "0001-good.patch", 2, "two", "2")
    bad = write_patch(tmp_path / "0002-bad.patch", 4, "vier", "4")
    if text is not None:
        bad.write_text(text)
    with pytest.raises(source.SourceError, match=rf"0002-bad\.patch: does not apply.*{reason}") as error:
        source.prepare(tree, pin, [good, bad], archive)
    assert "\n" not in str(error.value)
    assert names_left(tree.parent) == []


def test_failure_leaves_the_earlier_tree_alone(source, pin, archive, tree, tmp_path):
    source.prepare(tree, pin, [], archive)
    with pytest.raises(source.SourceError):
        source.prepare(tree, pin, [write_patch(tmp_path / "0001-bad.patch", 4, "vier", "4")], archive)
    assert (tree / "src/llama.cpp").read_text() == SOURCE["src/llama.cpp"]
    assert not source.prepare(tree, pin, [])


def test_unchanged_second_run_does_nothing(source, pin, archive, tree, tmp_path):
    patch = write_patch(tmp_path / "0001-first.patch", 3, "three", "3")
    source.prepare(tree, pin, [patch], archive)
    archive.unlink()  # not even looked at
    before = tree.stat().st_mtime_ns
    assert not source.prepare(tree, pin, [patch], archive)
    assert tree.stat().st_mtime_ns == before


def test_changed_patch_is_applied_anew_and_keeps_the_times_of_other_files(source, pin, archive, tree, tmp_path):
    patch = write_patch(tmp_path / "0001-first.patch", 3, "three", "3")
    source.prepare(tree, pin, [patch], archive)
    for name in ("src/llama.cpp", "src/other.cpp"):
        os.utime(tree / name, (1e9, 1e9))
    write_patch(patch, 4, "four", "4")
    assert source.prepare(tree, pin, [patch], archive)
    assert (tree / "src/llama.cpp").read_text() == "one\ntwo\nthree\n4\nfive\n"
    assert (tree / "src/llama.cpp").stat().st_mtime > 1e9
    assert (tree / "src/other.cpp").stat().st_mtime == 1e9


def test_download_is_checked_and_kept_beside_the_tree(source, pin, archive, tree, tmp_path, monkeypatch):
    downloads = []

    def download(pin, directory):
        downloads.append(directory)
        (directory / pin.archive).write_bytes(archive.read_bytes())

    monkeypatch.setattr(source, "_download", download)
    source.prepare(tree, pin, [])
    source.prepare(tree, pin, [write_patch(tmp_path / "0001-first.patch", 3, "three", "3")])
    assert len(downloads) == 1
    assert names_left(tree.parent) == ["llama.cpp", "llama_cpp_python-1.0.tar.gz"]


def test_script_takes_the_archive_from_the_environment_and_fails_in_one_line(tmp_path, archive, tree):
    environment = {**os.environ, "PMPD_LLAMA_ARCHIVE": str(archive)}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(tree)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"{archive}: SHA-256 is ")


def test_one_version_everywhere(source):
    version = source.Pin.read(ROOT / "native" / "llama.pin").version
    for name in ("pyproject.toml", "requirements.txt", "constraints.txt"):
        assert re.findall(r"llama-cpp-python==([0-9.]+)", (ROOT / name).read_text()) == [version], name
