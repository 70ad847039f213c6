"""A bundle of a billion random parameters, for benchmarks whose steps are to be bound by memory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pmpd_edge import bundle, gguf_info
from pmpd_edge.bench.random_model import quantize, write_llama

SHAPE = {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "ff": 5632, "metadata": {"context_length": 2048}}
LEVELS = ((8, "Q8_0"), (4, "Q4_K"))


def make_bundle(folder: Path) -> bundle.Bundle:
    """The random model at two precisions; made once, then found again."""
    if (folder / bundle.MANIFEST).exists():
        return bundle.load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    print("making the random model ...", file=sys.stderr)
    source = write_llama(folder / "f16.gguf", dtype=np.float16, **SHAPE)
    files, levels = {}, []
    for precision, kind in LEVELS:
        path = quantize(source, folder / f"random-1b-q{precision}.gguf", kind)
        size = path.stat().st_size
        files[path.name] = bundle.WeightsFile(kind, size, bundle.sha256_file(path), float(precision))
        levels.append(bundle.Level(precision, (path.name,)))
    source.unlink()
    schedule = bundle.StaticSchedule((bundle.Switch(1, 8), bundle.Switch(33, 4)), 96)
    tokenizer = gguf_info.read(path).tokenizer_sha256
    made = bundle.Bundle(
        folder, "random-1b", {}, "llama", 986_000_000, 2048, tokenizer, "separate", files, tuple(levels), 8, schedule
    )
    bundle.write(made)
    return made
