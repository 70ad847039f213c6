"""NaN and infinite values are found in every float type, by the tensor's name; whatever is finite passes."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from models import TRANSLATOR

from pmpd_edge import gguf_info
from pmpd_edge.convert import checkpoint, convert, values
from pmpd_edge.convert import source as sources
from pmpd_edge.convert.values import Stored
from pmpd_edge.errors import ConvertError

# type, its largest finite value, infinity, a NaN: as bit patterns; float8_e4m3fn has no infinity
FLOATS = [
    ("BF16", np.uint16, 0x7F7F, 0x7F80, 0x7F81),
    ("F16", np.uint16, 0x7BFF, 0x7C00, 0x7E00),
    ("F32", np.uint32, 0x7F7FFFFF, 0x7F800000, 0x7FC00000),
    ("F64", np.uint64, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF8000000000001),
    ("F8_E5M2", np.uint8, 0x7B, 0x7C, 0x7D),
    ("F8_E4M3", np.uint8, 0x7E, None, 0x7F),
]


def stored(path: Path, name: str, kind: str, bits: np.ndarray, offset: int = 0) -> Stored:
    return Stored(path, name, kind, bits.shape, offset, bits.nbytes)


@pytest.mark.parametrize(("kind", "layout", "largest", "infinity", "nan"), FLOATS)
@pytest.mark.parametrize("sign", [0, 1])
def test_every_type(tmp_path: Path, kind: str, layout: type, largest: int, infinity: int, nan: int, sign: int) -> None:
    top = sign << (8 * np.dtype(layout).itemsize - 1)
    bits: np.ndarray = np.full(1000, largest | top, layout)
    path = tmp_path / "tensor"
    bits.tofile(path)
    values.check([stored(path, "w", kind, bits)])
    for bad, word in [(infinity, "an infinite value"), (nan, "NaN")]:
        if bad is not None:
            bits[777] = bad | top
            bits.tofile(path)
            with pytest.raises(ConvertError, match=rf"tensor w has {word} \(element 777\)"):
                values.check([stored(path, "w", kind, bits)])


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_all_patterns_of_16_bits_against_numpy(tmp_path: Path, kind: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = (bits.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else bits.view(np.float16)
    path = tmp_path / "tensor"
    bits[np.isfinite(wide)].tofile(path)
    values.check([stored(path, "w", kind, bits[np.isfinite(wide)])])
    for pattern in bits[~np.isfinite(wide)][::37]:
        np.array([pattern]).tofile(path)
        with pytest.raises(ConvertError, match="NaN" if np.isnan(wide[pattern]) else "infinite"):
            values.check([stored(path, "w", kind, np.array([pattern]))])


def test_only_the_tensors_own_bytes_count_and_integers_pass(tmp_path: Path) -> None:
    path = tmp_path / "file"
    bits = np.full(64, 0xFFFF, np.uint16)
    bits[10:20] = 0x3F80
    bits.tofile(path)
    values.check([stored(path, "good", "BF16", bits[10:20], offset=20), stored(path, "integers", "I16", bits)])
    with pytest.raises(ConvertError, match="tensor good"):
        values.check([stored(path, "good", "BF16", bits[10:21], offset=20)])
    with pytest.raises(ConvertError, match="cut short"):
        values.check([stored(path, "long", "BF16", bits, offset=100)])


def test_large_tensors_are_read_in_little_memory_with_progress(tmp_path: Path) -> None:
    path = tmp_path / "large"
    bits = np.zeros(24_000_001, np.uint16)
    bits[-1] = 0x7F80
    bits.tofile(path)
    seen: list[float] = []
    tracemalloc.start()
    values.check([stored(path, "head", "BF16", bits[:-1])], seen.append)
    with pytest.raises(ConvertError, match=r"element 24000000"):
        values.check([stored(path, "all", "BF16", bits)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
    assert seen == sorted(seen) and len(seen) > 5 and seen[-1] == 1.0


def test_checkpoint_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = Path(shutil.copytree(TRANSLATOR, tmp_path / "model"))
    found = {tensor.name: tensor for tensor in checkpoint.inspect(model).tensors}
    values.check([*found.values()])
    tensor = found["model.layers.5.mlp.down_proj.weight"]
    with open(model / "model.safetensors", "r+b") as file:
        file.seek(tensor.offset + 2 * 12345)
        file.write(b"\xc0\x7f")
    labels: list[str] = []
    with pytest.raises(ConvertError, match=r"layers\.5\.mlp\.down_proj\.weight has NaN \(element 12345\)"):
        convert(model, tmp_path / "out", progress=lambda label, fraction: labels.append(label))
    assert {*labels} == {"Checking"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_headers_agree_with_safetensors() -> None:
    safetensors = pytest.importorskip("safetensors")
    path = TRANSLATOR / "model.safetensors"
    data = path.read_bytes()
    found = {tensor.name: tensor for tensor in checkpoint.inspect(TRANSLATOR).tensors}
    pytest.importorskip("torch")
    import torch

    with safetensors.safe_open(path, "pt") as opened:
        assert {*opened.keys()} == {*found}
        for name, tensor in list(found.items())[::7]:
            expected = opened.get_tensor(name)
            assert tensor.shape == tuple(expected.shape)
            assert data[tensor.offset : tensor.offset + tensor.bytes] == expected.view(torch.int16).numpy().tobytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert found.keys() == header.keys() - {"__metadata__"}


def test_gguf_places_agree_with_upstreams_reader() -> None:
    gguf = pytest.importorskip("gguf")
    from pmpd_edge import bundle

    path = bundle.default_bundle() / "translator-7m-q8.gguf"
    info = gguf_info.read(path)
    expected = {tensor.name: int(tensor.data_offset) for tensor in gguf.GGUFReader(path).tensors}
    assert {tensor.name: info.data_start + tensor.offset for tensor in info.tensors} == expected
    with pytest.raises(ConvertError, match="is Q8_0: quantising it again would lose more"):
        sources.inspect(sources.find(path))
