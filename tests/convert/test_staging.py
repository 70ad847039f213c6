"""A directory that appears whole or not at all, and what a run that was stopped leaves for the next one."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pmpd_edge.bundle import MANIFEST
from pmpd_edge.convert import staging
from pmpd_edge.convert.staging import Place, staged
from pmpd_edge.errors import ConvertError, DiskFullError

KEYS = {"a.gguf": "key of a", "b.gguf": "key of b", "c.gguf": "key of c"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


def partial(out: Path) -> Path:
    return out.with_name("out.partial")


def make(place: Place, keys: Mapping[str, str] = KEYS, written: list[str] | None = None) -> list[str]:
    """Make files that hold their keys, and a manifest; returns the names of those that were written."""
    written = [] if written is None else written

    def write(path: Path) -> None:
        name = path.name.removesuffix(staging.UNFINISHED)
        written.append(name)
        path.write_text(keys[name])

    for name, key in keys.items():
        assert place.make(name, key, write) == place.directory / name
    (place.directory / MANIFEST).write_text(str(keys))
    return written


def whole(keys: Mapping[str, str] = KEYS) -> dict[str, str]:
    return {**keys, MANIFEST: str(keys)}


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def stop(out: Path, keys: Mapping[str, str] = KEYS, error: type[BaseException] = KeyboardInterrupt) -> list[str]:
    """Make files and fail then; returns the notes."""
    notes: list[str] = []
    with pytest.raises(error), staged(out, note=notes.append) as place:
        make(place, keys)
        (place.directory / ("d.gguf" + staging.UNFINISHED)).write_text("half of")
        raise error
    return notes


def go_on(out: Path, keys: Mapping[str, str] = KEYS) -> list[str]:
    """Make files to the end; returns the names of those that were written."""
    with staged(out) as place:
        written = make(place, keys)
    assert contents(out) == whole(keys)
    assert list(out.parent.iterdir()) == [out]
    return written


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_finished_files_stay_and_are_taken(out: Path, error: type[BaseException]) -> None:
    (note,) = stop(out, error=error)
    assert note.startswith(f"{partial(out)}: keeps a.gguf, b.gguf, c.gguf; convert again") and "\n" not in note
    assert {path.name for path in partial(out).iterdir()} == {*KEYS, "keys.json"}
    assert list(out.parent.iterdir()) == [partial(out)]
    assert go_on(out) == []


def test_nothing_stays_where_nothing_is_finished(out: Path) -> None:
    assert stop(out, {}) == []
    assert list(out.parent.iterdir()) == []


def test_nothing_stays_where_the_disk_is_full(out: Path) -> None:
    errors = (DiskFullError("a.gguf"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    for error in errors:
        with pytest.raises(DiskFullError, match="No space left on device"), staged(out) as place:
            make(place)
            raise error
        assert list(out.parent.iterdir()) == []


def test_file_of_another_key_is_written_again(out: Path) -> None:
    stop(out)
    assert go_on(out, {**KEYS, "b.gguf": "another"}) == ["b.gguf"]


def test_file_that_failed_to_be_written_again_is_gone(out: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half of")
        raise RuntimeError

    stop(out)
    with pytest.raises(RuntimeError), staged(out) as place:
        place.make("b.gguf", "another", fail)
    assert go_on(out) == ["b.gguf"]


def test_what_is_left_for_nothing_is_deleted(out: Path) -> None:
    stop(out)
    assert go_on(out, {"b.gguf": "key of b", "d.gguf": "key of d"}) == ["d.gguf"]


def test_file_that_the_bundle_does_not_need_is_not_in_it(out: Path) -> None:
    with staged(out) as place:
        make(place)
        place.remove("b.gguf")
        assert place.has("b.gguf", "key of b")  # until the end: whoever is stopped needs it again
    assert set(contents(out)) == {"a.gguf", "c.gguf", MANIFEST}


def test_file_without_a_key_and_key_without_a_file_are_not_trusted(out: Path) -> None:
    stop(out, {"a.gguf": "key of a", "b.gguf": "key of b"})
    (partial(out) / "a.gguf").unlink()
    (partial(out) / "c.gguf").write_text("key of c")
    with pytest.raises(KeyboardInterrupt), staged(out) as place:
        assert {name for name, key in KEYS.items() if place.has(name, key)} == {"b.gguf"}
        assert not (place.directory / "c.gguf").exists()
        raise KeyboardInterrupt
    assert go_on(out) == ["a.gguf", "c.gguf"]


@pytest.mark.parametrize(
    "keys", [b"", b"{", b"[]", b"null", b'"a.gguf"', b"[" * 100_000, b"\xff", b'{"a.gguf": null}', b'{"a.gguf": 1}']
)
def test_damaged_keys_count_for_nothing(out: Path, keys: bytes) -> None:
    stop(out)
    (partial(out) / "keys.json").write_bytes(keys)
    assert go_on(out) == [*KEYS]


def test_keys_do_not_lead_to_other_places(out: Path, tmp_path: Path) -> None:
    stop(out)
    (tmp_path / "mine").write_text("mine")
    (partial(out) / "keys.json").write_text('{"../../mine": "x", "..": "y", "": "z"}')
    assert go_on(out) == [*KEYS]
    assert (tmp_path / "mine").read_text() == "mine"


def test_keys_tell_their_parts_apart() -> None:
    parts: list[tuple[Any, ...]] = [("a", "b"), ("ab",), ("ab", ""), (["a", "b"],), ("a", ["b"]), ("1",), (1,), ()]
    assert len({staging.key_of(*part) for part in parts}) == len(parts)
    assert staging.key_of("a", [("b", 1)]) == staging.key_of("a", (["b", 1],))


def test_running_conversion_is_left_alone_by_another(out: Path) -> None:
    with staged(out) as place:
        make(place)
        with pytest.raises(ConvertError, match=r"out\.partial: another conversion is writing there"), staged(out):
            pass
        assert contents(place.directory).items() > KEYS.items()
    assert contents(out) == whole()
    assert list(out.parent.iterdir()) == [out]


def test_lock_of_a_killed_conversion_is_no_obstacle(out: Path) -> None:
    out.with_name("out.partial.lock").touch()
    assert go_on(out) == [*KEYS]


def test_what_appears_at_the_target_meanwhile_stays_and_so_do_finished_files(out: Path) -> None:
    with pytest.raises(ConvertError, match="exists already"), staged(out) as place:
        make(place)
        (out / "from elsewhere").mkdir(parents=True)
    assert [path.name for path in out.iterdir()] == ["from elsewhere"]
    shutil.rmtree(out)
    assert go_on(out) == []


def test_failed_rename_keeps_finished_files(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched, pytest.raises(ConvertError, match="Permission denied"):
        patched.setattr(os, "rename", refuse)
        go_on(out)
    assert go_on(out) == []


@pytest.mark.parametrize("name", ["notes.txt", "model.gguf"])
def test_directory_that_no_conversion_left_is_not_taken(out: Path, name: str) -> None:
    partial(out).mkdir()
    (partial(out) / name).write_text("mine")
    with pytest.raises(ConvertError, match=r"out\.partial: is not what a conversion left"), staged(out):
        pass
    assert contents(partial(out)) == {name: "mine"}
    assert list(out.parent.iterdir()) == [partial(out)]


def test_space_that_finished_files_take_counts(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(100, 100, 20)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    out.mkdir()
    (out / "a.gguf").write_bytes(bytes(30))
    staging.check_space(out, 50)
    with pytest.raises(ConvertError, match="disk space"):
        staging.check_space(out, 51)


def test_overwriting_replaces_a_bundle_whole_or_not_at_all(out: Path) -> None:
    out.mkdir()
    (out / MANIFEST).write_text("old")
    with pytest.raises(RuntimeError), staged(out, overwrite=True) as place:
        make(place)
        raise RuntimeError
    assert contents(out) == {MANIFEST: "old"}

    with staged(out, overwrite=True) as place:
        assert make(place) == []
    assert contents(out) == whole()
    assert list(out.parent.iterdir()) == [out]


def test_bundle_that_was_being_replaced_comes_back(out: Path) -> None:
    replaced = out.with_name("out.replaced-1-abc")
    replaced.mkdir()
    (replaced / MANIFEST).write_text("old")
    with pytest.raises(ConvertError, match="exists already"), staged(out):
        pass
    assert contents(out) == {MANIFEST: "old"}


def test_empty_directory_is_filled(out: Path) -> None:
    out.mkdir()
    assert go_on(out) == [*KEYS]


class Killed(BaseException):
    """The process has ended: nothing is cleared up."""


def kill_at(patched: pytest.MonkeyPatch, number: int) -> None:
    """Have the disk change `number` times; then a file that is being written is half there, and no more is changed."""
    changes = itertools.count()

    def patch(owner: Any, name: str) -> None:
        change: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            at = next(changes)
            if at == number and name == "write_text":
                change(args[0], args[1][: len(args[1]) // 2])
            if at >= number:
                raise Killed
            return change(*args, **options)

        patched.setattr(owner, name, counted)

    for name in ("mkdir", "rmdir", "unlink", "write_text"):
        patch(Path, name)
    for name in ("rename", "replace"):
        patch(os, name)
    patch(shutil, "rmtree")
    listed = Path.iterdir
    patched.setattr(Path, "iterdir", lambda path: iter(sorted(listed(path), reverse=True)))  # the manifest first


def is_killed_making(out: Path, number: int, keys: Mapping[str, str], written: list[str], overwrite: bool) -> bool:
    with pytest.MonkeyPatch.context() as patched:
        kill_at(patched, number)
        try:
            with staged(out, overwrite) as place:
                make(place, keys, written)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_every_change_of_the_disk(out: Path, overwrite: bool, is_sealed: bool) -> None:
    """A whole bundle is there or none, and the next run writes but one file again: the one that was being written.

    An earlier run left files, and was killed in the midst or, `is_sealed`, just before the bundle would have appeared.
    """
    for number in itertools.count():
        stop(out, {"b.gguf": "key of b", "c.gguf": "another", "d.gguf": "key of d"})
        if is_sealed:
            (partial(out) / MANIFEST).write_text("of other files")
            (partial(out) / "keys.json").unlink()
        if overwrite:
            out.mkdir()
            (out / MANIFEST).write_text("old")
        written: list[str] = []
        if not is_killed_making(out, number, KEYS, written, overwrite):
            break

        staging._bring_back(out)  # as the next run does first
        is_made = out.exists() and contents(out) == whole()
        if overwrite and not is_made:
            assert contents(out) == {MANIFEST: "old"}
        elif out.exists():
            assert is_made
            shutil.rmtree(out)
        has_keys = (partial(out) / "keys.json").exists()
        with staged(out, overwrite) as place:
            again = make(place)
        assert not has_keys or len({*again} & {*written}) <= 1
        assert contents(out) == whole()
        assert list(out.parent.iterdir()) == [out]
        shutil.rmtree(out)
    assert number >= 20


@pytest.mark.parametrize("seed", range(20))
def test_killed_again_and_again_while_wishes_change(out: Path, seed: int) -> None:
    drawn = random.Random(seed)
    for _ in range(20):
        names = drawn.sample([*KEYS], drawn.randrange(1, 4))
        keys = {name: drawn.choice(["this", "that"]) for name in names}
        is_killed_making(out, drawn.randrange(30), keys, [], overwrite=False)
        if out.exists():
            assert contents(out) == whole(keys)
            shutil.rmtree(out)
    go_on(out)
