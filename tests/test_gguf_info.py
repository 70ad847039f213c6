"""Reading headers: what a step reads, what falls back, damaged files. Needs neither the library nor torch."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from pmpd_edge import bundle, gguf_info
from pmpd_edge.errors import BundleError
from pmpd_edge.gguf_info import GgufInfo, Tensor


def info(*tensors: tuple[str, str, tuple[int, ...]], **metadata: int) -> GgufInfo:
    entries = {"general.architecture": "x", **{f"x.{key}": value for key, value in metadata.items()}}
    return GgufInfo(Path("x.gguf"), entries, "", tuple(Tensor(name, kind, shape, 0) for name, kind, shape in tensors))


def test_tied_embeddings_are_read_as_output_and_untied_ones_are_not() -> None:
    embeddings = ("token_embd.weight", "Q8_0", (256, 100))
    matrix = ("blk.0.attn_q.weight", "Q4_K", (256, 300))
    assert info(embeddings, matrix).bpw == pytest.approx((8.5 * 100 + 4.5 * 300) / 400)
    output = ("output.weight", "Q8_0", (256, 100))
    assert info(embeddings, matrix, output).bpw == pytest.approx((8.5 * 100 + 4.5 * 300) / 400)
    assert info(embeddings, matrix, output).parameters == 256 * 500


def test_tables_and_constants_are_not_read() -> None:
    matrix = ("blk.0.attn_q.weight", "Q2_K", (256, 256))
    tables = [("position_embd.weight", "F32", (256, 512)), ("rope_freqs.weight", "F32", (64,))]
    assert info(matrix, *tables).bpw == pytest.approx(2.625)
    assert info(matrix, *tables).parameters == 256 * 256 + 256 * 512


def test_only_the_experts_in_use_are_read() -> None:
    experts = ("blk.0.ffn_up_exps.weight", "Q4_K", (256, 256, 8))
    dense = ("blk.0.attn_q.weight", "Q8_0", (256, 256))
    made = info(experts, dense, expert_count=8, expert_used_count=2)
    assert made.bpw == pytest.approx((2 * 4.5 + 8.5) / 3)


def test_fallbacks_are_the_matrices_of_another_type() -> None:
    tensors = [
        ("token_embd.weight", "Q8_0", (96, 10)),
        ("output.weight", "F16", (96, 10)),
        ("blk.0.attn_q.weight", "Q5_0", (96, 96)),
        ("blk.0.ffn_down.weight", "Q4_K", (256, 96)),
        ("blk.0.ffn_gate_inp.weight", "F32", (96, 8)),
        ("blk.0.attn_norm.weight", "F32", (96,)),
    ]
    vocabulary = gguf_info.VOCABULARY_MATRICES
    found = info(*tensors).fallbacks(lambda tensor: "Q8_0" if tensor.name in vocabulary else "Q4_K")
    assert [tensor.name for tensor in found] == ["output.weight", "blk.0.attn_q.weight"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "copy.gguf"
    shutil.copyfile(bundle.default_bundle() / "translator-7m-q2.gguf", path)
    assert gguf_info.read(path).type == "Q2_K"
    return path


@pytest.mark.parametrize("size", [0, 3, 40, 5000, 3_000_000])
def test_truncated_file_is_refused(copy: Path, size: int) -> None:
    os.truncate(copy, size)
    with pytest.raises(BundleError, match="damaged"):
        gguf_info.read(copy)


def test_damaged_header_is_read_or_refused_and_never_more(copy: Path) -> None:
    whole = copy.read_bytes()
    header = gguf_info.read(copy)
    generator = random.Random(1)
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        # Long arrays of strings fill most of the header: the entries before them and the tensors after are hit more.
        start = generator.choice([4, 100_000, len(whole) - sum(tensor.bytes for tensor in header.tensors) - 4000])
        for _ in range(generator.randint(1, 4)):
            data[start + generator.randrange(3000)] = generator.choice([0, 1, 127, 255, generator.randrange(256)])
        copy.write_bytes(data)
        try:
            gguf_info.read(copy)
        except BundleError:
            refused += 1
    assert refused > 50
