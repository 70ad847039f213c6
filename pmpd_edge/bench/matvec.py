"""Times products with ggml alone, on any of its devices: of matrices and a vector, which decode steps are made of, or
several, as in prompts.

Weights lie in the kind of buffer that llama.cpp would choose, so that types which the CPU repacks are measured as they
run. Knows nothing about models: it is given shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt

from pmpd_edge import gguf_info, native
from pmpd_edge.bench.ggml import Backend, InitParams, functions
from pmpd_edge.errors import PmpdError

Shape = tuple[int, int]  # columns, rows: the lengths of the vector and of the product

_F32 = 0  # enum ggml_type
_WEIGHTS = 1  # enum ggml_backend_buffer_usage
_PROBE = 512  # columns of the product that llama.cpp asks devices about: llama-model-loader.cpp, weight_buft_supported
_WARM_UP = 3
_TILE = 16  # rows that are quantised; a matrix repeats them, as what it holds does not change its speed


class Matrices:
    """Matrices of one type on a device, and the products of each of them with a vector for each token.

    Args:
        backend: the device; it must outlive this.
        type_name: as in `gguf_info.TYPES`; the shapes' columns must be multiples of its blocks.
        shapes: of the matrices, in the order in which they are multiplied.
        tokens: how many vectors each is multiplied with at once, all the same.

    Attributes:
        bytes: of all matrices.
        buffer: the name of the kind of buffer that they lie in, such as CPU_REPACK.

    Raises:
        PmpdError: the device has not enough memory, or does not multiply this type.
    """

    def __init__(self, backend: Backend, type_name: str, shapes: Sequence[Shape], tokens: int = 1) -> None:
        self._ggml = functions()
        self._backend, self._type, self._shapes, self._tokens = backend, type_name, shapes, tokens
        self._contexts: list[int] = []
        self._buffers: list[int] = []
        self.bytes = sum(row_bytes(type_name, columns) * rows for columns, rows in shapes)
        try:
            weights = self._place()
            self._fill(weights)
            self._graph, self._outputs = self._products(weights)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Matrices:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything; twice does no harm."""
        while self._buffers:
            self._ggml.backend_buffer_free(self._buffers.pop())
        while self._contexts:
            self._ggml.free(self._contexts.pop())

    def multiply(self) -> float:
        """Compute all products once; returns the seconds until the device has finished."""
        start = perf_counter()
        status = self._ggml.backend_graph_compute(self._backend.pointer, self._graph)
        seconds = perf_counter() - start
        if status:
            raise PmpdError(f"{self._backend.device.name} failed to multiply {self._type} (status {status})")
        return seconds

    def warm_up(self) -> None:
        """Compute all products until nothing is set up any more: a GPU captures a graph that it sees again."""
        for _ in range(_WARM_UP):
            self.multiply()

    def product(self, index: int) -> npt.NDArray[np.float32]:
        """What `multiply` computed from the matrix at `index`, `[tokens, rows]`."""
        out = np.empty((self._tokens, self._shapes[index][1]), np.float32)
        self._ggml.backend_tensor_get(self._outputs[index], out.ctypes.data, 0, out.nbytes)
        return out

    def _context(self, n_bytes: int) -> int:
        self._contexts.append(self._ggml.init(InitParams(n_bytes, None, True)))
        return self._contexts[-1]

    def _allocate(self, context: int, buffer_type: int) -> int:
        with native.captured_log():
            buffer = self._ggml.backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise PmpdError(f"{self._backend.device.name} has no room for {self.bytes / 2**20:.0f} MiB of {self._type}")
        self._buffers.append(buffer)
        return buffer

    def _place(self) -> list[int]:
        """Room for the matrices, in the first kind of buffer from which the device multiplies all of them."""
        ggml, number = self._ggml, gguf_info.TYPES[self._type][0]
        for buffer_type in self._backend.weight_buffer_types():
            context = self._context(3 * len(self._shapes) * ggml.tensor_overhead())
            weights = [ggml.new_tensor_2d(context, number, *shape) for shape in self._shapes]
            buffer = self._allocate(context, buffer_type)
            ggml.backend_buffer_set_usage(buffer, _WEIGHTS)
            if all(self._is_supported(matrix, *shape) for matrix, shape in zip(weights, self._shapes, strict=True)):
                self.buffer = ggml.backend_buft_name(buffer_type).decode()
                return weights
            ggml.backend_buffer_free(self._buffers.pop())
        raise PmpdError(f"{self._backend.device.name} does not multiply {self._type}")

    def _is_supported(self, matrix: int, columns: int, rows: int) -> bool:
        ggml = self._ggml
        context = self._context(2 * ggml.tensor_overhead())
        product = ggml.mul_mat(context, matrix, ggml.new_tensor_2d(context, _F32, columns, _PROBE))
        return ggml.backend_dev_supports_op(self._backend.device_pointer, product)

    def _fill(self, weights: Sequence[int]) -> None:
        tiles = {columns: quantized_rows(self._type, columns) for columns, _ in self._shapes}
        for matrix, (columns, rows) in zip(weights, self._shapes, strict=True):
            data = np.resize(tiles[columns], (rows, tiles[columns].shape[1]))
            self._ggml.backend_tensor_set(matrix, data.ctypes.data, 0, data.nbytes)

    def _products(self, weights: Sequence[int]) -> tuple[int, list[int]]:
        """The graph of all products, and its nodes."""
        ggml, lengths = self._ggml, {columns for columns, _ in self._shapes}
        n_tensors = len(lengths) + 2 * len(weights)
        context = self._context(n_tensors * ggml.tensor_overhead() + ggml.graph_overhead_custom(n_tensors, False))
        vectors = {columns: ggml.new_tensor_2d(context, _F32, columns, self._tokens) for columns in lengths}
        outputs = [
            ggml.mul_mat(context, matrix, vectors[columns])
            for matrix, (columns, _) in zip(weights, self._shapes, strict=True)
        ]
        graph = ggml.new_graph_custom(context, n_tensors, False)
        for output in outputs:
            ggml.build_forward_expand(graph, output)
        self._allocate(context, self._backend.buffer_type)
        for columns, vector in vectors.items():
            data = np.tile(random_vector(columns), (self._tokens, 1))
            ggml.backend_tensor_set(vector, data.ctypes.data, 0, data.nbytes)
        return graph, outputs


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of a row of a matrix."""
    _, elements, n_bytes = gguf_info.TYPES[type_name]
    return columns // elements * n_bytes


def fits(type_name: str, columns: int) -> bool:
    """Whether rows of this length are whole blocks of a type."""
    return columns % gguf_info.TYPES[type_name][1] == 0


def random_vector(columns: int) -> npt.NDArray[np.float32]:
    """The vector that matrices are multiplied with, the same each time, `[columns]`."""
    return np.random.default_rng(1).standard_normal(columns, dtype=np.float32)


def quantized_rows(type_name: str, columns: int) -> npt.NDArray[np.uint8]:
    """Random rows in a type, the same each time, `[rows, bytes of a row]`."""
    rows = np.random.default_rng(2).standard_normal((_TILE, columns), dtype=np.float32)
    out = np.empty((_TILE, row_bytes(type_name, columns)), np.uint8)
    number = gguf_info.TYPES[type_name][0]
    functions().quantize_chunk(number, rows.ctypes.data, out.ctypes.data, 0, _TILE, columns, None)
    return out
