"""Predictor files: what is in them, and that no other file does harm."""

from __future__ import annotations

import dataclasses
import gc
import random
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predictors import SMALL, in_torch, keys_values, random_network, write

from pmpd_edge import bundle as bundles
from pmpd_edge.bundle import PredictorFile
from pmpd_edge.errors import BundleError
from pmpd_edge.predictor import Predictor, of_bundle

gguf = pytest.importorskip("gguf", reason="gguf writes the files: pip install '.[dev]'")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "predictor.gguf", random_network(seed=1), random_network(seed=2))


def test_a_predictor_says_what_it_was_written_with(path):
    predictor = Predictor.load(path)
    assert predictor.pairs == ((8, 2), (8, 3))
    assert predictor.classes == pytest.approx((0, 1 / 3, 2 / 3, 1))
    assert (predictor.layer, predictor.max_new_tokens, predictor.fingerprint) == (-1, 64, "abc")
    assert predictor.priors[8, 3] == pytest.approx((0.1, 0.2, 0.3, 0.4))


def test_other_types_and_layouts_of_arrays_give_the_same(path):
    predictor = Predictor.load(path)
    keys, values = keys_values(SMALL, 6)
    expected = predictor.probabilities((8, 2), keys, values)
    strided = np.asfortranarray(keys), np.repeat(values, 2, axis=0)[::2]
    assert predictor.probabilities((8, 2), *strided) == expected
    assert predictor.probabilities((8, 2), keys.astype(float), values.astype(float)) == expected


def test_wrong_arguments_are_refused(path):
    predictor = Predictor.load(path)
    keys, values = keys_values(SMALL, 6)
    wrong = [
        ((8, 2), keys[:, :1], values, "for K and V of 2 x 8 and 2 x 4"),
        ((8, 2), keys[:, :, :4], values, "for K and V of"),
        ((8, 2), keys[:5], values, "for K and V of"),
        ((8, 2), keys[0], values, "for K and V of"),
        ((8, 2), keys[:0], values[:0], "no tokens"),
        ((8, 4), keys, values, "nothing of 8-4"),
    ]
    for pair, k, v, message in wrong:
        with pytest.raises(BundleError, match=message):
            predictor.probabilities(pair, k, v)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_keys_and_values_that_are_not_finite_are_an_error(path, value):
    predictor = Predictor.load(path)
    for which in (0, 1):
        arrays = keys_values(SMALL, 6)
        arrays[which][:] = value
        with pytest.raises(BundleError, match="not finite"):
            predictor.probabilities((8, 2), *arrays)


def test_many_threads_may_ask_at_once(path):
    predictor = Predictor.load(path)
    prompts = [keys_values(SMALL, 20 + i, seed=i) for i in range(8)]
    expected = [predictor.probabilities((8, 2), *prompt) for prompt in prompts]
    found: list[Any] = [None] * 8

    def ask(i: int) -> None:
        found[i] = [predictor.probabilities((8, 2), *prompts[i]) for _ in range(200)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[row] * 200 for row in expected]


def test_predictors_are_freed(path):
    psutil = pytest.importorskip("psutil")
    big = write(path.with_name("big.gguf"), random_network(dataclasses.replace(SMALL, n_hidden=100_000)))
    Predictor.load(big)
    gc.collect()
    before = psutil.Process().memory_info().rss
    for _ in range(50):  # 5.6 MB each
        Predictor.load(big)
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 100e6


# Of a bundle


@pytest.fixture
def bundle(tmp_path: Path) -> bundles.Bundle:
    """The default model with a predictor."""
    directory = tmp_path / "bundle"
    shutil.copytree(bundles.default_bundle(), directory)
    loaded = bundles.load(directory)
    file = write(directory / "predictor.gguf", random_network(), fingerprint=loaded.fingerprint)
    return with_predictor(loaded, file)


def with_predictor(bundle: bundles.Bundle, file: Path) -> bundles.Bundle:
    entry = PredictorFile(file.name, bundles.sha256_file(file), ((8, 2),))
    return dataclasses.replace(bundle, predictor=entry)


def test_a_bundles_predictor_is_found(bundle):
    assert of_bundle(bundle).fingerprint == bundle.fingerprint


