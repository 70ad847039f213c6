"""A bundle of a billion random parameters, for benchmarks whose steps are to be bound by memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pmpd_edge import bundle, gguf_info
from pmpd_edge.bench.random_model import quantize, write_llama

SHAPE = {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "ff": 5632, "metadata": {"context_length": 2048}}
LEVELS = ((8, "Q8_0"), (4, "Q4_K"))


def make_bundle(
    folder: Path, shape: Mapping[str, Any] = SHAPE, levels: Sequence[tuple[int, str]] = LEVELS
) -> bundle.Bundle:
    """A random model at some precisions, in these types; made once, then found again."""
    if (folder / bundle.MANIFEST).exists():
        return bundle.load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    print("making the random model ...", file=sys.stderr)
    source = write_llama(folder / "f16.gguf", dtype=np.float16, **shape)
    files, made = {}, []
    for precision, kind in levels:
        path = quantize(source, folder / f"random-1b-q{precision}.gguf", kind)
        info = gguf_info.read(path)
        files[path.name] = bundle.WeightsFile(kind, path.stat().st_size, bundle.sha256_file(path), info.bpw)
        made.append(bundle.Level(precision, (path.name,)))
    source.unlink()
    high, low = levels[0][0], levels[-1][0]
    result = bundle.Bundle(
        path=folder,
        name="random-1b",
        source={},
        architecture=info.architecture,
        parameters=info.parameters,
        context_length=info.context_length,
        tokenizer_sha256=info.tokenizer_sha256,
        layout="separate",
        files=files,
        levels=tuple(made),
        prefill=high,
        schedule=bundle.StaticSchedule((bundle.Switch(1, high), bundle.Switch(33, low)), 96),
    )
    bundle.write(result)
    return result
