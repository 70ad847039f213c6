"""Device profiles: figures of hardware, read from JSON files.

The profiles in `devices/` say where each figure comes from. docs/simulate.md tells how to write one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmpd_edge.errors import PmpdError

FOLDER = Path(__file__).parent / "devices"
OTHER = "other"  # the kernel of all types that have none of their own
HINT = "docs/simulate.md tells what a profile holds"

# A figure's key in a profile: its unit, and what it is where the profile says nothing (None: it has to).
NUMBERS: dict[str, tuple[float, float | None]] = {
    "memory_gib": (2**30, None),
    "bandwidth_gb_s": (1e9, None),
    "bandwidth_share": (1, 1.0),
    "buffer_mib": (2**20, None),
    "granularity_bytes": (1, 1.0),
    "storage_gb_s": (1e9, 0.0),
    "attention_tops": (1e12, None),
    "overlap": (1, 1.0),
    "activation_bits": (1, 16.0),
    "kv_bits": (1, 16.0),
    "operator_us": (1e-6, 0.0),
    "step_us": (1e-6, 0.0),
    "switch_us": (1e-6, 0.0),
}
_KERNEL_NUMBERS = ("tops", "gweights_s", "bits", "centroids")
_TEXTS = ("name", "title", "layout", "output_type", "sources", "types", "kernels")


@dataclass(frozen=True)
class Kernel:
    """How a device multiplies with matrices of one type.

    Attributes:
        operations: per second, of many tokens at a time; a multiplication and an addition are two.
        weights: weights per second that can be dequantised; infinite where it costs nothing.
        bits: per weight, without look-up tables; None for a type of GGML, which says it itself.
        centroids: 16-bit entries of the look-up table that each row has.
    """

    operations: float
    weights: float = math.inf
    bits: float | None = None
    centroids: int = 0


@dataclass(frozen=True)
class Device:
    """A device, in bytes, seconds and operations.

    Attributes:
        title: what it is, in words.
        memory: bytes for weights and KV cache.
        bandwidth: bytes per second that reading memory reaches.
        buffer: bytes of on-chip memory or last-level cache.
        granularity: bytes that are transferred at least.
        storage: bytes per second from where weights lie that are not in memory; 0 where all have to fit.
        attention: operations per second of attention.
        overlap: the share of moving or computing, whichever is shorter, that the other hides.
        activation_bits, kv_bits: of a number between two matrices, and in the KV cache.
        operator_seconds, step_seconds, switch_seconds: beside computing: of each operator, step and switch.
        layout: `separate` or `nested`, of models that are given by name.
        output_type: of their output matrix below 16 bits; None for the level's own.
        types: of their weights, by precision.
        kernels: by type; `other` is that of all others.
    """

    name: str
    title: str
    memory: float
    bandwidth: float
    buffer: float
    granularity: float
    storage: float
    attention: float
    overlap: float
    activation_bits: float
    kv_bits: float
    operator_seconds: float
    step_seconds: float
    switch_seconds: float
    layout: str
    output_type: str | None
    types: Mapping[int, str]
    kernels: Mapping[str, Kernel]

    def kernel(self, type_name: str) -> Kernel:
        """The kernel of a type; raises PmpdError if the profile has none."""
        if found := self.kernels.get(type_name) or self.kernels.get(OTHER):
            return found
        raise PmpdError(f"{self.name}: no kernel of type {type_name}", f"add it to the profile, or one named {OTHER!r}")

    def type_of(self, precision: int) -> str:
        """The type of a precision's weights; raises PmpdError if the profile has none."""
        if precision in self.types:
            return self.types[precision]
        have = ", ".join(map(str, self.types))
        raise PmpdError(f"{self.name}: no type of precision {precision}", f"choose one of {have}")


