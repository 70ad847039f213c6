"""What a conversion starts from: a model's directory, a model on the Hugging Face Hub, or a 16-bit GGUF file."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pmpd_edge import gguf_info
from pmpd_edge.convert import checkpoint, child, quantize, staging
from pmpd_edge.convert.checkpoint import Checkpoint
from pmpd_edge.convert.values import Stored
from pmpd_edge.errors import BundleError, ConvertError, DiskFullError
from pmpd_edge.gguf_info import GgufInfo

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")

# Besides the weights: configuration, tokenizer in all its forms, chat template, code, model card, licence.
_SMALL_FILES = (
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "*.tiktoken",
    "*.py",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
)
_POOLING = "*_Pooling/config.json"  # of models for embeddings: upstream's converter follows modules.json to it
_SAFETENSORS, _PICKLED = "model*.safetensors", "pytorch_model*.bin"

# Of a GGUF to start from; anything else was quantised before.
_WHOLE_TYPES = ("F32", "F16", "BF16")
_TYPE_IN_NAME = re.compile(r"[-._](f32|f16|bf16|fp16|fp32|16)$", re.IGNORECASE)

_CONVERT_WHOLE = "convert the original model instead, or a file of F32, F16 or BF16"


@dataclass(frozen=True)
class Source:
    """A model on this machine.

    Attributes:
        path: the directory of a Hugging Face model, or a GGUF file.
        repo: where it comes from: the Hub's `org/name`, or the name of the file or directory.
        revision: the commit; empty where it does not come from the Hub.
    """

    path: Path
    repo: str
    revision: str = ""

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()


def default_name(source: str | os.PathLike[str]) -> str:
    """What a bundle is called if nobody says otherwise: as the directory, the Hub's model or the GGUF file is."""
    path = Path(source).expanduser()
    if path.is_file():
        return _TYPE_IN_NAME.sub("", path.stem)
    match = None if path.is_dir() else _HUB_ID.fullmatch(os.fspath(source))
    return match["repo"].rpartition("/")[2] if match else path.resolve().name


