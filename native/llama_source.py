"""Make the patched llama.cpp source tree that native/CMakeLists.txt builds.

    python llama_source.py TREE [--archive FILE]

The source is the archive pinned in llama.pin: FILE or $PMPD_LLAMA_ARCHIVE if given, else downloaded with pip and kept
beside TREE. Only what is built or installed is unpacked, then patches/*.patch are applied in order. TREE is replaced in
one rename when all of that has worked, and left alone while pin and patches stay the same. Files whose content has not
changed keep their time stamps, so that a changed patch recompiles only what it touches.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
UPSTREAM = "vendor/llama.cpp/"  # where llama.cpp lies inside the archive
WANTED = (
    "CMakeLists.txt",
    "LICENSE",
    "cmake/",
    "common/",
    "conversion/",
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "ggml/",
    "gguf-py/LICENSE",
    "gguf-py/gguf/",
    "include/",
    "licenses/",
    "src/",
    "tools/imatrix/",
    "tools/llama-bench/",
    "vendor/",
)
STAMP = ".pmpd-stamp"


class SourceError(Exception):
    """One line that says what is wrong, where, and the way out."""


@dataclass(frozen=True)
class Pin:
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        return f"llama_cpp_python-{self.version}.tar.gz"

    @classmethod
    def read(cls, path: Path) -> Pin:
        match = re.search(r"^llama-cpp-python==(\S+) --hash=sha256:([0-9a-f]{64})$", path.read_text(), re.MULTILINE)
        if not match:
            raise SourceError(f"{path}: no line 'llama-cpp-python==VERSION --hash=sha256:HEX' in it")
        return cls(*match.groups())


def prepare(tree: Path, pin: Pin, patches: list[Path], archive: Path | None = None) -> bool:
    """Bring tree to the pinned source with patches applied; True if anything had to be done."""
    stamp = _stamp(pin, patches)
    if (tree / STAMP).is_file() and (tree / STAMP).read_text() == stamp:
        return False
    tree.parent.mkdir(parents=True, exist_ok=True)
    # In the directory of tree: a rename works only within one file system.
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".llama-source-") as scratch:
        fresh, replaced = Path(scratch, "fresh"), Path(scratch, "replaced")
        _unpack(_archive(pin, archive, tree.parent), fresh)
        for patch in patches:
            _apply(patch, fresh)
        _keep_times(fresh, tree)
        (fresh / STAMP).write_text(stamp)
        if tree.exists():
            tree.rename(replaced)
        fresh.rename(tree)
    return True


def _stamp(pin: Pin, patches: list[Path]) -> str:
    """Everything that decides what the tree holds."""
    lines = [f"{pin.archive} {pin.sha256}", *WANTED]
    lines += [f"{patch.name} {_sha256(patch)}" for patch in patches]
    return "\n".join(lines) + "\n"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _archive(pin: Pin, given: Path | None, cache: Path) -> Path:
    """The pinned archive: the given one, the one downloaded earlier, or a new download."""
    if given is not None:
        if not given.is_file():
            raise SourceError(f"{given}: no such file; PMPD_LLAMA_ARCHIVE has to name a copy of {pin.archive}")
        return _checked(given, pin)
    kept = cache / pin.archive
    if not (kept.is_file() and _sha256(kept) == pin.sha256):
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
            _download(pin, Path(scratch))
            _checked(Path(scratch, pin.archive), pin).replace(kept)
    return kept


def _checked(path: Path, pin: Pin) -> Path:
    found = _sha256(path)
    if found != pin.sha256:
        raise SourceError(f"{path}: SHA-256 is {found}, expected {pin.sha256}; get {pin.archive} anew")
    return path


def _download(pin: Pin, directory: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "llama-cpp-python", "--dest", str(directory), f"llama-cpp-python=={pin.version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not (directory / pin.archive).is_file():
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no reason given"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise SourceError(
            f"pip could not download llama-cpp-python=={pin.version} ({errors[-1]}); "
            f"to build without network set PMPD_LLAMA_ARCHIVE to a copy of {pin.archive}"
        )


def _unpack(archive: Path, tree: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]  # less the archive's top directory
            if not (member.isfile() and name.startswith(UPSTREAM)):
                continue
            name = name[len(UPSTREAM) :]
            # A whole file, or below a directory: entries that are directories end with a slash.
            if name in WANTED or name.startswith(tuple(entry for entry in WANTED if entry.endswith("/"))):
                target = tree / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, target.open("wb") as file:  # type: ignore[union-attr]
                    shutil.copyfileobj(source, file)
    if not tree.is_dir():
        raise SourceError(f"{archive}: has no {UPSTREAM} to build; check llama.pin")


class _Complaints(logging.Handler):
    """Collects what patch_ng logs, which is more than it returns."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


def _apply(patch: Path, tree: Path) -> None:
    """Apply exactly: every warning is a failure, because patch_ng calls 'already patched' a success."""
    try:
        import patch_ng
    except ImportError:
        raise SourceError(f"{sys.executable} has no patch_ng to apply {patch}; pip install patch-ng") from None

    complaints = _Complaints()
    logger = logging.getLogger("patch_ng")
    logger.addHandler(complaints)
    try:
        parsed = patch_ng.fromfile(str(patch))
        if parsed:
            complaints.lines += _unsupported(parsed.items, tree)
        applied = parsed and not complaints.lines and parsed.apply(root=str(tree))
    finally:
        logger.removeHandler(complaints)
    if not applied or complaints.lines:
        reason = "; ".join(complaints.lines) or "not a patch"
        raise SourceError(f"{patch}: does not apply ({reason}); make it anew against the source named in llama.pin")


def _unsupported(items: list, tree: Path) -> list[str]:
    """What patch_ng would do without looking: overwrite, delete and rename."""
    reasons = []
    for item in items:
        old, new = (name.decode().removeprefix(side) for name, side in ((item.source, "a/"), (item.target, "b/")))
        if old == "/dev/null":
            if (tree / new).exists():
                reasons.append(f"{new} is there already")
        elif old != new:
            reasons.append(f"would delete or rename {old}")
    return reasons


def _keep_times(fresh: Path, old: Path) -> None:
    """Give every file of fresh that old has with the same content the time stamp it has there."""
    for path in fresh.rglob("*"):
        before = old / path.relative_to(fresh)
        if path.is_file() and before.is_file() and path.read_bytes() == before.read_bytes():
            times = before.stat()
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, metavar="TREE")
    parser.add_argument("--archive", type=Path, default=os.environ.get("PMPD_LLAMA_ARCHIVE") or None, metavar="FILE")
    args = parser.parse_args()
    try:
        prepare(args.tree, Pin.read(HERE / "llama.pin"), sorted(HERE.glob("patches/*.patch")), args.archive)
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
