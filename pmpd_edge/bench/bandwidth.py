"""The memory bandwidth of a device, as its own products reach it: what a decode step's bytes are held against.

A matrix-vector product of float32 does next to nothing with each byte, and runs on every device by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pmpd_edge.bench.ggml import Backend, Device
from pmpd_edge.bench.matvec import Matrices, Shape
from pmpd_edge.bench.timing import Series

COLD = 512 << 20  # bytes that are read in turn, at least: more than most caches hold
_CACHES = Path("/sys/devices/system/cpu")
_MATRIX: Shape = (4096, 4096)
_TIMES_CACHE = 4


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second that a device reads from its memory.

    Attributes:
        rates: of each repetition; the highest is what the device can do.
    """

    device: str
    rates: Series

    @property
    def bytes_per_second(self) -> float:
        return max(self.rates.values)


def measure(device: Device, n_threads: int, repetitions: int) -> Bandwidth:
    """Read much more than caches hold, after rounds that warm up.

    Raises:
        PmpdError: the device has no room for it.
    """
    columns, rows = _MATRIX
    count = -(-cold_bytes() // (4 * columns * rows))
    with Backend(device, n_threads) as backend, Matrices(backend, "F32", [_MATRIX] * count) as matrices:
        matrices.warm_up()
        seconds = [matrices.multiply() for _ in range(repetitions)]
        return Bandwidth(device.name, Series(tuple(seconds)).rate(matrices.bytes))


def cold_bytes() -> int:
    """So much read in turn is found in no cache when its turn comes again."""
    return max(COLD, _TIMES_CACHE * last_level_cache())


def last_level_cache() -> int:
    """Bytes of the CPU's largest cache, those of all its instances together; 0 where the system does not say."""
    caches: dict[tuple[int, str], int] = {}
    for folder in _CACHES.glob("cpu[0-9]*/cache/index*"):
        try:
            level, shared = int((folder / "level").read_text()), (folder / "shared_cpu_list").read_text()
            caches[level, shared] = _size((folder / "size").read_text().strip())
        except (OSError, ValueError):
            continue
    levels = {level for level, _ in caches}
    return max((sum(size for (at, _), size in caches.items() if at == level) for level in levels), default=0)


def _size(text: str) -> int:
    """`32768K` or `32M` in bytes."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)
