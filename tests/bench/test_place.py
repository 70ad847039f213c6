"""Where a model computes (pmpd_edge/bench/place.py), on machines of our own."""

from __future__ import annotations

import pytest

from pmpd_edge.bench import ggml, place
from pmpd_edge.bench.ggml import Device
from pmpd_edge.bench.place import Place
from pmpd_edge.cpu import default_threads
from pmpd_edge.errors import PmpdError

CPU = Device("CPU", "a CPU", "CPU", "CPU", 10, 20)
BLAS = Device("BLAS", "a library", "ACCEL", "BLAS", 0, 0)
FIRST, SECOND = (Device(f"CUDA{i}", "a GPU", "GPU", "CUDA", 5, 8) for i in range(2))
INSIDE = Device("Vulkan0", "a GPU in the CPU", "IGPU", "Vulkan", 5, 8)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(ggml, "devices", lambda: request.param)


@pytest.mark.parametrize("machine", [[CPU]], indirect=True)
@pytest.mark.usefixtures("machine")
def test_without_gpus_the_cpu_computes() -> None:
    made = place.make(None, None, None)
    assert made == Place(default_threads(), -1, None)
    assert made.main_device == CPU and made.backend == "CPU"
    assert "main_gpu" not in made.options()


@pytest.mark.parametrize("machine", [[INSIDE, FIRST, SECOND, CPU, BLAS]], indirect=True)
@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("device", "layers", "main", "number"),
    [(None, None, FIRST, None), (None, 0, CPU, None), ("cuda1", None, SECOND, 1), ("CPU", None, CPU, -1)],
)
def test_ggmls_devices_become_llama_cpps_numbers(
    device: str | None, layers: int | None, main: Device, number: int | None
) -> None:
    made = place.make(3, layers, device)
    assert made.main_device == main and made.backend == "BLAS,CUDA,Vulkan"
    options = made.options()
    assert options.get("main_gpu") == number and ("split_mode" in options) == (number is not None)
    peer = made.peer_options()
    assert ("-dev" in peer) == (device is not None)
    if device:
        assert peer[peer.index("-dev") + 1] == ("none" if main == CPU else main.name)


@pytest.mark.parametrize("machine", [[INSIDE, CPU]], indirect=True)
@pytest.mark.usefixtures("machine")
def test_a_gpu_inside_the_cpu_computes_where_there_is_no_other() -> None:
    assert place.make(1, None, None).main_device == INSIDE
    assert place.make(1, None, "vulkan0").options()["main_gpu"] == 0


@pytest.mark.parametrize("machine", [[FIRST, CPU]], indirect=True)
@pytest.mark.usefixtures("machine")
def test_llama_bench_gets_what_pmpd_gets() -> None:
    made = place.make(3, 7, "CUDA0")
    asked = made.peer_options()
    peer, ours = dict(zip(asked[::2], asked[1::2], strict=True)), made.options()
    assert [peer[name] for name in ("-t", "-ngl", "-b", "-ub")] == [
        str(ours[name]) for name in ("n_threads", "n_gpu_layers", "n_batch", "n_ubatch")
    ]
    assert (peer["-fa"], ours["flash_attn"]) == ("1", True)
    assert (peer["-lm"], ours["use_mmap"]) == ("none", False)
    assert (peer["-dev"], ours["main_gpu"], ours["split_mode"]) == ("CUDA0", 0, 0)


def test_llama_bench_is_given_no_negative_numbers() -> None:
    assert not any(word.startswith("-") and word[1:].isdigit() for word in Place(1).peer_options())


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(PmpdError, match="no device 'TPU'"):
        place.make(None, None, "TPU")
