"""Bundles that libpmpd opens and refuses: the same as Python does, with one line that says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from libpmpd import BUNDLE, CANCELLED, DEFAULT, Bundle, PmpdFailure, Session, refused

from pmpd_edge import bundle as bundles
from pmpd_edge import gguf_info
from pmpd_edge.bench.random_model import quantize, write_llama


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The default bundle where it may be damaged."""
    return Path(shutil.copytree(DEFAULT, tmp_path / "bundle"))


def test_a_bundle_says_what_is_in_it():
    bundle, expected = Bundle(DEFAULT), bundles.load(DEFAULT)
    for name in ("name", "architecture", "parameters", "context_length", "prefill"):
        assert bundle.get(name) == getattr(expected, name)
    assert bundle.get("bytes") == sum(file.bytes for file in expected.files.values())
    assert bundle.get("max_new_tokens") == expected.schedule.max_new_tokens
    assert bundle.get("schedule") == "8@1,4@6,2@11"
    assert not bundle.get("has_predictor")
    n = bundle.get("n_levels")
    assert tuple(bundle.get("precision", i) for i in range(n)) == expected.precisions
    assert [bundle.get("bpw", i) for i in range(n)] == pytest.approx([expected.bpw(level) for level in expected.levels])


def test_verifying_reads_every_byte_and_can_be_stopped():
    seen: list[int] = []
    Bundle(DEFAULT).verify(lambda n: bool(seen.append(n)) or True)
    names = [path for path in DEFAULT.iterdir() if path.suffix == ".gguf"]
    assert seen == sorted(seen) and seen[-1] == sum(path.stat().st_size for path in names)
    refused(CANCELLED, "cancelled", lambda: Bundle(DEFAULT).verify(lambda n: n < 5_000_000))


def test_a_changed_byte_is_found_by_verifying_alone(copy):
    path = copy / "translator-7m-q4.gguf"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    refused(BUNDLE, r"translator-7m-q4.gguf: damaged \(its SHA-256", Bundle(copy).verify)


