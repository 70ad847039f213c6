"""Device profiles: those in the package are whole and say where their figures come from; others are checked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pmpd_edge.bundle import PRECISIONS
from pmpd_edge.errors import PmpdError
from pmpd_edge.simulate import device as devices
from pmpd_edge.simulate.answer import simulate
from pmpd_edge.simulate.roofline import Roofline
from pmpd_edge.simulate.shapes import named

PAGE = Path(__file__).parents[2] / "docs" / "simulate.md"

MINE = {
    "memory_gib": 8,
    "bandwidth_gb_s": 50,
    "bandwidth_share": 0.8,
    "buffer_mib": 4,
    "attention_tops": 1,
    "overlap": 0.6,
    "step_us": 20,
    "types": {"4": "Q4_K", "8": "Q8_0"},
    "kernels": {"Q8_0": {"tops": 2, "gweights_s": 100}, "other": {"tops": 1}},
}


def test_a_profile_is_read_into_bytes_seconds_and_operations(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(MINE))
    device = devices.load(str(path))
    assert (device.name, device.memory, device.bandwidth, device.buffer) == ("mine", 8 * 2**30, 40e9, 4 * 2**20)
    assert (device.step_seconds, device.operator_seconds, device.kv_bits) == (pytest.approx(20e-6), 0, 16)
    assert (device.overlap, devices.load("laptop").overlap) == (0.6, 1)
    assert list(device.types.items()) == [(8, "Q8_0"), (4, "Q4_K")]
    assert device.kernel("Q8_0") == devices.Kernel(2e12, 100e9)
    assert device.kernel("Q4_K") == device.kernel("Q6_K") == devices.Kernel(1e12)


@pytest.mark.parametrize("name", devices.names())
def test_every_figure_in_the_package_has_its_source(name):
    document = devices.document(name)
    device = devices.load(name)
    assert device.name == name and device.title
    said = {key for key in document if key in devices.NUMBERS} | {"types", "kernels"}
    said |= {"output_type"} & document.keys()
    assert said <= document["sources"].keys()
    assert set(device.types) <= set(PRECISIONS)
    assert max(device.types) == 16, "speed-ups are over 16 bits"


# Llama-2-7B, tg128, as published; at 4 bits Q4_0.
PUBLISHED = [
    ("rtx-4090", 16, 61.0),
    ("rtx-4090", 8, 98.1),
    ("rtx-4090", 4, 149.4),
    ("laptop", 16, 9.89),
    ("laptop", 8, 17.53),
    ("laptop", 4, 30.74),
]


@pytest.mark.parametrize(("name", "precision", "measured"), PUBLISHED)
def test_published_speeds_are_predicted(name, precision, measured):
    device = devices.load(name)
    roofline = Roofline(named("llama-2-7b", device), device)
    answer = simulate(roofline, 1, [precision] * 129)
    assert answer.decode_tokens_per_second == pytest.approx(measured, rel=0.05)


def test_the_profile_of_the_documentation_is_one_and_its_table_names_every_key():
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert devices.parse(json.loads(block), "mine").kernel("Q4_K").weights == 130e9
    for key in (*devices.NUMBERS, "types", "output_type", "layout", "kernels", "sources"):
        assert f"`{key}`" in text
    assert all(f"`{key}`" in text for key in ("tops", "gweights_s", "bits", "centroids"))


def test_the_devices_are_those_that_the_documentation_names():
    assert devices.names() == ("a40", "laptop", "npu", "phone", "rtx-4090")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidth_gb_s": None}, "bandwidth_gb_s is None, not a number: docs/simulate.md tells"),
        ({"bandwidth_gb_s": "fast"}, "bandwidth_gb_s is 'fast', not a number"),
        ({"bandwidth_gb_s": True}, "bandwidth_gb_s is True, not a number"),
        ({"bandwidth_gb_s": float("nan")}, "bandwidth_gb_s is nan, not a number"),
        ({"bandwidth_gb_s": 0}, "bandwidth_gb_s is 0: give a number above 0"),
        ({"step_us": -1}, "step_us is -1: give a number above 0"),
        ({"overlap": 1.5}, "overlap is 1.5: give a share, at most 1"),
        ({"bandwith": 5}, "nothing is called 'bandwith'"),
        ({"kernels": {}}, "no kernels"),
        ({"kernels": {"Q8_0": {"tops": 1}}}, "no kernel of type Q4_K: add it to the profile"),
        ({"kernels": {"other": {"flops": 1}}}, "kernel other: {'flops': 1}: a kernel holds tops"),
        ({"kernels": {"other": {}}}, "kernel other: tops is missing"),
        ({"types": {"four": "Q4_K"}}, "types: invalid literal"),
        ({"types": []}, "no types"),
        ({"layout": "stacked"}, "layout 'stacked': write separate or nested"),
    ],
)
def test_a_wrong_profile_is_refused_in_a_line(change, message):
    with pytest.raises(PmpdError) as raised:
        devices.parse({**MINE, **change}, "mine.json")
    assert str(raised.value).startswith("mine") and message in str(raised.value)


def test_a_missing_figure_is_named():
    with pytest.raises(PmpdError, match=r"mine\.json: memory_gib is missing"):
        devices.parse({key: value for key, value in MINE.items() if key != "memory_gib"}, "mine.json")


def test_an_unknown_device_is_told_beside_the_known_ones():
    with pytest.raises(PmpdError, match="no device 'rtx-5090': choose one of a40, laptop, npu, phone, rtx-4090, or"):
        devices.load("rtx-5090")


@pytest.mark.parametrize("text", ["{", "[1]", '"npu"', "\xff"])
def test_a_file_that_is_no_profile_is_refused(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PmpdError, match="not a device profile"):
        devices.load(str(path))


def test_a_folder_is_no_profile(tmp_path):
    with pytest.raises(PmpdError, match="not a device profile"):
        devices.load(str(tmp_path))


def test_a_precision_without_a_type_is_refused():
    device = devices.parse(MINE, "mine")
    with pytest.raises(PmpdError, match="mine: no type of precision 3: choose one of 8, 4"):
        device.type_of(3)
