"""Measurements in processes of their own, where memory and its place are nobody else's.

`alone` loads one level and nothing else; `rates` measures workloads at one level through Pmpd, as llama-bench does it
in its own process (peer.py).
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from pmpd_edge import bundle as bundles
from pmpd_edge import native
from pmpd_edge.bench import memory
from pmpd_edge.bench.ggml import devices
from pmpd_edge.bench.levels import Workload, measure
from pmpd_edge.bench.memory import Memory
from pmpd_edge.bench.place import Place
from pmpd_edge.bench.timing import random_tokens, timed
from pmpd_edge.bundle import Bundle
from pmpd_edge.errors import PmpdError

# An empty entry of sys.path is the current directory, where anything may lie.
_CODE = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]
from pmpd_edge.bench import child
child.main()
"""
_STEPS = 4  # decode steps that touch what decoding touches


@dataclasses.dataclass(frozen=True)
class Alone:
    """A level loaded alone.

    Attributes:
        description: what llama.cpp calls the model, such as `llama 1B Q8_0`; of a sum, its base and its residuals.
        size: bytes of all tensors.
        parameters: of the base.
        load_seconds: from files that lie in the system's cache to a context that is ready.
        memory: the most that the process held, Python included.
        device_memory: bytes that the GPUs' free memory shrank by; 0 without a GPU.
    """

    precision: int
    description: str
    size: int
    parameters: int
    load_seconds: float
    memory: Memory
    device_memory: int


def alone(bundle: Bundle, precision: int, place: Place, prompt: int, n_ctx: int) -> Alone:
    """Load a level alone, evaluate a prompt and some steps, and see what it takes."""
    found = _run("alone", bundle, precision, place, prompt=prompt, n_ctx=n_ctx)
    return Alone(precision, memory=Memory(**found.pop("memory")), **found)


def rates(bundle: Bundle, precision: int, place: Place, workloads: list[Workload], n_ctx: int) -> list[float]:
    """Tokens/s of each workload at a level, once after a warm-up."""
    asked = [dataclasses.asdict(workload) for workload in workloads]
    return _run("rates", bundle, precision, place, workloads=asked, n_ctx=n_ctx)


def _run(name: str, bundle: Bundle, precision: int, place: Place, **job: Any) -> Any:
    job |= {"bundle": str(bundle.path), "precision": precision, "place": dataclasses.asdict(place)}
    command = [sys.executable, "-c", _CODE, name, json.dumps(job)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PmpdError(f"measuring level {precision} alone failed (status {done.returncode}): {last}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise PmpdError(*answer["error"])
    return answer["found"]


def main() -> None:
    """In the process: do the job, and print what it found as the last line."""
    name, text = sys.argv[1:]
    job = json.loads(text)
    bundle, place = bundles.load(Path(job.pop("bundle"))), Place(**job.pop("place"))
    works: dict[str, Callable[..., Any]] = {"alone": _alone, "rates": _rates}
    try:
        answer = {"found": works[name](bundle, place, **job)}
    except PmpdError as error:
        answer = {"error": [error.message, error.hint]}
    print(json.dumps(answer), flush=True)


def _rates(bundle: Bundle, place: Place, precision: int, workloads: list[dict[str, int]], n_ctx: int) -> list[float]:
    from pmpd_edge.runner import Pmpd

    llm = Pmpd(bundle.path, scheduler=f"fixed:{precision}", prefill=precision, n_ctx=n_ctx, **place.options())
    rows = measure(llm, [precision], [Workload(**workload) for workload in workloads], 1)
    llm.close()
    return [row.rate.median for row in rows]


def _alone(bundle: Bundle, place: Place, precision: int, prompt: int, n_ctx: int) -> dict[str, Any]:
    from pmpd_edge.levels import load_model
    from pmpd_edge.runner import llama_cpp

    base, *residuals = bundle.paths(bundle.level(precision))
    for path in (base, *residuals):
        _read_through(path)
    free = _free_on_gpus()
    start = perf_counter()
    with native.loading_log() as log:
        try:
            llm = llama_cpp.Llama(str(base), n_ctx=n_ctx, **place.options())
        except ValueError as error:
            raise PmpdError(f"{base}: does not load ({log.reason(error)})") from None
    models = [llm._model, *(load_model(str(path), llm._model.params) for path in residuals)]
    native.set_weights(llm._ctx.ctx, [model.model for model in models])
    load_seconds = perf_counter() - start
    held = memory.sample()
    tokens = random_tokens(llm, prompt + _STEPS)
    timed(llm, tokens[:prompt])
    for token in tokens[prompt:]:
        timed(llm, [token])
    held = held.highest(memory.sample())
    return {
        "description": " + ".join(model.desc() for model in models),
        "size": sum(llama_cpp.llama_model_size(model.model) for model in models),
        "parameters": llama_cpp.llama_model_n_params(llm._model.model),
        "load_seconds": load_seconds,
        "memory": dataclasses.asdict(held),
        "device_memory": max(0, free - _free_on_gpus()),
    }


def _read_through(path: Path) -> None:
    """Have a file in the system's cache, as far as there is room."""
    block = bytearray(1 << 22)
    with open(path, "rb") as file:
        while file.readinto(block):
            pass


def _free_on_gpus() -> int:
    return sum(device.free for device in devices() if device.is_gpu)