def damage(document: dict[str, Any], path: str, value: Any) -> None:
    """Set (or, by None, remove) what a path like `levels.0.precision` names."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        document = document[part]
    if value is None:
        del document[last]
    else:
        document[last] = value


FILE = "files/translator-7m-q8.gguf"
DAMAGES = [
    ("format", "other", "not the manifest of a bundle"),
    ("version", 2, "format version 2, this program reads 1"),
    ("version", "1", "format version \"1\", this program reads 1"),
    ("name", None, "no 'name'"),
    ("name", "a\nb", "name"),
    ("parameters", -1, "parameters -1"),
    ("parameters", 1.5, "parameters 1.5"),
    ("context_length", 2**31, "context_length 2147483648"),
    ("layout", "stacked", "layout 'stacked'"),
    ("levels", [], "no levels"),
    ("levels", {}, "levels object"),
    ("levels/0/precision", 7, "precision 7"),
    ("levels/0/precision", 4, "a precision twice"),
    ("levels/0/precision", [[[]]], "precision array"),
    ("levels/0/weights", ["other.gguf"], "level 8 with files that are not listed"),
    ("levels/0/weights", [], "level 8 with files that are not listed"),
    ("levels/0/weights", ["translator-7m-q8.gguf", "translator-7m-q4.gguf"], "several files in the separate layout"),
    ("levels/0/weights", [3], "weights 3"),
    ("prefill", 16, "precision 16, which no level has"),
    ("schedule", None, "no 'schedule'"),
    ("schedule/kind", "learned", "schedule of kind \"learned\""),
    ("schedule/switches", [], "the first step is 1 and the others rise"),
    ("schedule/switches/1/step", 1, "the first step is 1 and the others rise"),
    ("schedule/switches/1/precision", 16, "precision 16, which no level has"),
    ("schedule/max_new_tokens", 0, "max_new_tokens 0"),
    (FILE, None, "level 8 with files that are not listed"),
    (FILE + "/bytes", 12, "7913568 bytes, the manifest says 12"),
    (FILE + "/bpw", -1, "bpw -1"),
    (FILE + "/bpw", [8], "bpw array"),
    (FILE + "/sha256", 5, "sha256 5"),
    ("imatrix/file", "../imatrix.gguf", "would lead out of the bundle"),
    ("imatrix/file", "no.gguf", "No such file"),
    ("predictor", {"file": "a/b", "sha256": ""}, "would lead out of the bundle"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), DAMAGES, ids=[f"{d[0]}={d[1]}" for d in DAMAGES])
def test_a_manifest_that_is_not_right_is_refused(copy, path, value, message):
    document = json.loads((copy / "pmpd.json").read_text())
    damage(document, path, value)
    (copy / "pmpd.json").write_text(json.dumps(document))
    refused(BUNDLE, message, lambda: Bundle(copy))
    with pytest.raises(bundles.BundleError):  # Python has the same idea of it
        bundles.load(copy)


def test_a_manifest_cut_short_anywhere_is_refused(copy):
    text = (copy / "pmpd.json").read_bytes().rstrip()
    for size in range(0, len(text), 29):
        (copy / "pmpd.json").write_bytes(text[:size])
        refused(BUNDLE, "pmpd.json: not readable", lambda: Bundle(copy))


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe", b"[" * 1_000_000, b"[]", b"3", b"null", b'{"format": "pmpd-bundle"}', b'{"a": "\xed\xa0\x80"}'],
)
def test_what_is_no_manifest_is_refused(copy, text):
    (copy / "pmpd.json").write_bytes(text)
    refused(BUNDLE, "pmpd.json", lambda: Bundle(copy))


def test_missing_and_foreign_files_are_refused(copy, tmp_path):
    refused(BUNDLE, r"not a bundle \(no pmpd.json\)", lambda: Bundle(tmp_path / "nowhere"))
    refused(BUNDLE, r"not a bundle \(no pmpd.json\)", lambda: Bundle(copy / "README.md"))
    path = copy / "translator-7m-q2.gguf"
    path.write_bytes(b"ELF!" + path.read_bytes()[4:])
    refused(BUNDLE, "translator-7m-q2.gguf: not a GGUF file", lambda: Bundle(copy))
    path.unlink()
    refused(BUNDLE, "translator-7m-q2.gguf: No such file", lambda: Bundle(copy))


def test_weights_that_do_not_load_are_refused(copy, capfd):
    path = copy / "translator-7m-q4.gguf"
    data = path.read_bytes()
    for at in (8, 16, 24, 40, 2000, 60_000, gguf_info.read(path).data_start - 300):
        changed = bytearray(data)
        changed[at : at + 8] = b"\xff" * 8
        path.write_bytes(changed)
        with pytest.raises(PmpdFailure, match=r"translator-7m-q4.gguf: ") as failure:
            Session(copy)
        assert failure.value.status == BUNDLE and "\n" not in str(failure.value)
    assert capfd.readouterr().err == ""  # llama.cpp's complaints are in the message


def test_another_models_level_is_refused(copy):
    document = json.loads((copy / "pmpd.json").read_text())
    path = quantize(write_llama(copy / "f32.gguf"), copy / "translator-7m-q4.gguf", "Q4_K")
    document["files"][path.name]["bytes"] = path.stat().st_size
    (copy / "pmpd.json").write_text(json.dumps(document))
    refused(BUNDLE, "the weights cannot be switched", lambda: Session(copy))


def test_another_tokenizer_is_refused(copy):
    document = json.loads((copy / "pmpd.json").read_text())
    document["tokenizer_sha256"] = "0" * 64
    (copy / "pmpd.json").write_text(json.dumps(document))
    refused(BUNDLE, "its tokenizer is not that of the manifest", lambda: Session(copy))
    refused(BUNDLE, "its tokenizer is not that of the manifest", Bundle(copy).verify)
