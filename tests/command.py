"""The command line as tests run it, and bundles to show whose files are no models."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from pmpd_edge import bundle
from pmpd_edge.bundle import Bundle, Fallback, Level, StaticSchedule, Switch, WeightsFile
from pmpd_edge.cli import cli


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def process(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pmpd_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, **options)


def make_bundle(path: Path, layout: str = "separate") -> Bundle:
    """A bundle whose files are no models."""
    path.mkdir(parents=True)
    types = {"m-q8.gguf": ("Q8_0", 8.5), "m-q4.gguf": ("Q4_K", 4.5)}
    for name in types:
        (path / name).write_bytes(b"GGUF" + name.encode() * 100_000)
    files = {
        name: WeightsFile(kind, (path / name).stat().st_size, bundle.sha256_file(path / name), bpw)
        for name, (kind, bpw) in types.items()
    }
    high = ("m-q4.gguf", "m-q8.gguf") if layout == "nested" else ("m-q8.gguf",)
    made = Bundle(
        path=path,
        name="m",
        source={"repo": "org/m", "revision": "abc"},
        architecture="llama",
        parameters=1_234_567,
        context_length=512,
        tokenizer_sha256="0",
        layout=layout,
        files=files,
        levels=(Level(8, high), Level(4, ("m-q4.gguf",))),
        prefill=8,
        schedule=StaticSchedule((Switch(1, 8), Switch(86, 4)), 256),
    )
    bundle.write(made)
    return made


ODD = [
    "m-q4.gguf: 2 tensors, such as blk.0.attn_q.weight, are Q5_0: the shape does not suit Q4_K",
    "m-q4.gguf: 1 tensor, output.weight, is F16: the shape does not suit Q4_K",
    "precision 4 is really 8.25 bits per weight, 0.25 fewer than precision 8: it makes hardly anything faster",
]


def odd_bundle(path: Path) -> Bundle:
    """A bundle whose lower level is not what it is called."""
    made = make_bundle(path)
    fallbacks = (Fallback("Q5_0", ("blk.0.attn_q.weight", "blk.0.attn_k.weight")), Fallback("F16", ("output.weight",)))
    odd = dataclasses.replace(made.files["m-q4.gguf"], bpw=8.25, fallbacks=fallbacks)
    made = dataclasses.replace(made, files={**made.files, "m-q4.gguf": odd})
    bundle.write(made)
    return made
