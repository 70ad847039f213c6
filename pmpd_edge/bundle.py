"""The bundle: a directory with a manifest, `pmpd.json`, and the GGUF files of a model's precisions.

This module reads, checks and writes manifests and finds bundles by path or Hub id. It knows nothing about llama.cpp:
what is inside the GGUF files is checked where they are loaded (levels.py), all but their first bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pmpd_edge import gguf_info
from pmpd_edge.errors import BundleError

MANIFEST = "pmpd.json"
REPORT = "report.json"
FORMAT = "pmpd-bundle"
VERSION = 1
LAYOUTS = ("separate", "nested")
PRECISIONS = (16, 8, 6, 5, 4, 3, 2)
DEFAULT_MODEL = "translator-7m"

CONVERT_AGAIN = "get the bundle again, or make it with 'pmpd-edge convert'"

# Reserved on Windows or with a meaning in a path; everything else that has no separator is a plain file name.
_PLAIN_NAME = re.compile(r"[^\x00-\x1f/\\:*?\"<>|]+")


@dataclass(frozen=True)
class Fallback:
    """Tensors of a file that have another type than the file's, because their shape does not allow that one."""

    type: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class WeightsFile:
    """One GGUF file: its tensor type, size, hash and real bits per weight.

    Attributes:
        fallbacks: what is of another type, as its shape does not allow this one.
        bpw_by_class: real bits per weight of embeddings, output, attention, feed-forward, other.
        overrides: what was asked to be of another type: regular expressions for tensors' names, and types.
        imatrix: whether it was made with the importance matrix.
    """

    type: str
    bytes: int
    sha256: str
    bpw: float
    fallbacks: tuple[Fallback, ...] = ()
    bpw_by_class: Mapping[str, float] = field(default_factory=dict)
    overrides: tuple[tuple[str, str], ...] = ()
    imatrix: bool = False


@dataclass(frozen=True)
class ImatrixFile:
    """The importance matrix of a bundle, and what it was computed from: a text's name and number of chunks."""

    file: str
    sha256: str
    text: str
    chunks: int


@dataclass(frozen=True)
class PredictorFile:
    """The learned scheduler's predictor, the pairs of precisions that it was trained for, and what training found."""

    file: str
    sha256: str
    pairs: tuple[tuple[int, int], ...]
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Level:
    """One precision: the files whose matrices, summed, are its weights (a base, then its residuals)."""

    precision: int
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Switch:
    """From decode step `step` (1 is the first) on, the precision is `precision`."""

    step: int
    precision: int


@dataclass(frozen=True)
class StaticSchedule:
    """The switches of a static schedule, by rising step; the first one is at step 1."""

    switches: tuple[Switch, ...]
    max_new_tokens: int

    def __post_init__(self) -> None:
        steps = [switch.step for switch in self.switches]
        if not steps or steps[0] != 1 or any(a >= b for a, b in pairwise(steps)):
            raise BundleError(f"schedule with switches at steps {steps}", "the first is 1 and the others rise")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, as its manifest describes it.

    Attributes:
        path: the directory.
        parameters: all weights of the model, embeddings included.
        context_length: the number of tokens that the model was trained on.
        levels: sorted from the highest precision to the lowest.
        prefill: the precision at which prompts are evaluated.
    """

    path: Path
    name: str
    source: Mapping[str, str]
    architecture: str
    parameters: int
    context_length: int
    tokenizer_sha256: str
    layout: str
    files: Mapping[str, WeightsFile]
    levels: tuple[Level, ...]
    prefill: int
    schedule: StaticSchedule
    predictor: PredictorFile | None = None
    calibration: Mapping[str, Any] | None = field(default=None)
    imatrix: ImatrixFile | None = None

    @property
    def precisions(self) -> tuple[int, ...]:
        """All precisions, from the highest to the lowest."""
        return tuple(level.precision for level in self.levels)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of all files: two bundles that share it compute the same numbers."""
        levels = [[level.precision, [self.files[name].sha256 for name in level.weights]] for level in self.levels]
        return hashlib.sha256(json.dumps(levels).encode()).hexdigest()

    def level(self, precision: int) -> Level:
        """Return the level of a precision; raises BundleError if there is none."""
        for level in self.levels:
            if level.precision == precision:
                return level
        have = ", ".join(map(str, self.precisions))
        raise BundleError(f"{self.path}: no level of precision {precision}", f"choose one of {have}")

    def paths(self, level: Level) -> tuple[Path, ...]:
        """The files of a level, in the order in which they are summed."""
        return tuple(self.path / name for name in level.weights)

    def bpw(self, level: Level) -> float:
        """Real bits per weight of a level: its files', summed."""
        return sum(self.files[name].bpw for name in level.weights)

    def verify(self, progress: Callable[[int], None] = lambda n_bytes: None) -> None:
        """Check the SHA-256 of every file, and that of its tokenizer.

        Args:
            progress: called with the number of bytes read since the last call.

        Raises:
            BundleError: a file is not the one that was written, or has another tokenizer.
        """
        hashes = {name: file.sha256 for name, file in self.files.items()}
        hashes |= {extra.file: extra.sha256 for extra in (self.imatrix, self.predictor) if extra}
        for name, expected in hashes.items():
            if sha256_file(self.path / name, progress) != expected:
                raise BundleError(f"{self.path / name}: damaged (its SHA-256 is not the manifest's)", CONVERT_AGAIN)
        for name in self.files:
            self.check_tokenizer(name)

    def check_tokenizer(self, name: str) -> None:
        """Raise BundleError where a file has not the tokenizer of the manifest, which all levels share."""
        if gguf_info.read(self.path / name).tokenizer_sha256 != self.tokenizer_sha256:
            raise BundleError(f"{self.path / name}: its tokenizer is not that of the manifest", CONVERT_AGAIN)


