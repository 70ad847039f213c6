"""Tasks: rows become prompts and references, and what is wrong with a file is said with its line."""

from __future__ import annotations

import gzip
import json

import pytest

from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate.tasks import TASKS, Example, make_task, read

ROWS = [{"de": f"Satz {i}", "en": f"Sentence {i}", "n": i} for i in range(12)]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_become_examples(tmp_path, name):
    dataset = read(make_task("multi30k-de-en"), write(tmp_path / name, ROWS), limit=3)
    assert dataset.examples[2] == Example("Translate from German to English: Satz 2", "Sentence 2")
    assert (len(dataset.examples), dataset.name) == (3, name)


def test_templates_take_fields_as_they_stand(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"a.b": "x", "c[0]": "y{z}", "n": 3, "r": "z"}])
    dataset = read(make_task(prompt="{a.b} {{x}} {c[0]} {n}", reference="{r}"), path)
    assert dataset.examples == (Example("x {x} y{z} 3", "z"),)


def test_the_hash_tells_data_and_task_apart(tmp_path):
    path, task = write(tmp_path / "rows.jsonl", ROWS), make_task("multi30k-de-en")
    hashes = {
        read(task, path).sha256,
        read(task, path, limit=11).sha256,
        read(make_task("multi30k-de-en", max_new_tokens=7), path).sha256,
        read(task, write(tmp_path / "other.jsonl", ROWS[::-1])).sha256,
    }
    assert len(hashes) == 4
    assert read(task, write(tmp_path / "same.jsonl", ROWS)).sha256 in hashes


def test_blank_lines_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"prompt": "a", "reference": "b"}\n\n')
    assert read(make_task(), path).examples == (Example("a", "b"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 examples, at least 2 are needed"),
        (b'{"prompt": "a", "reference": "b"}\n', "1 examples, at least 2 are needed"),
        (b'{"prompt": "a", "reference": "b"}\n{"prompt": "a", "answer": "b"}\n', "line 2: no field 'reference'"),
        (b'{"prompt": "a", "reference": "b"}\n{"prompt": "\xff", "reference": "b"}\n', "line 2: not UTF-8"),
        (b'{"prompt": "a", "reference": "b"}\nprompt,reference\n', "line 2: not JSON"),
        (b'["a", "b"]\n', "line 1: not a JSON object"),
        (b'{"prompt": "a", "reference": " "}\n', "line 1: an empty reference"),
        (b'{"prompt": ["a"], "reference": "b"}\n', "line 1: the field 'prompt' is not a text"),
        (b'{"prompt": "", "reference": "b"}\n', "line 1: an empty prompt"),
        (b'{"prompt": "\\ud83d", "reference": "b"}\n', "line 1: half of a character"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", "line 1: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
    ],
)
def test_a_wrong_file(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(PmpdError, match=message) as error:
        read(make_task(), path, least=2)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_damaged_and_truncated_files(tmp_path):
    whole = write(tmp_path / "rows.jsonl.gz", ROWS).read_bytes()
    (tmp_path / "half.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.gz").write_bytes(b"no gzip")
    (tmp_path / "flipped.gz").write_bytes(whole[:20] + bytes(255 - byte for byte in whole[20:]))
    for name in ("missing.jsonl", "half.gz", "text.gz", "flipped.gz"):
        with pytest.raises(PmpdError, match=name):
            read(make_task(prompt="{de}", reference="{en}"), tmp_path / name)


def test_prompts_alone_need_no_references_and_a_byte_order_mark_is_none_of_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert read(make_task(), path, with_references=False).examples == (Example("a", ""),)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("nothing", {}, "no task 'nothing'"),
        (None, {"metric": "wer"}, "no metric 'wer'"),
        (None, {"prompt": "Translate"}, "names no field"),
        (None, {"reference": "{en"}, "a brace that is not closed"),
    ],
)
def test_wrong_tasks(name, changed, message):
    with pytest.raises(PmpdError, match=message):
        make_task(name, **changed)


@pytest.mark.parametrize("name", TASKS)
def test_named_tasks_are_well_formed(name):
    assert make_task(name) == TASKS[name]
