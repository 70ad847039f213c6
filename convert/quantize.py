"""The tensor types of levels below 16 bits, and llama.cpp's own quantiser, which makes them from a 16-bit GGUF."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pmpd_edge.convert import child, gguf_info
from pmpd_edge.convert.gguf_info import GgufInfo
from pmpd_edge.errors import ConvertError

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

# llama.cpp refuses these without statistics of the activations: what they would give is noise.
NEED_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")

# Of the worker process, for child.run().
CODE = "from pmpd_edge.convert.worker import main; main()"
_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_ROOM = 1 << 16  # bytes: a disk with less than this left is full


def quantize(
    source: GgufInfo,
    out: Path,
    type_name: str,
    threads: int | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> GgufInfo:
    """Quantise all matrices of a 16-bit GGUF to one type, embeddings and output to `gguf_info.SHARED_TYPE`.

    Matrices whose columns are not divisible by the type's block size get the next larger type that fits (llama.cpp's
    fallback); `GgufInfo.fallbacks` lists them.

    Args:
        source: the 16-bit file.
        out: the file to write.
        type_name: a key of `FTYPES`.
        threads: None for all cores.
        progress: called with the fraction of tensors done.

    Raises:
        ConvertError: llama.cpp refused or the disk is full.
    """

    job = {
        "source": str(source.path),
        "out": str(out),
        "ftype": FTYPES[type_name],
        "vocabulary_type": gguf_info.TYPES[vocabulary_type(source)][0],
        "threads": threads or os.cpu_count() or 1,
    }
    run_job("quantize", job, out, type_name, progress)
    return gguf_info.read(out)


def run_job(verb: str, job: Mapping[str, Any], out: Path, type_name: str, progress: Callable[[float], None]) -> None:
    """Have the worker process write a file; raises ConvertError where llama.cpp refused or the disk is full."""

    def on_line(line: str) -> None:
        if match := _TENSOR.search(line):
            progress((int(match[1]) - 1) / int(match[2]))

    try:
        child.run(CODE, [verb, json.dumps(job)], on_line)
    except child.ChildError as error:
        # A C++ stream only says that it failed, not why.
        full = error.reason == child.NO_SPACE or shutil.disk_usage(out.parent).free < _ROOM
        if full:
            raise ConvertError(f"{out.name}: {child.NO_SPACE}", "free some, or convert to another disk") from None
        raise ConvertError(f"{out.name}: llama.cpp cannot quantise to {type_name} ({error.reason})") from None
    progress(1.0)


def vocabulary_type(source: GgufInfo) -> str:
    """The type for embeddings and output: the shared one, or F16 where it does not fit their columns.

    llama.cpp applies no fallback to these two; a type that does not fit would make it abort.
    """
    _, block, _ = gguf_info.TYPES[gguf_info.SHARED_TYPE]
    matrices = [tensor for tensor in source.tensors if tensor.name in gguf_info.VOCABULARY_MATRICES]
    return gguf_info.SHARED_TYPE if all(tensor.shape[0] % block == 0 for tensor in matrices) else "F16"


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