def in_one_line(text: str) -> str:
    """A text that anybody may have written, without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def sha256_file(path: Path, progress: Callable[[int], None] = lambda n_bytes: None) -> str:
    """SHA-256 of a file in hexadecimal, read in blocks of 4 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def default_bundle() -> Path:
    """The directory of the small model that ships in the package."""
    return Path(__file__).parent / "models" / DEFAULT_MODEL


def resolve(source: str | os.PathLike[str] | None) -> Path:
    """Find a bundle's directory.

    Args:
        source: a directory, a Hub id (`org/name` or `org/name@revision`), or None for the default model.

    Raises:
        BundleError: there is no such directory, and no such bundle on the Hub or in its local cache.
    """
    if source is None:
        return default_bundle()
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BundleError(f"{path}: not a bundle", f"give the directory that holds {MANIFEST}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(source)):
        return _download(str(source))
    raise BundleError(f"{path}: no such bundle", "give a directory made by 'pmpd-edge convert', or a Hub id org/name")


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    repo, _, revision = source.partition("@")
    try:
        patterns = [MANIFEST, "*.gguf", "*.md", REPORT]
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # huggingface_hub raises many kinds; all mean that the bundle is not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(f"{source}: neither a directory nor a bundle that the Hub gives ({reason})") from error


def load(path: Path) -> Bundle:
    """Read and check a bundle's manifest and the presence, size and GGUF magic of its files.

    Raises:
        BundleError: with the file and what is wrong with it.
    """
    manifest = path / MANIFEST
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path}: not a bundle (no {MANIFEST})", CONVERT_AGAIN) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{manifest}: not readable ({error})", CONVERT_AGAIN) from None

    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f"{manifest}: not the manifest of a bundle", CONVERT_AGAIN)
    if document.get("version") != VERSION:
        version = document.get("version")
        raise BundleError(f"{manifest}: format version {version!r}, this program reads {VERSION}", CONVERT_AGAIN)

    try:
        bundle = _from_document(path, document)
    except BundleError as error:
        raise BundleError(f"{manifest}: {error.message}", error.hint) from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{manifest}: damaged ({what})", CONVERT_AGAIN) from None

    _check_consistency(bundle)
    _check_files(bundle)
    return bundle


