"""Importance matrices: how large the inputs of each matrix are, column by column, on a calibration text.

Quantising with one keeps the errors of a matrix where its inputs are small. They are computed by llama.cpp's own tool,
llama-imatrix, which is built and installed with the library.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pmpd_edge import gguf_info, native
from pmpd_edge.convert import child, quantize, tokens
from pmpd_edge.errors import BundleError, ConvertError
from pmpd_edge.gguf_info import GgufInfo

DEFAULT_TEXT = Path(__file__).parent / "data" / "calibration.txt"

CHUNK = 512  # tokens that are evaluated together, as llama-imatrix does unless told

_SUMS, _COUNTS = ".in_sum2", ".counts"

_CHUNKS = re.compile(r"computing over (\d+) chunks")
_DONE = re.compile(r"\[(\d+)\][^\[\]]*$")
_MAKE_ONE = "make one of this model with llama-imatrix, or leave --imatrix out"


@dataclass(frozen=True)
class Importance:
    """Where an importance matrix comes from: `file` or `text`, of which the other is None; `key` is its content's."""

    file: Path | None
    text: Path | None
    key: str


def choose(imatrix: Path | None, text: Path | None) -> Importance:
    """What is given, or the text that comes with this package.

    Args:
        imatrix: a file that llama-imatrix made.
        text: what to compute one from.

    Raises:
        ConvertError: the file cannot be read, or is empty.
    """
    path = imatrix or text or DEFAULT_TEXT
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConvertError(f"{path}: {error.strerror}", "give the path of a file") from None
    if not content.strip():
        raise ConvertError(f"{path}: empty", "give the path of another file")
    key = f"{path.name} {hashlib.sha256(content).hexdigest()}"  # what is computed keeps the text's name
    return Importance(imatrix, None if imatrix else path, key)


