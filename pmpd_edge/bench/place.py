"""Where a model computes and how, in the words of Pmpd, of llama-bench and of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pmpd_edge.bench import ggml
from pmpd_edge.bench.ggml import Device
from pmpd_edge.cpu import default_threads

# llama-bench's own sizes; llama_cpp.Llama's batches are smaller.
N_BATCH, N_UBATCH = 2048, 512
_NO_GPU = -1  # main_gpu
_SPLIT_NONE = 0  # LLAMA_SPLIT_MODE_NONE


@dataclass(frozen=True)
class Place:
    """What a model computes on; flash attention is on and weights are not mapped, as in a chat.

    Attributes:
        n_threads: on the CPU.
        n_gpu_layers: layers on GPUs; -1 is all of them.
        device: the name of the only device that computes; None leaves the choice to llama.cpp: all GPUs, where there
            are any.
    """

    n_threads: int
    n_gpu_layers: int = -1
    device: str | None = None

    @property
    def main_device(self) -> Device:
        """The device whose memory the weights lie in, the first of several."""
        found = ggml.devices()
        if self.device:
            return ggml.find_device(self.device)
        used = [device for device in _gpus(found) if self.n_gpu_layers != 0]
        return used[0] if used else next(device for device in found if device.kind == "CPU")

    @property
    def backend(self) -> str:
        """All backends but the CPU's, as llama-bench names them."""
        names = {device.backend for device in ggml.devices()} - {"CPU"}
        return ",".join(sorted(names)) or "CPU"

    def options(self) -> dict[str, Any]:
        """For `Pmpd` and `llama_cpp.Llama`."""
        return {
            "n_threads": self.n_threads,
            "n_threads_batch": self.n_threads,
            "n_gpu_layers": self.n_gpu_layers,
            "n_batch": N_BATCH,
            "n_ubatch": N_UBATCH,
            "flash_attn": True,
            "use_mmap": False,
            "verbose": False,
            **({} if self._main_gpu is None else {"split_mode": _SPLIT_NONE, "main_gpu": self._main_gpu}),
        }

    def peer_options(self) -> list[str]:
        """The same for llama-bench."""
        given: dict[str, int | str] = {
            "-t": self.n_threads,
            "-b": N_BATCH,
            "-ub": N_UBATCH,
            "-fa": 1,
            "-lm": "none",
        }
        if self.n_gpu_layers >= 0:  # all of them is its default, and it reads no negative numbers
            given["-ngl"] = self.n_gpu_layers
        if self.device:
            given["-dev"] = self.device if self.main_device.is_gpu else "none"
        return [str(part) for pair in given.items() for part in pair]

    @property
    def _main_gpu(self) -> int | None:
        """llama.cpp's number of the only device; None without one."""
        if self.device is None:
            return None
        only = ggml.find_device(self.device)
        names = [device.name for device in _gpus(ggml.devices())]
        return names.index(only.name) if only.name in names else _NO_GPU


def make(n_threads: int | None, n_gpu_layers: int | None, device: str | None) -> Place:
    """A place from what the user gave; raises PmpdError where there is no such device."""
    name = ggml.find_device(device).name if device else None
    return Place(n_threads or default_threads(), -1 if n_gpu_layers is None else n_gpu_layers, name)


def _gpus(devices: list[Device]) -> list[Device]:
    """Those that llama.cpp uses: integrated ones only where there are no others."""
    return [d for d in devices if d.kind == "GPU"] or [d for d in devices if d.kind == "IGPU"]
