"""Makes a directory appear whole or not at all: it is written beside its place and renamed at the end.

What a killed run left behind is cleared away when the next one starts: `OUT.partial-*` that nobody has locked is
deleted, and `OUT.replaced-*`, the bundle that was being replaced, is put back if nothing took its place.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pmpd_edge.bundle import MANIFEST
from pmpd_edge.errors import ConvertError

_LOCK = "lock"
_GRACE = 60.0  # seconds that a run has between making its directory and locking it


@contextlib.contextmanager
def staged(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new directory to write into, which becomes `out` if the body succeeds and is deleted if it does not.

    Raises:
        ConvertError: `out` exists already and is neither empty nor, with `overwrite`, a bundle; or cannot be written.
    """
    out = _real(out)
    check_place(out, overwrite)

    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial = out.with_name(f"{out.name}.partial-{token}")
    try:
        partial.mkdir()
        try:
            with open(partial / _LOCK, "wb") as lock:
                _lock(lock.fileno())
                yield partial
            (partial / _LOCK).unlink()
            _sync(partial)
            _check_free(out, overwrite)
            _put(partial, out, out.with_name(f"{out.name}.replaced-{token}"))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ConvertError(f"{out}: {error.strerror or error}") from error


def check_place(out: Path, overwrite: bool = False) -> None:
    """Raise ConvertError where `staged` would: `out` exists already, or the directory that is to hold it does not."""
    out = _real(out)
    if not out.parent.is_dir():
        raise ConvertError(f"{out.parent}: no such directory", "make it first")
    _clear_leftovers(out)
    _check_free(out, overwrite)


def _real(out: Path) -> Path:
    out = Path(os.path.abspath(out))
    return out.resolve() if out.is_symlink() else out


def check_space(directory: Path, needed: int) -> None:
    """Raise ConvertError where the disk that holds a directory has less than `needed` bytes left."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ConvertError(
            f"{directory}: converting needs {_megabytes(needed)} of disk space, {_megabytes(free)} are free",
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


def _put(partial: Path, out: Path, replaced: Path) -> None:
    """Rename `partial` to `out`; a bundle that is there moves away first and comes back if that fails."""
    if not out.exists():
        os.rename(partial, out)
    elif not any(out.iterdir()):
        out.rmdir()
        os.rename(partial, out)
    else:
        os.rename(out, replaced)
        try:
            os.rename(partial, out)
        except BaseException:
            os.rename(replaced, out)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


def _clear_leftovers(out: Path) -> None:
    for path in sorted(out.parent.iterdir()):
        if path.name.startswith(f"{out.name}.replaced-") and path.is_dir():
            if out.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.rename(path, out)
        elif path.name.startswith(f"{out.name}.partial-") and path.is_dir() and _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(partial: Path) -> bool:
    lock = partial / _LOCK
    try:
        if not lock.exists():
            return time.time() - partial.stat().st_mtime > _GRACE
        with open(lock, "r+b") as file:
            _lock(file.fileno())
        return True
    except OSError:
        return False


def _lock(descriptor: int) -> None:
    """Lock an open file until it is closed or the process ends; OSError where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync(directory: Path) -> None:
    """Have everything on the disk before the rename is: after a power cut there is a whole bundle or none."""
    for path in directory.iterdir():
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