def test_a_bundle_without_predictor():
    with pytest.raises(BundleError, match="no predictor: train one"):
        of_bundle(bundles.load(bundles.default_bundle()))


def test_a_predictor_of_other_weights_is_refused(bundle):
    other = write(bundle.path / "predictor.gguf", random_network(), fingerprint="another")
    with pytest.raises(BundleError, match="other weights"):
        of_bundle(with_predictor(bundle, other))


def test_a_predictor_whose_numbers_have_changed_is_refused(bundle):
    file = bundle.path / "predictor.gguf"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        of_bundle(bundle)


# Damaged and foreign files


def refused(path: Path, message: str | None = None) -> None:
    with pytest.raises(BundleError, match=message) as error:
        Predictor.load(path)
    assert str(path) in error.value.message
    assert "\n" not in str(error.value)


def load_or_refuse(path: Path) -> None:
    """Damage that cannot be seen does no harm either."""
    keys, values = keys_values(SMALL, 3)
    try:
        predictor = Predictor.load(path)
        predictor.probabilities(predictor.pairs[0], keys, values)
    except BundleError as error:
        assert "\n" not in str(error)


def test_a_file_cut_short_anywhere_is_refused(path, capfd):
    data = path.read_bytes()
    cut = path.with_name("cut.gguf")
    needed = len(data) - 32  # the last tensor's padding may be missing
    for size in (*range(0, needed, 7), *range(needed - 40, needed)):
        cut.write_bytes(data[:size])
        refused(cut)
    assert capfd.readouterr() == ("", "")


def test_a_file_with_a_flipped_bit_anywhere_does_no_harm(path):
    data = path.read_bytes()
    flipped = path.with_name("flipped.gguf")
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << random.Random(at).randrange(8)
        flipped.write_bytes(changed)
        load_or_refuse(flipped)


