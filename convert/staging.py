"""Makes a directory appear whole or not at all: it is written beside its place and renamed at the end.

What a run that was stopped leaves in `OUT.partial` are finished files alone: the next run takes those that it would
write itself, by the key of all that went into them, and deletes the others. `OUT.replaced-*`, the bundle that was being
replaced, is put back if nothing took its place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pmpd_edge.bundle import MANIFEST
from pmpd_edge.errors import ConvertError, DiskFullError

UNFINISHED = ".unfinished"  # what the names of files that are being written end in

_KEYS = "keys.json"


class Place:
    """The directory in which a bundle is made.

    Attributes:
        directory: where its files are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._keys = _read_keys(directory)
        self._wanted: set[str] = set()
        self.keep()

    def make(self, name: str, key: str, write: Callable[[Path], None]) -> Path:
        """Return a file, which is written unless an earlier run has finished the same one.

        Args:
            name: of the file.
            key: of what goes into it, see `key_of`.
            write: called with the path to write to.
        """
        path = self.directory / name
        self._wanted.add(name)
        if self._keys.get(name) != key:
            self._forget(name)
            unfinished = self.directory / (name + UNFINISHED)
            write(unfinished)
            _sync(unfinished)
            self._keys[name] = key
            self._write_keys()  # first: a key without its file counts for nothing, and `_check_ours` looks for keys
            os.replace(unfinished, path)
        return path

    def has(self, name: str, key: str) -> bool:
        """Whether `make` would find the file finished."""
        return self._keys.get(name) == key

    def remove(self, name: str) -> None:
        """Have `seal` delete a finished file that the bundle does not need; a run that is stopped before would."""
        self._wanted.discard(name)

    def keep(self) -> list[str]:
        """Delete what a run that is stopped had not finished; returns the names of what stays for the next one."""
        if self._keys and not (self.directory / _KEYS).exists():  # stopped after `remove_keys`
            self._write_keys()
        # The manifest last: `_check_ours` looks for that where there are no keys.
        for path in sorted(self.directory.iterdir(), key=lambda path: path.name == MANIFEST):
            if path.name != _KEYS and path.name not in self._keys:
                path.unlink()
        return sorted(name for name in self._keys if (self.directory / name).exists())

    def seal(self) -> None:
        """Delete what an earlier run left for nothing, and have all else on the disk."""
        for name in set(self._keys) - self._wanted:
            self._forget(name)
        for path in self.directory.iterdir():
            _sync(path)

    def remove_keys(self) -> None:
        """The last thing before the directory becomes the bundle: without keys its files are not gone on from."""
        (self.directory / _KEYS).unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        if self._keys.pop(name, None) is not None:
            self._write_keys()
        (self.directory / name).unlink(missing_ok=True)

    def _write_keys(self) -> None:
        partial = self.directory / (_KEYS + UNFINISHED)
        partial.write_text(json.dumps(self._keys, indent=1), encoding="utf-8")
        _sync(partial)
        os.replace(partial, self.directory / _KEYS)