def names() -> tuple[str, ...]:
    """The profiles that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def load(name: str) -> Device:
    """Read a profile.

    Args:
        name: of a profile that comes with the package, or the path of a JSON file.

    Raises:
        PmpdError: there is no such profile, or it is not what it should be.
    """
    return parse(document(name), name)


def document(name: str) -> dict[str, Any]:
    """A profile as it is written, sources included; raises PmpdError."""
    path = FOLDER / f"{name}.json" if name in names() else Path(name)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PmpdError(
            f"no device {name!r}", f"choose one of {', '.join(names())}, or give a profile's file"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise PmpdError(f"{path}: not a device profile ({error})", HINT) from None
    if not isinstance(found, dict):
        raise PmpdError(f"{path}: not a device profile", HINT)
    return found


def parse(profile: Mapping[str, Any], where: str) -> Device:
    """Make a device of a profile.

    Args:
        profile: as the JSON file holds it.
        where: names it in errors.
    """
    unknown = [key for key in profile if key not in (*NUMBERS, *_TEXTS)]
    if unknown:
        raise PmpdError(f"{where}: nothing is called {unknown[0]!r}", HINT)
    si = {key: unit * _number(profile, key, where, default) for key, (unit, default) in NUMBERS.items()}
    kernels = {name: _kernel(kernel, f"{where}: kernel {name}") for name, kernel in _table(profile, "kernels", where)}
    if (layout := profile.get("layout", "separate")) not in ("separate", "nested"):
        raise PmpdError(f"{where}: layout {layout!r}", "write separate or nested")
    if si["overlap"] > 1:
        raise PmpdError(f"{where}: overlap is {si['overlap']}", "give a share, at most 1")
    output_type = profile.get("output_type")
    device = Device(
        name=str(profile.get("name", Path(where).stem)),
        title=str(profile.get("title", "")),
        memory=si["memory_gib"],
        bandwidth=si["bandwidth_gb_s"] * si["bandwidth_share"],
        buffer=si["buffer_mib"],
        granularity=si["granularity_bytes"],
        storage=si["storage_gb_s"],
        attention=si["attention_tops"],
        overlap=si["overlap"],
        activation_bits=si["activation_bits"],
        kv_bits=si["kv_bits"],
        operator_seconds=si["operator_us"],
        step_seconds=si["step_us"],
        switch_seconds=si["switch_us"],
        layout=layout,
        output_type=None if output_type is None else str(output_type),
        types=_types(profile, where),
        kernels=kernels,
    )
    for type_name in device.types.values():
        device.kernel(type_name)
    return device


def _types(profile: Mapping[str, Any], where: str) -> dict[int, str]:
    try:
        found = {int(precision): str(name) for precision, name in _table(profile, "types", where)}
    except ValueError as error:
        raise PmpdError(f"{where}: types: {error}", 'write them like {"8": "Q8_0", "4": "Q4_K"}') from None
    return dict(sorted(found.items(), reverse=True))


def _table(profile: Mapping[str, Any], key: str, where: str) -> list[tuple[str, Any]]:
    found = profile.get(key)
    if not isinstance(found, dict) or not found:
        raise PmpdError(f"{where}: no {key}", HINT)
    return list(found.items())


def _kernel(kernel: Any, where: str) -> Kernel:
    if not isinstance(kernel, dict) or not set(kernel) <= set(_KERNEL_NUMBERS):
        raise PmpdError(f"{where}: {kernel!r}", f"a kernel holds {', '.join(_KERNEL_NUMBERS)}")
    return Kernel(
        operations=1e12 * _number(kernel, "tops", where, None),
        weights=1e9 * _number(kernel, "gweights_s", where, math.inf),
        bits=_number(kernel, "bits", where, None) if "bits" in kernel else None,
        centroids=int(_number(kernel, "centroids", where, 0)),
    )


def _number(values: Mapping[str, Any], key: str, where: str, default: float | None) -> float:
    """A figure; all are above zero, but for those that are zero where nothing is said."""
    if key not in values and default is not None:
        return default
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PmpdError(f"{where}: {key} is {'missing' if key not in values else f'{value!r}, not a number'}", HINT)
    if value < 0 or (value == 0 and default != 0):
        raise PmpdError(f"{where}: {key} is {value}", "give a number above 0")
    return float(value)
