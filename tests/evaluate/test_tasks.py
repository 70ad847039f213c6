"""Tasks: rows become prompts and references, and what is wrong with a file is said with its line."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate.rows import HubData
from pmpd_edge.evaluate.tasks import TASKS, BadRow, Example, make_task, read, read_hub

DATA = Path(__file__).parents[3] / "shared" / "data"
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
        (b'{"prompt": {"a": 1}, "reference": "b"}\n', "line 1: the field 'prompt' is not a text"),
        (b'{"prompt": ["a", 1, null], "reference": "b"}\n', "line 1: a turn of 'prompt' is not a text"),
        (b'{"prompt": [], "reference": "b"}\n', "line 1: an empty prompt"),
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


def test_rows_that_cannot_be_used_are_listed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"prompt": "a", "reference": "b"}\nno JSON\n\n{"prompt": "c", "reference": " "}\n{"prompt": "d"}\n'
    )
    dataset = read(make_task(), path, keep_going=True)
    assert dataset.examples == (Example("a", "b"),)
    assert dataset.bad == (
        BadRow(f"{path}, line 2", "not JSON"),
        BadRow(f"{path}, line 4", "an empty reference ({reference})"),
        BadRow(f"{path}, line 5", "no field 'reference'"),
    )
    assert read(make_task(), path, limit=2, keep_going=True).bad == dataset.bad[:1], "the limit is one of rows"
    path.write_text("no JSON\n")
    with pytest.raises(PmpdError, match=r"0 examples, at least 1 are needed \(.*line 1: not JSON\)"):
        read(make_task(), path, keep_going=True)


def test_a_list_of_messages_is_turns(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"turns": ["first", "second", "third"]}, {"turns": ["only"]}])
    dataset = read(make_task("mt-bench"), path, keep_going=True)
    assert dataset.examples == (Example("first", "", ("second", "third")), Example("only", ""))
    with pytest.raises(PmpdError, match="no right answers"):
        read(make_task("mt-bench"), path)


def test_the_hash_does_not_depend_on_how_answers_are_scored(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    task = make_task("multi30k-de-en")
    assert read(task, path).sha256 == read(make_task("multi30k-de-en", metrics=("chrf",)), path).sha256
    assert read(task, path).sha256 != read(replace(task, stop=("\n",)), path).sha256


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """A data set as the Hub has them: `datasets` takes a directory for one."""
    pytest.importorskip("datasets", reason="pip install 'pmpd-edge[eval]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "org" / "data"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"translation": {"de": f"{split} {i}", "en": f"right {i}"}, "id": i} for i in range(5)]
        write(folder / f"{split}.jsonl", rows)
    return folder


@pytest.mark.filterwarnings("default")
def test_a_split_of_the_hub_becomes_examples(on_the_hub):
    task = replace(make_task("iwslt-de-en"), hub=HubData(str(on_the_hub), splits={"validation": "train"}))
    dataset = read_hub(task, "test", limit=2)
    assert dataset.examples[1] == Example("Translate from German to English: test 1", "right 1")
    assert (len(dataset.examples), dataset.name) == (2, f"{on_the_hub} test")
    assert read_hub(task, "validation").examples[0].prompt.endswith(": train 0")
    by_files = HubData("json", files=f"{on_the_hub}/{{split}}.jsonl")
    assert read_hub(replace(task, hub=by_files), "test", limit=2).examples == dataset.examples


@pytest.mark.filterwarnings("default")
def test_what_the_hub_does_not_give_is_said(tmp_path):
    pytest.importorskip("datasets", reason="pip install 'pmpd-edge[eval]'")
    task = replace(make_task("dialogsum"), hub=HubData(str(tmp_path / "nothing")))
    with pytest.raises(PmpdError, match=r"nothing: not to be had .*--data FILE") as error:
        read_hub(task, "test")
    assert "\n" not in str(error.value)
    with pytest.raises(PmpdError, match="no data set on the Hub"):
        read_hub(make_task("multi30k-fr-en"), "test")


@pytest.mark.parametrize("name", TASKS)
def test_local_samples_suit_the_named_tasks(name):
    """The data sets that development uses; not in the repository."""
    files = {
        "multi30k-de-en": "multi30k.validation",
        "multi30k-fr-en": "multi30k.validation",
        "iwslt-de-en": "iwslt2017.tst2016.de-en",
        "iwslt-fr-en": "iwslt2017.tst2016.fr-en",
        "dialogsum": "dialogsum.validation",
        "cnn-dm": "cnn_dm.sample100",
        "mt-bench": "mt_bench",
        "gsm8k": "gsm8k.train",
    }
    path = DATA / f"{files[name]}.jsonl.gz"
    if not path.exists():
        pytest.skip("no local data sets")
    dataset = read(TASKS[name], path, limit=80, keep_going=True)
    assert len(dataset.examples) == 80 and not dataset.bad
    if name == "mt-bench":
        assert all(len(example.turns) == 1 for example in dataset.examples)