def compute(
    model: GgufInfo,
    text: Path,
    out: Path,
    threads: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Evaluate a text with a 16-bit model and write the importance matrix.

    Args:
        model: the 16-bit file.
        text: of at least two chunks, in UTF-8.
        out: the file to write.
        progress: called with the fraction of the text that is evaluated.

    Raises:
        ConvertError: the text is too short, or llama.cpp cannot evaluate the model.
        NativeError: the program is missing.
    """
    chunk = min(CHUNK, model.context_length)
    # By its name alone, in its directory: the file keeps the name, and two machines make the same file.
    arguments = ["--model", str(model.path.resolve()), "--file", text.name, "--output-file", str(out.resolve())]
    arguments += ["--output-format", "gguf", "--threads", str(threads)]
    arguments += ["--ctx-size", str(chunk), "--batch-size", str(chunk), "--ubatch-size", str(chunk)]
    chunks = 0

    def on_line(line: str) -> None:
        nonlocal chunks
        if match := _CHUNKS.search(line):
            chunks = int(match[1])
        elif (match := _DONE.search(line)) and chunks:
            progress(int(match[1]) / chunks)

    try:
        _run([*arguments, "--output-frequency", str(1 << 30)], on_line, text.absolute().parent)
    except child.ChildError as error:
        if error.reason == child.NO_SPACE:
            raise quantize.disk_full(out) from None
        count = _count_tokens(model, text)  # the program says so too, but may end before its words are out
        if count < 2 * chunk:
            raise ConvertError(
                f"{text}: {count} tokens are too few for an importance matrix", f"give a text of {2 * chunk} or more"
            ) from None
        raise ConvertError(
            f"{model.path.name}: llama-imatrix cannot evaluate it ({error.reason})", "use --no-imatrix"
        ) from None
    try:
        read(out)  # the program does not notice that a disk is full
    except ConvertError as error:
        if quantize.is_disk_full(out):
            raise quantize.disk_full(out) from None
        raise ConvertError(f"llama-imatrix wrote none: {error.message}", "use --no-imatrix") from None


def _count_tokens(model: GgufInfo, text: Path) -> float:
    try:
        (ids,) = tokens.tokenize(model.path, [text.read_text(encoding="utf-8", errors="replace")])[""]
    except child.ChildError:
        return math.inf
    return len(ids or ())


def take(given: Path, model: GgufInfo, out: Path) -> None:
    """Copy an importance matrix that a user has, in its present form (GGUF) and checked against a model.

    Raises:
        ConvertError: it is none, or of another model.
    """
    chunk = _chunk(given)
    quoted = '"' + str(given).replace('"', '""') + '"'  # in the program's eyes it is a row of a table
    # The model is not loaded, but the program insists on one.
    arguments = ["--model", str(model.path.resolve()), "--in-file", quoted, "--output-file", str(out)]
    arguments += ["--output-format", "gguf", "--ctx-size", str(chunk), "--batch-size", str(chunk)]
    try:
        _run(arguments)
    except child.ChildError as error:
        if error.reason == child.NO_SPACE or quantize.is_disk_full(out):
            raise quantize.disk_full(out) from None
        raise ConvertError(f"{given}: not an importance matrix ({error.reason})", _MAKE_ONE) from None
    _check(given, read(out, given), model)


def _chunk(given: Path) -> int:
    """The tokens of a chunk of an importance matrix's text, where it says so.

    Raises:
        ConvertError: it is none. The program may break on a damaged one, and takes gigabytes for a text.
    """
    with open(given, "rb") as file:
        start = file.read(16)
    if start[:4] == b"GGUF":
        read(given)
        size = gguf_info.read(given).metadata.get("imatrix.chunk_size")
        return size if isinstance(size, int) and 0 < size < 1 << 20 else CHUNK
    # As llama-imatrix once wrote them: the number of matrices, then for each the length of its name, and the name.
    matrices, length = (int.from_bytes(start[at : at + 4], "little") for at in (0, 4))
    if not (0 < matrices < 1 << 20 and 0 < length < 256 and start[8 : 8 + length].decode("latin-1").isprintable()):
        raise ConvertError(f"{given}: not an importance matrix", _MAKE_ONE)
    return CHUNK


def _check(given: Path, found: Mapping[str, npt.NDArray[np.float32]], model: GgufInfo) -> None:
    """Raise ConvertError where an importance matrix is not of a model."""
    shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    for name, values in found.items():
        shape = shapes.get(name)
        if shape and len(values) != shape[0] * (shape[2] if len(shape) > 2 else 1):
            raise ConvertError(f"{given}: of another model: {name} has {shape[0]} columns here", _MAKE_ONE)
    if not set(found) & set(shapes):
        raise ConvertError(f"{given}: of another model: it knows none of the matrices", _MAKE_ONE)


def read(path: Path, given: Path | None = None) -> dict[str, npt.NDArray[np.float32]]:
    """Mean squares of a matrix's inputs by the matrix's name, `[n_matrices * columns]` with the experts of a mixture.

    As llama-quantize reads them: an expert that no token reached has ones.

    Args:
        path: the file, a GGUF.
        given: the user's, which it was made from.

    Raises:
        ConvertError: the file is none of llama-imatrix.
    """
    try:
        info = gguf_info.read(path)
    except BundleError as error:
        raise ConvertError(error.message, _MAKE_ONE) from None
    tensors = {tensor.name: tensor for tensor in info.tensors}
    given = given or path

    def floats(name: str) -> npt.NDArray[np.float32]:
        tensor = tensors[name]
        if tensor.type != "F32":
            raise ConvertError(f"{given}: not an importance matrix: {name} is {tensor.type}", _MAKE_ONE)
        return np.fromfile(path, np.float32, tensor.elements, offset=info.data_start + tensor.offset)

    means = {}
    for name in (name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)):
        if name + _COUNTS not in tensors:
            raise ConvertError(f"{given}: not an importance matrix: no counts of {name}", _MAKE_ONE)
        counts, sums = floats(name + _COUNTS), floats(name + _SUMS)
        if not counts.size or not sums.size or sums.size % counts.size:
            raise ConvertError(f"{given}: not an importance matrix: {counts.size} counts of {name}", _MAKE_ONE)
        sums = sums.reshape(counts.size, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(counts[:, None] > 0, sums / counts[:, None], np.float32(1))
        if not np.isfinite(mean).all():
            raise ConvertError(f"{given}: values of {name} are not finite", "make it again with llama-imatrix")
        means[name] = mean.astype(np.float32).ravel()
    if not means:
        raise ConvertError(f"{given}: not an importance matrix: it has no {_SUMS}", _MAKE_ONE)
    return means


def chunks(path: Path) -> int:
    """The number of chunks of text that an importance matrix was computed from; 0 if it does not say."""
    return int(gguf_info.read(path).metadata.get("imatrix.chunk_count", 0))


def _run(arguments: Sequence[str], on_line: Callable[[str], None] = lambda line: None, cwd: Path | None = None) -> None:
    child.run_program([str(native.program("llama-imatrix")), *arguments, "--log-colors", "off"], on_line, cwd)
