"""The read bandwidth and what counts as cold (pmpd_edge/bench/bandwidth.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmpd_edge.bench import bandwidth, ggml


def cache(folder: Path, cpu: int, index: int, level: int, size: str, shared: str) -> None:
    place = folder / f"cpu{cpu}" / "cache" / f"index{index}"
    place.mkdir(parents=True)
    for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
        (place / name).write_text(f"{text}\n")


def test_the_last_caches_of_all_sockets_count_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(4):
        cache(tmp_path, cpu, 0, 2, "1024K", str(cpu))
        cache(tmp_path, cpu, 1, 3, "192M", "0-1" if cpu < 2 else "2-3")
    monkeypatch.setattr(bandwidth, "_CACHES", tmp_path)
    assert bandwidth.last_level_cache() == 2 * 192 << 20
    assert bandwidth.cold_bytes() == 4 * 2 * 192 << 20


def test_without_known_caches_half_a_gibibyte_is_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_CACHES", tmp_path)
    assert bandwidth.last_level_cache() == 0
    assert bandwidth.cold_bytes() == 512 << 20


@pytest.mark.usefixtures("small_reads")
def test_the_bandwidth_is_the_best_repetition() -> None:
    found = bandwidth.measure(ggml.find_device("CPU"), 1, 3)
    assert len(found.rates.values) == 3
    assert found.bytes_per_second == max(found.rates.values) > 1e8