def _from_document(path: Path, document: dict[str, Any]) -> Bundle:
    levels = [Level(_count(level, "precision"), tuple(map(str, level["weights"]))) for level in document["levels"]]
    schedule = document["schedule"]
    if schedule["kind"] != "static":
        raise ValueError(f"schedule of kind {schedule['kind']!r}")
    switches = tuple(Switch(_count(s, "step"), _count(s, "precision")) for s in schedule["switches"])
    return Bundle(
        path=path,
        name=_word(document, "name"),
        source=dict(document["source"]),
        architecture=_word(document, "architecture"),
        parameters=_count(document, "parameters"),
        context_length=_count(document, "context_length"),
        tokenizer_sha256=str(document["tokenizer_sha256"]),
        layout=str(document["layout"]),
        files={str(name): _file_from_document(file) for name, file in document["files"].items()},
        levels=tuple(sorted(levels, key=lambda level: -level.precision)),
        prefill=_count(document, "prefill"),
        schedule=StaticSchedule(switches, _count(schedule, "max_new_tokens")),
        predictor=_predictor_from_document(document.get("predictor")),
        calibration=document.get("calibration"),
        imatrix=_imatrix_from_document(document.get("imatrix")),
    )


def _count(document: Mapping[str, Any], key: str) -> int:
    """A positive whole number that C's int32_t can hold, or for `parameters` and `bytes` its int64_t."""
    value = document[key]
    limit = 2**63 if key in ("parameters", "bytes") else 2**31
    if type(value) is not int or not 0 < value < limit:
        raise ValueError(f"{key} {value!r}")
    return value


def _word(document: Mapping[str, Any], key: str) -> str:
    """A text in one line, as it may be printed on a terminal."""
    return _printable(key, document[key])


def _printable(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{key} {value!r}")
    return value


def _bpw(value: Any) -> float:
    bpw = float(value)
    if not 0 <= bpw < math.inf:
        raise ValueError(f"bpw {bpw}")
    return bpw


def _file_from_document(file: dict[str, Any]) -> WeightsFile:
    fallbacks = tuple(Fallback(str(f["type"]), tuple(map(str, f["tensors"]))) for f in file.get("fallbacks", ()))
    by_class = {_printable("bpw_by_class", label): _bpw(bpw) for label, bpw in file.get("bpw_by_class", {}).items()}
    return WeightsFile(
        type=_word(file, "type"),
        bytes=_count(file, "bytes"),
        sha256=_word(file, "sha256"),
        bpw=_bpw(file["bpw"]),
        fallbacks=fallbacks,
        bpw_by_class=by_class,
        overrides=tuple((str(o["tensors"]), str(o["type"])) for o in file.get("overrides", ())),
        imatrix=bool(file.get("imatrix", False)),
    )


def _imatrix_from_document(document: dict[str, Any] | None) -> ImatrixFile | None:
    if not document:
        return None
    return ImatrixFile(
        file=_word(document, "file"),
        sha256=_word(document, "sha256"),
        text=_word(document, "text"),
        chunks=_count(document, "chunks") if document["chunks"] else 0,  # where it is not known
    )


def _predictor_from_document(document: dict[str, Any] | None) -> PredictorFile | None:
    if not document:
        return None
    pairs = tuple((_count(pair, "high"), _count(pair, "low")) for pair in document["pairs"])
    training = document.get("training") or {}
    if not isinstance(training, dict):
        raise ValueError("training of the predictor")
    return PredictorFile(_word(document, "file"), _word(document, "sha256"), pairs, training)


def _predictor_to_document(predictor: PredictorFile) -> dict[str, Any]:
    pairs = [{"high": high, "low": low} for high, low in predictor.pairs]
    return {
        "file": predictor.file,
        "sha256": predictor.sha256,
        "pairs": pairs,
        "training": dict(predictor.training),
    }


def _file_to_document(file: WeightsFile) -> dict[str, Any]:
    document: dict[str, Any] = {"type": file.type, "bytes": file.bytes, "sha256": file.sha256, "bpw": file.bpw}
    if file.bpw_by_class:  # optional, as all below: bundles are older than these fields
        document["bpw_by_class"] = dict(file.bpw_by_class)
    if file.fallbacks:
        document["fallbacks"] = [{"type": f.type, "tensors": list(f.tensors)} for f in file.fallbacks]
    if file.overrides:
        document["overrides"] = [{"tensors": pattern, "type": kind} for pattern, kind in file.overrides]
    if file.imatrix:
        document["imatrix"] = True
    return document


def _check_consistency(bundle: Bundle) -> None:
    manifest = bundle.path / MANIFEST

    def problems() -> Iterator[str]:
        for name in (*bundle.files, *(extra.file for extra in (bundle.imatrix, bundle.predictor) if extra)):
            if not _PLAIN_NAME.fullmatch(name) or name in (".", ".."):
                yield f"file name {name!r}, which would lead out of the bundle"
        if bundle.layout not in LAYOUTS:
            yield f"layout {bundle.layout!r}"
        if not bundle.levels:
            yield "no levels"
        if len(set(bundle.precisions)) < len(bundle.levels):
            yield "a precision twice"
        for level in bundle.levels:
            if level.precision not in PRECISIONS:
                yield f"precision {level.precision}"
            if not level.weights or not set(level.weights) <= set(bundle.files):
                yield f"level {level.precision} with files that are not listed"
            if len(level.weights) > 1 and bundle.layout == "separate":
                yield f"level {level.precision} of several files in the separate layout"
        for precision in (bundle.prefill, *(switch.precision for switch in bundle.schedule.switches)):
            if precision not in bundle.precisions:
                yield f"prefill or schedule at precision {precision}, which no level has"

    for problem in problems():
        raise BundleError(f"{manifest}: {problem}", CONVERT_AGAIN)


def _check_files(bundle: Bundle) -> None:
    # A predictor is looked for where it is used: without it, a new one can be trained.
    if bundle.imatrix and not (bundle.path / bundle.imatrix.file).is_file():
        raise BundleError(f"{bundle.path / bundle.imatrix.file}: No such file or directory", CONVERT_AGAIN)
    for name, file in bundle.files.items():
        path = bundle.path / name
        try:
            size = path.stat().st_size
            with open(path, "rb") as opened:
                magic = opened.read(4)
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}", CONVERT_AGAIN) from None
        if size != file.bytes:
            raise BundleError(f"{path}: {size} bytes, the manifest says {file.bytes}", CONVERT_AGAIN)
        if magic != b"GGUF":
            raise BundleError(f"{path}: not a GGUF file", CONVERT_AGAIN)


