"""Writes a GGUF file tensor by tensor, in the worker process; what a tensor holds is the caller's to make.

Rows are made in chunks, by several threads, so that memory does not grow with the model.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pmpd_edge import gguf_info
from pmpd_edge.convert import quantize
from pmpd_edge.convert.ggml import Bytes, Floats, Ggml
from pmpd_edge.gguf_info import Tensor

_CHUNK = 1 << 20  # weights that a thread works on at a time: 4 MB for each float32 copy


def write(
    ggml: Ggml,
    like: Path,
    out: Path,
    types: Mapping[str, str],
    ftype: int,
    make: Callable[[Tensor], Iterable[Bytes]],
) -> bool:
    """Write a file with the metadata and the tensors of another one; returns whether it was written.

    Args:
        like: the other file.
        types: of all tensors, by name.
        ftype: a llama_ftype, what the file calls itself.
        make: called with each tensor of `like`, gives the bytes of the one to write.
    """
    if not ggml.write_header(like, out, types, ftype):
        return False
    tensors = gguf_info.read(like).tensors
    start, offsets = ggml.layout(out)
    with open(out, "r+b") as file:
        for i, tensor in enumerate(tensors):
            print(f"[{i + 1:4}/{len(tensors):4}] {tensor.name} -> {types[tensor.name]}", file=sys.stderr, flush=True)
            file.seek(start + offsets[tensor.name])
            for data in make(tensor):
                file.write(data.data)
        file.write(bytes(-file.tell() % 32))  # llama.cpp's own files end on a boundary
    return True


def matrices(tensor: Tensor) -> Iterator[range]:
    """The rows of each matrix of a tensor, counted through all of them; a vector is a matrix of one row."""
    columns, rows = (*tensor.shape, 1)[:2]
    return (range(first, first + rows) for first in range(0, tensor.elements // columns, rows))


def chunks(rows: range, columns: int) -> Iterator[range]:
    """Rows in parts of about `_CHUNK` weights."""
    step = max(1, _CHUNK // columns)
    return (rows[at : at + step] for at in range(0, len(rows), step))


def importance_of(tensor: Tensor, type_name: str, known: Mapping[str, Floats]) -> Floats | None:
    """The importance of each column of each matrix of a tensor, `[n_matrices, columns]`; None if it is not known.

    Args:
        type_name: what the tensor is to be quantised to.
        known: see imatrix.read.

    Raises:
        ValueError: it is that of a tensor of another shape, or the type cannot do without.
    """
    means = known.get(tensor.name)
    if means is None:
        if type_name in quantize.NEED_IMATRIX:  # ggml would abort
            raise ValueError(f"the importance matrix does not know {tensor.name}")
        return None
    columns, rows = tensor.shape[:2]
    if means.size * rows != tensor.elements:
        raise ValueError(f"imatrix size {means.size} is different from tensor size for {tensor.name}")
    return means.reshape(-1, columns)


def in_order(pool: ThreadPoolExecutor, work: Iterable[Callable[[], Bytes]], ahead: int) -> Iterator[Bytes]:
    """What calls return, in their order; at most `ahead` of them are under way or wait to be taken."""
    waiting: deque[Future[Bytes]] = deque()
    iterator = iter(work)
    for call in itertools.islice(iterator, ahead):
        waiting.append(pool.submit(call))
    while waiting:
        yield waiting.popleft().result()
        for call in itertools.islice(iterator, 1):
            waiting.append(pool.submit(call))
