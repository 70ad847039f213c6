"""The tensor types of levels below 16 bits, and llama.cpp's own quantiser, which makes them from a 16-bit GGUF."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmpd_edge import gguf_info
from pmpd_edge.convert import child, staging
from pmpd_edge.errors import ConvertError, DiskFullError
from pmpd_edge.gguf_info import GgufInfo, Tensor

# The llama_ftype whose default tensor type it is. `pure` switches off the mixtures that the names speak of. Q2_K stands
# for Q2_K_S without its demand for an importance matrix.
FTYPES = {
    "Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "Q6_K": "LLAMA_FTYPE_MOSTLY_Q6_K",
    "Q5_K": "LLAMA_FTYPE_MOSTLY_Q5_K_S",
    "Q5_1": "LLAMA_FTYPE_MOSTLY_Q5_1",
    "Q5_0": "LLAMA_FTYPE_MOSTLY_Q5_0",
    "Q4_K": "LLAMA_FTYPE_MOSTLY_Q4_K_S",
    "Q4_1": "LLAMA_FTYPE_MOSTLY_Q4_1",
    "Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0",
    "IQ4_NL": "LLAMA_FTYPE_MOSTLY_IQ4_NL",
    "IQ4_XS": "LLAMA_FTYPE_MOSTLY_IQ4_XS",
    "Q3_K": "LLAMA_FTYPE_MOSTLY_Q3_K_S",
    "IQ3_S": "LLAMA_FTYPE_MOSTLY_IQ3_S",
    "Q2_K": "LLAMA_FTYPE_MOSTLY_Q2_K",
    "Q2_0": "LLAMA_FTYPE_MOSTLY_Q2_0",
}

# Residuals are remainders of remainders, so that one bit helps there.
RESIDUAL_TYPES = {**FTYPES, "Q1_0": "LLAMA_FTYPE_MOSTLY_Q1_0"}

# llama.cpp refuses these without an importance matrix: what they would give is noise.
NEED_IMATRIX = {
    "IQ3_XXS": "LLAMA_FTYPE_MOSTLY_IQ3_XXS",
    "IQ2_S": "LLAMA_FTYPE_MOSTLY_IQ2_M",
    "IQ2_XS": "LLAMA_FTYPE_MOSTLY_IQ2_XS",
    "IQ2_XXS": "LLAMA_FTYPE_MOSTLY_IQ2_XXS",
    "IQ1_M": "LLAMA_FTYPE_MOSTLY_IQ1_M",
    "IQ1_S": "LLAMA_FTYPE_MOSTLY_IQ1_S",
}

ALL_TYPES = {**RESIDUAL_TYPES, **NEED_IMATRIX}

# Of the worker process, for child.run().
CODE = "from pmpd_edge.convert.worker import main; main()"
PROGRESS = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_ROOM = 1 << 16  # bytes: a disk with less than this left is full


@dataclass(frozen=True)
class Recipe:
    """How a level's file is made.

    Attributes:
        type: of its matrices.
        shared_type: of token embeddings and output.
        overrides: regular expressions, and the types of matrices whose names they match; the first match counts.
        imatrix: the importance matrix to use.
    """

    type: str
    shared_type: str = gguf_info.SHARED_TYPE
    overrides: tuple[tuple[str, str], ...] = ()
    imatrix: Path | None = None

    def type_of(self, tensor: Tensor) -> str:
        """The type that a matrix has if its shape allows it."""
        if tensor.name in gguf_info.VOCABULARY_MATRICES:
            return self.shared_type
        return next((name for pattern, name in self.overrides if re.search(pattern, tensor.name)), self.type)

    def key(self) -> tuple[Any, ...]:
        """What tells it from another one, but for the importance matrix."""
        return self.type, self.shared_type, self.overrides

    def job(self) -> dict[str, Any]:
        """The part of a worker's job that says so."""
        return {
            "type": self.type,
            "ftype": ALL_TYPES[self.type],
            "overrides": [(pattern, gguf_info.TYPES[name][0]) for pattern, name in self.overrides],
            "imatrix": str(self.imatrix) if self.imatrix else None,
        }


def quantize(
    source: GgufInfo,
    out: Path,
    recipe: Recipe,
    threads: int | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Quantise all matrices of a 16-bit GGUF.

    Matrices whose columns are not divisible by the type's block size get the next larger type that fits (llama.cpp's
    fallback); `GgufInfo.fallbacks` lists them. Memory in use is a buffer of fixed size, whatever the model.

    Args:
        source: the 16-bit file.
        out: the file to write.
        recipe: the types; all in `ALL_TYPES`.
        threads: None for all cores.
        progress: called with the fraction of tensors done.

    Raises:
        ConvertError: llama.cpp refused or the disk is full.
    """
    job = {
        **recipe.job(),
        "source": str(source.path),
        "out": str(out),
        "vocabulary_type": gguf_info.TYPES[vocabulary_type(source, recipe.shared_type)][0],
        "threads": threads or os.cpu_count() or 1,
    }
    run_job("quantize", job, out, recipe.type, progress)


def run_job(verb: str, job: Mapping[str, Any], out: Path, type_name: str, progress: Callable[[float], None]) -> None:
    """Have the worker process write a file; raises ConvertError where llama.cpp refused or the disk is full."""

    def on_line(line: str) -> None:
        if match := PROGRESS.search(line):
            progress((int(match[1]) - 1) / int(match[2]))

    try:
        child.run(CODE, [verb, json.dumps(job)], on_line)
    except child.ChildError as error:
        if error.reason == child.NO_SPACE or is_disk_full(out):  # a C++ stream only says that it failed, not why
            raise disk_full(out) from None
        name = out.name.removesuffix(staging.UNFINISHED)
        raise ConvertError(f"{name}: llama.cpp cannot quantise to {type_name} ({error.reason})") from None
    progress(1.0)


def is_disk_full(out: Path) -> bool:
    """Whether there is no room left where a file is written."""
    return shutil.disk_usage(out.parent).free < _ROOM


def disk_full(out: Path) -> DiskFullError:
    """The error that says so."""
    return DiskFullError(out.name.removesuffix(staging.UNFINISHED))


def vocabulary_type(source: GgufInfo, shared_type: str) -> str:
    """The type for embeddings and output: the shared one, or F16 where it does not fit their columns.

    llama.cpp applies no fallback to these two; a type that does not fit would make it abort.
    """
    _, block, _ = gguf_info.TYPES[shared_type]
    matrices = [tensor for tensor in source.tensors if tensor.name in gguf_info.VOCABULARY_MATRICES]
    return shared_type if all(tensor.shape[0] % block == 0 for tensor in matrices) else "F16"


def check_loads(path: Path, model: Path) -> None:
    """Check that llama.cpp accepts a file: tokenizer, hyperparameters, and every tensor with the right shape.

    Args:
        model: what the file was made from, for the message.

    Raises:
        ConvertError: it does not; with the library's reason.
    """
    try:
        child.run(CODE, ["check", json.dumps({"source": str(path)})])
    except child.ChildError as error:
        raise ConvertError(f"{model}: llama.cpp does not load what it was converted to ({error.reason})") from None
