"""One operator of ggml, computed on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pmpd_edge.bench import ggml
from pmpd_edge.bench.ggml import Backend, InitParams

F32, F16, I32 = 0, 1, 26  # enum ggml_type

Floats = npt.NDArray[np.float32]
Inputs = list[tuple[int, npt.NDArray[np.generic]]]  # tensors and what they hold


def compute(
    build: Callable[[int, int], tuple[int, Inputs]], buffer: str, n_threads: int, shape: tuple[int, ...]
) -> Floats:
    """The tensor that `build` makes in two contexts: one for weights, which lie in a kind of buffer, and the rest."""
    functions = ggml.functions()
    with Backend(ggml.find_device("cpu"), n_threads) as backend:
        kinds = {functions.backend_buft_name(kind).decode(): kind for kind in backend.weight_buffer_types()}
        weights, rest = (functions.init(InitParams(1 << 20, None, True)) for _ in range(2))
        out, inputs = build(weights, rest)
        allocated = [
            functions.backend_alloc_ctx_tensors_from_buft(weights, kinds[buffer]),
            functions.backend_alloc_ctx_tensors_from_buft(rest, backend.buffer_type),
        ]
        for tensor, data in inputs:
            functions.backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
        graph = functions.new_graph_custom(rest, 8, False)
        functions.build_forward_expand(graph, out)
        assert functions.backend_graph_compute(backend.pointer, graph) == 0
        result = np.full(shape, np.nan, np.float32)
        functions.backend_tensor_get(out, result.ctypes.data, 0, result.nbytes)
        for each in allocated:
            functions.backend_buffer_free(each)
        for context in (weights, rest):
            functions.free(context)
    return result


def error(value: Floats, expected: Floats) -> float:
    """Relative; absolute where 0 is expected."""
    return float(np.linalg.norm(value - expected) / (np.linalg.norm(expected) or 1))