def test_a_file_with_wild_numbers_anywhere_does_no_harm(path):
    data = path.read_bytes()
    wild = path.with_name("wild.gguf")
    for pattern in (b"\xff" * 8, b"\x7f" * 4, b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x00" * 8):
        for at in range(0, len(data) - 8, 3):
            wild.write_bytes(data[:at] + pattern + data[at + len(pattern) :])
            load_or_refuse(wild)


def test_files_of_random_bytes_are_refused(tmp_path):
    for seed in range(50):
        path = tmp_path / "random.gguf"
        path.write_bytes(b"GGUF\x03\0\0\0" * (seed % 2) + random.Random(seed).randbytes(seed * 20))
        refused(path)


def test_a_model_is_not_a_predictor():
    default = bundles.load(bundles.default_bundle())
    refused(default.paths(default.levels[0])[0], "not a predictor but a model of architecture llama")


def test_what_is_no_file_is_refused(tmp_path):
    refused(tmp_path)
    refused(tmp_path / "nowhere.gguf", "cannot be opened")


def rewritten(path: Path, **changes: Any) -> Path:
    """A predictor with some entries or tensors of other values; None leaves one out. `last` is the tensor put last."""
    reader, last = gguf.GGUFReader(path), changes.pop("last", "")
    out = path.with_name("rewritten.gguf")
    writer = gguf.GGUFWriter(out, changes.pop("architecture", "pmpd-predictor"))
    entries = {name: field for name, field in reader.fields.items() if name.startswith("pmpd.")}
    for name, field in entries.items():
        short = name.removeprefix("pmpd.predictor.")
        value = changes.get(short, field.contents())
        if value is None:
            continue
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, changes.get(f"{short} type", field.types[0]))
    for tensor in sorted(reader.tensors, key=lambda tensor: tensor.name == last):
        value = changes.get(tensor.name, tensor.data)
        if value is not None:
            writer.add_tensor(tensor.name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_a_rewritten_file_is_the_same_predictor(path):
    keys, values = keys_values(SMALL, 4)
    found = Predictor.load(rewritten(path)).probabilities((8, 2), keys, values)
    assert found == pytest.approx(in_torch(random_network(seed=1), keys, values), abs=1e-5)


def test_a_file_that_promises_more_than_it_holds_takes_no_memory(path):
    name = "pmpd.predictor.0.hidden.weight"
    file = rewritten(path, hidden_length=1 << 20, last=name)
    data = file.read_bytes()
    shape = struct.pack("<Iqq", 2, 9, 5)
    assert data.count(name.encode() + shape) == 1
    file.write_bytes(data.replace(name.encode() + shape, name.encode() + struct.pack("<Iqq", 2, 9, 1 << 20)))
    refused(file, f"truncated: tensor {name}")


STRING, I32 = gguf.GGUFValueType.STRING, gguf.GGUFValueType.INT32
QUERY, OUTPUT = "pmpd.predictor.0.query", "pmpd.predictor.1.output.weight"
PRIOR = [0.25] * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "bad\nname\x1b[2J"}, r"architecture bad\?name\?\[2J"),
        ({"version": 2}, "format version 2, this program reads 1"),
        ({"version": None}, "no entry pmpd.predictor.version"),
        ({"version": "1", "version type": STRING}, "version is not of type u32"),
        ({"fingerprint": None}, "no entry pmpd.predictor.fingerprint"),
        ({"fingerprint": 7, "fingerprint type": I32}, "fingerprint is not of type str"),
        ({"layer": ["a"]}, "layer is not of type i32"),
        ({"head_count_kv": 0}, "head_count_kv is 0"),
        ({"head_count_kv": 2**32 - 1}, "head_count_kv is 4294967295"),
        ({"key_length": 1 << 20}, "query is not F32 of 2 x 1048576"),
        ({"value_length": 1 << 20, "hidden_length": 1 << 20, "head_count_kv": 1 << 20}, "query is not F32"),
        ({"hidden_length": 4}, "hidden.weight is not F32 of 4 x 9"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"classes": [0.0, 0.5]}, "differ in their number"),
        ({"classes": [1.0]}, "1 classes"),
        ({"classes": [0, 1, 2, 3]}, "classes is not an array of type f32"),
        ({"classes": ["a", "b", "c", "d"]}, "classes is not an array of type f32"),
        ({"classes": [0.0, 0.5, 0.5, 1.0]}, "do not rise"),
        ({"classes": [0.0, float("nan"), 0.5, 1.0]}, "do not rise"),
        ({"classes": [-0.1, 0.1, 0.5, 1.0]}, "do not rise"),
        ({"classes": [0.0, 0.1, 0.5, 1.1]}, "do not rise"),
        ({"pairs.high": [8]}, "differ in their number"),
        ({"pairs.low": [2, 2, 2]}, "differ in their number"),
        ({"pairs.low": [2, 2]}, "8-2 is there twice"),
        ({"pairs.low": [2, 8]}, "8-8 is not one of a high and a low"),
        ({"pairs.low": [0, 2]}, "8-0 is not one of a high and a low"),
        ({"pairs.temperature": [1.0, 0.0]}, "temperature of 8-3"),
        ({"pairs.temperature": [float("inf"), 1.0]}, "temperature of 8-2"),
        ({"pairs.prior": PRIOR[1:]}, "differ in their number"),
        ({"pairs.prior": [*PRIOR[2:], -0.25, 0.75]}, "prior of 8-3 is negative"),
        ({"pairs.prior": [*PRIOR[1:], 0.5]}, "prior of 8-3 does not sum to 1"),
        ({QUERY: None}, f"no tensor {QUERY}"),
        ({QUERY: np.zeros((2, 8), dtype=np.float16)}, "query is not F32 of 2 x 8"),
        ({QUERY: np.zeros((8, 2), dtype=np.float32)}, "query is not F32 of 2 x 8"),
        ({QUERY: np.zeros((2, 2, 8), dtype=np.float32)}, "query is not F32 of 2 x 8"),
        ({OUTPUT: np.full((4, 5), np.nan, dtype=np.float32)}, "not finite"),
    ],
)
def test_files_that_make_no_sense_say_what_is_wrong(path, changes, message):
    refused(rewritten(path, **changes), message)


def test_the_wrapper_needs_neither_torch_nor_gguf(path):
    script = (
        "import sys; from pathlib import Path; from pmpd_edge.predictor import Predictor; "
        f"Predictor.load(Path({str(path)!r})); print(*sorted({{'torch', 'gguf'}} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