def key_of(*parts: Any) -> str:
    """A key of everything that goes into a file: numbers, texts, and lists of them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_keys(directory: Path) -> dict[str, str]:
    """The finished files of a directory, and their keys."""
    try:
        keys = json.loads((directory / _KEYS).read_text(encoding="utf-8"))
        here = {path.name for path in directory.iterdir() if path.is_file()}  # no `../` of a damaged file
        return {str(name): str(key) for name, key in keys.items() if name in here}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _check_ours(partial: Path) -> None:
    """Raise ConvertError where a directory has something else than a conversion that was stopped leaves."""
    names = {path.name for path in partial.iterdir()}
    if names & {_KEYS, MANIFEST} or all(name.endswith(UNFINISHED) for name in names):
        return
    raise ConvertError(
        f"{partial}: is not what a conversion left and will not be overwritten", "move it, or choose another place"
    )


@contextlib.contextmanager
def staged(out: Path, overwrite: bool = False, note: Callable[[str], None] = lambda text: None) -> Iterator[Place]:
    """A place to make files in, which becomes `out` if the body succeeds.

    If it does not, finished files stay for the next run, unless the disk is full; where there are none, nothing stays.

    Args:
        note: called with a line about what stays.

    Raises:
        ConvertError: `out` exists already and is neither empty nor, with `overwrite`, a bundle; cannot be written; or
            another conversion to it is under way.
    """
    out = _real(out)
    check_place(out, overwrite)
    partial = out.with_name(out.name + ".partial")
    try:
        with _locked(partial):
            _bring_back(out)
            _check_free(out, overwrite)
            place = Place(partial)
            try:
                yield place
                place.seal()
                _check_free(out, overwrite)
                place.remove_keys()
                _put(partial, out)
            except BaseException as error:
                _leave(place, error, note)
                raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(str(out)) from error
        raise ConvertError(f"{out}: {error.strerror or error}") from error


def _leave(place: Place, error: BaseException, note: Callable[[str], None]) -> None:
    """Keep what is finished, if that helps."""
    if not place.directory.is_dir():
        return
    is_full = isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
    names = [] if is_full else place.keep()
    if names:
        note(f"{place.directory}: keeps {', '.join(names)}; convert again to go on from there, or delete it")
    else:
        shutil.rmtree(place.directory, ignore_errors=True)


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Make a directory that no other process works in, or take over what one left."""
    lock = partial.with_name(partial.name + ".lock")
    with open(lock, "ab") as file:
        try:
            _lock(file.fileno())
            is_ours = os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
        except (BlockingIOError, PermissionError, FileNotFoundError):  # what a lock that is held is on Windows
            is_ours = False
        if not is_ours:  # held, or deleted between opening and locking
            raise ConvertError(
                f"{partial}: another conversion is writing there", "wait for its end, or choose another place"
            )
        try:
            partial.mkdir(exist_ok=True)
            _check_ours(partial)
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows: not while it is open; the next run takes it
                lock.unlink()


def check_place(out: Path, overwrite: bool = False) -> None:
    """Raise ConvertError where `staged` would: `out` exists already, or the directory that is to hold it does not."""
    out = _real(out)
    if not out.parent.is_dir():
        raise ConvertError(f"{out.parent}: no such directory", "make it first")
    _check_free(out, overwrite)


def _real(out: Path) -> Path:
    out = Path(os.path.abspath(out))
    return out.resolve() if out.is_symlink() else out


def check_space(directory: Path, needed: int) -> None:
    """Raise ConvertError where a disk has less than `needed` bytes left, those that its files here take included."""
    have = sum(path.stat().st_size for path in directory.iterdir())
    free = shutil.disk_usage(directory).free
    if have + free < needed:
        raise ConvertError(
            f"{directory}: converting needs {_megabytes(needed - have)} of disk space, {_megabytes(free)} are free",
            "free some, or convert to another disk",
        )


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _check_free(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if out.samefile(os.curdir):  # it is replaced by a rename, which would leave the shell in a deleted directory
        raise ConvertError(f"{out}: is the current directory", "name a new one")
    if not out.is_dir():
        raise ConvertError(f"{out}: exists and is not a directory", "choose another place")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise ConvertError(f"{out}: exists already", "choose another place, or replace it with --overwrite")
    if not (out / MANIFEST).is_file():  # never delete what is not ours
        raise ConvertError(f"{out}: is not a bundle and will not be overwritten", "choose another place")


def _put(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; a bundle that is there moves away first and comes back if that fails."""
    if not out.exists():
        os.rename(partial, out)
    elif not any(out.iterdir()):
        out.rmdir()
        os.rename(partial, out)
    else:
        replaced = out.with_name(f"{out.name}.replaced-{os.getpid()}-{secrets.token_hex(4)}")
        os.rename(out, replaced)
        try:
            os.rename(partial, out)
        except BaseException:
            os.rename(replaced, out)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


def _bring_back(out: Path) -> None:
    """Put a bundle back that was being replaced when the process was killed."""
    for path in sorted(out.parent.iterdir()):
        if path.name.startswith(f"{out.name}.replaced-") and path.is_dir():
            if out.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.rename(path, out)


def _lock(descriptor: int) -> None:
    """Lock an open file until it is closed or the process ends; OSError where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync(path: Path) -> None:
    """Have a file on the disk before it gets its name: after a power cut it is whole or not there."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