def to_document(bundle: Bundle) -> dict[str, Any]:
    """The manifest of a bundle, as `load` reads it."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "name": bundle.name,
        "source": dict(bundle.source),
        "architecture": bundle.architecture,
        "parameters": bundle.parameters,
        "context_length": bundle.context_length,
        "tokenizer_sha256": bundle.tokenizer_sha256,
        "layout": bundle.layout,
        "files": {name: _file_to_document(file) for name, file in bundle.files.items()},
        "levels": [{"precision": level.precision, "weights": list(level.weights)} for level in bundle.levels],
        "prefill": bundle.prefill,
        "schedule": {
            "kind": "static",
            "switches": [{"step": s.step, "precision": s.precision} for s in bundle.schedule.switches],
            "max_new_tokens": bundle.schedule.max_new_tokens,
        },
        "predictor": _predictor_to_document(bundle.predictor) if bundle.predictor else None,
        "calibration": bundle.calibration,
    }
    if bundle.imatrix:
        document["imatrix"] = dataclasses.asdict(bundle.imatrix)
    return document


def write(bundle: Bundle) -> None:
    """Write the manifest into the bundle's directory; it appears whole or not at all."""
    _check_consistency(bundle)
    partial = bundle.path / (MANIFEST + ".partial")
    partial.write_text(json.dumps(to_document(bundle), indent=1) + "\n", encoding="utf-8")
    os.replace(partial, bundle.path / MANIFEST)


def check_writable(bundle: Bundle) -> None:
    """Raise BundleError where nothing can be written into the bundle: before hours of work, not after them."""
    if not os.access(bundle.path, os.W_OK):
        raise BundleError(f"{bundle.path}: not writable", "copy the bundle to a place of yours and work on that")


def update(bundle: Bundle, **changes: Any) -> Bundle:
    """Write changes into the manifest as it is now: somebody else may have changed other things since it was loaded.

    Raises:
        BundleError: the weights are no longer those of `bundle`.
    """
    now = load(bundle.path)
    if now.fingerprint != bundle.fingerprint:
        raise BundleError(f"{bundle.path}: replaced by another bundle while this ran", "run it again")
    changed = dataclasses.replace(now, **changes)
    write(changed)
    return changed