def find(
    source: str | os.PathLike[str],
    *,
    show_download: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Source:
    """Find a model, and download what is needed of it where it is on the Hub.

    Args:
        source: a directory, a GGUF file, or a Hub id: `org/name` or `org/name@revision`. What exists comes first.
        show_download: draw the progress of downloads.
        note: called with a line where the Hub is not reached but its cache has the model.

    Raises:
        ConvertError: there is nothing of that name, or the Hub does not give it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return Source(path, repo=path.resolve().name)
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(4) == b"GGUF":
                return Source(path, repo=path.name)
        raise ConvertError(f"{path}: not a directory or a GGUF file", "give the directory of a Hugging Face model")
    match = _HUB_ID.fullmatch(os.fspath(source))
    if not match:
        raise ConvertError(
            f"{path}: no such directory", "give the directory of a Hugging Face model, or its Hub id org/name"
        )
    return _download(match["repo"], match["revision"], show_download, note)


def inspect(source: Source, trust_remote_code: bool = False) -> Checkpoint:
    """Check, by what the headers say, that a source is whole and can be converted.

    Raises:
        ConvertError: it cannot; with the reason.
    """
    if not source.is_gguf:
        return checkpoint.inspect(source.path, trust_remote_code)
    try:
        info = gguf_info.read(source.path)
    except BundleError as error:
        raise ConvertError(error.message, "download the file again") from None
    if int(info.metadata.get("split.count", 1)) > 1:
        raise ConvertError(f"{source.path}: one part of a model in several files", "merge them with llama-gguf-split")
    for tensor in info.tensors:
        if tensor.type not in _WHOLE_TYPES:
            raise ConvertError(
                f"{source.path}: tensor {tensor.name} is {tensor.type}: quantising it again would lose more",
                _CONVERT_WHOLE,
            )
    vocabulary = [tensor for tensor in info.tensors if tensor.name in gguf_info.VOCABULARY_MATRICES]
    return Checkpoint(
        path=source.path,
        elements=sum(tensor.elements for tensor in info.tensors),
        embedding_elements=sum(tensor.elements for tensor in vocabulary),
        tensors=stored(info),
    )


def stored(info: GgufInfo) -> tuple[Stored, ...]:
    """Where the tensors of a GGUF file are."""
    return tuple(
        Stored(info.path, tensor.name, tensor.type, tensor.shape, info.data_start + tensor.offset, tensor.bytes)
        for tensor in info.tensors
    )


def fingerprint(source: Source) -> list[list[str | int]]:
    """Names, sizes and times of a source's files: whether it is what it was when a conversion was stopped."""
    files = [source.path] if source.is_gguf else sorted(path for path in source.path.iterdir() if path.is_file())
    status = [(str(path.absolute()), path.stat()) for path in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in status]


def copy_gguf(
    source: Source,
    out: Path,
    type_16: str | None = None,
    threads: int | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Make the 16-bit level of a bundle from a GGUF file: a copy, so that nothing done to the original changes it.

    Args:
        type_16: "F16" or "BF16"; None keeps the type of the file, and takes F16 for F32.
        threads: for changing the type; None for all cores.
        progress: called with the fraction that is written, where the type changes.

    Raises:
        ConvertError: the disk is full, or llama.cpp does not load the file.
    """
    info = gguf_info.read(source.path)
    type_16 = type_16 or ("F16" if info.type == "F32" else info.type)
    if any(len(tensor.shape) > 1 and tensor.type != type_16 for tensor in info.tensors):
        number, _, _ = gguf_info.TYPES[type_16]
        job = {
            "source": str(source.path),
            "out": str(out),
            "ftype": f"LLAMA_FTYPE_MOSTLY_{type_16}",
            "vocabulary_type": number,
            "threads": threads or os.cpu_count() or 1,
        }
        quantize.run_job("quantize", job, out, type_16, progress)
        return
    try:
        shutil.copyfile(source.path, out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(out.name.removesuffix(staging.UNFINISHED)) from None
        raise


def _download(repo: str, revision: str | None, show: bool, note: Callable[[str], None]) -> Source:
    """Get the files that converting needs from the Hub, or from its cache where the Hub cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    named = f"{repo}@{revision}" if revision else repo
    try:
        with _progress_bars(show):
            try:
                info = HfApi().model_info(repo, revision=revision)
            except Exception as error:
                if not _is_unreachable(error):
                    raise
                try:
                    # What is needed besides is looked for below: caches that other programs filled have not all files.
                    wanted = ["config.json"]
                    path = Path(
                        snapshot_download(repo, revision=revision, allow_patterns=wanted, local_files_only=True)
                    )
                except LocalEntryNotFoundError:
                    raise error from None
                _check_cached(path, named)
                note(f"{named}: the Hub is not reached; converting what its cache has, commit {path.name}")
            else:
                wanted = _choose([file.rfilename for file in info.siblings or ()], named)
                # By the name that was asked for: the cache then knows what it stands for when the Hub is not reached.
                path = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise _explain(named, error) from error
    return Source(path, repo=repo, revision=path.name)


def _choose(files: Sequence[str], named: str) -> list[str]:
    """The files to download: safetensors, or pickled weights where there are none; of subdirectories, pooling alone."""
    from fnmatch import fnmatch

    top = [file for file in files if "/" not in file]
    if "config.json" not in top:
        raise ConvertError(f"{named}: no config.json: not a Hugging Face model", "give the Hub id of one")
    weights = [file for file in top if fnmatch(file, _SAFETENSORS)] or [file for file in top if fnmatch(file, _PICKLED)]
    if not weights:
        raise ConvertError(
            f"{named}: no weights ({_SAFETENSORS} or {_PICKLED})", "give the Hub id of the model that it was made from"
        )
    small = [file for file in top if any(fnmatch(file, pattern) for pattern in _SMALL_FILES)]
    return [*weights, *small, *(file for file in files if fnmatch(file, _POOLING))]


def _check_cached(path: Path, named: str) -> None:
    """Raise ConvertError where the cache holds a part of a model alone: an index names those of its weights."""
    try:
        checkpoint.inspect(path, trust_remote_code=True)
    except ConvertError as error:
        raise ConvertError(
            f"{named}: the Hub is not reached, and its cache has not all of the model ({error.message})",
            "go online (unset HF_HUB_OFFLINE) and convert again",
        ) from None


def _is_unreachable(error: Exception) -> bool:
    """Whether the Hub was not asked or did not answer; the HTTP library differs between versions of huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return True
    if isinstance(error, HfHubHTTPError):
        response = getattr(error, "response", None)
        return getattr(response, "status_code", 0) >= 500
    libraries = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
    return isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.partition(".")[0] in libraries


def _explain(named: str, error: Exception) -> Exception:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, ConvertError):
        return error
    if isinstance(error, GatedRepoError):  # is a RepositoryNotFoundError too
        return ConvertError(f"{named}: gated", "accept the licence on the model's page, then set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return ConvertError(f"{named}: the Hub's model has no such revision", "give a branch, tag or commit of it")
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        return ConvertError(
            f"{named}: neither a directory nor a model on the Hub", "check the name; for a private model set HF_TOKEN"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return ConvertError(
            f"{named}: not a directory, offline (HF_HUB_OFFLINE), and not in the Hub's cache",
            "go online, or give a directory",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ConvertError(f"{named}: {child.NO_SPACE} while downloading", "free some, or set HF_HOME to another disk")
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if _is_unreachable(error):
        return ConvertError(
            f"{named}: not a directory, and the Hub cannot be reached ({reason})",
            "check the network and convert again: what was downloaded is kept",
        )
    if isinstance(error, (HfHubHTTPError, OSError)):
        return ConvertError(
            f"{named}: the Hub does not give it ({reason})", "convert again: what was downloaded is kept"
        )
    return error


@contextmanager
def _progress_bars(show: bool) -> Iterator[None]:
    """Switch the bars of huggingface_hub off, where they are on and not wanted."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if show or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
