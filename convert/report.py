"""What a bundle's levels lose and gain: quality on a held-out text, size, speed on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pmpd_edge.bundle import REPORT, Bundle
from pmpd_edge.convert import child, quantize
from pmpd_edge.cpu import default_threads
from pmpd_edge.errors import ConvertError
from pmpd_edge.gguf_info import GgufInfo

DEFAULT_TEXT = Path(__file__).parent / "data" / "held_out.txt"
PLOT = "report.png"

_CHUNK = 512  # tokens: what llama-perplexity takes
_QUALITY = 0.7  # of the time


def check_installation() -> None:
    """Raise ConvertError where what draws the plot is missing: at the beginning, not after hours."""
    if not importlib.util.find_spec("matplotlib"):
        raise ConvertError("--report needs the Python package matplotlib", "pip install 'pmpd-edge[convert]'")


def make(
    source: GgufInfo,
    bundle: Bundle,
    text: Path = DEFAULT_TEXT,
    threads: int | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Any]:
    """Measure the levels of a bundle, and write `report.json` and `report.png` into it.

    Args:
        source: the 16-bit file that they were made from.
        bundle: written, with all its files.
        text: what perplexity, KL divergence and top-1 agreement are measured on; not the calibration text.
        threads: None for those of a chat.
        progress: called with the fraction that is done.

    Returns:
        What `report.json` holds.

    Raises:
        ConvertError: the text is too short, or llama.cpp does not evaluate a level.
    """
    chunk = min(_CHUNK, source.context_length)
    n_threads = threads or default_threads()
    quality = _run(
        "quality",
        {
            "source": str(source.path.resolve()),
            "levels": [[str(path.resolve()) for path in bundle.paths(level)] for level in bundle.levels],
            "text": str(text.resolve()),
            "chunk": chunk,
            "threads": n_threads,
        },
        lambda fraction: progress(_QUALITY * fraction),
    )
    speeds = _run(
        "speed",
        {"bundle": str(bundle.path.resolve()), "precisions": bundle.precisions, "threads": threads},
        lambda fraction: progress(_QUALITY + (1 - _QUALITY) * fraction),
    )
    report = {
        "text": {"name": text.name, "sha256": hashlib.sha256(text.read_bytes()).hexdigest()},
        "tokens": quality["tokens"],
        "chunk": chunk,
        "threads": n_threads,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "reference": {"type": source.type, "bytes": source.path.stat().st_size, **quality["reference"]},
        "levels": [
            {
                "precision": level.precision,
                "type": " + ".join(bundle.files[name].type for name in level.weights),
                "bytes": sum(bundle.files[name].bytes for name in level.weights),
                "bpw": round(bundle.bpw(level), 4),
                **figures,
                **speed,
            }
            for level, figures, speed in zip(bundle.levels, quality["levels"], speeds, strict=True)
        ],
    }
    (bundle.path / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _plot(report, bundle.name, bundle.path / PLOT)
    return report


def _run(verb: str, job: Mapping[str, Any], progress: Callable[[float], None]) -> Any:
    def on_line(line: str) -> None:
        if match := quantize.PROGRESS.search(line):
            progress((int(match[1]) - 1) / int(match[2]))

    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out.json"
        try:
            child.run(quantize.CODE, [verb, json.dumps({**job, "out": str(out)})], on_line)
        except child.ChildError as error:
            raise ConvertError(f"the report: {error.reason}", "convert without --report") from None
        return json.loads(out.read_text(encoding="utf-8"))


def _plot(report: Mapping[str, Any], name: str, path: Path) -> None:
    """Draw quality against size, and against decode speed."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    levels: Sequence[Mapping[str, Any]] = [level for level in report["levels"] if level["kl"] > 0]
    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(f"{name}: what its levels lose against {report['reference']['type']}")
    axes: Any = figure.subplots(1, 2, sharey=True)
    sides = (("bytes", 1e-6, "size (MB)"), ("decode_tokens_per_second", 1.0, "decode (tokens/s)"))
    for side, (key, scale, label) in zip(axes, sides, strict=True):
        xs, ys = [level[key] * scale for level in levels], [level["kl"] for level in levels]
        errors = [level["kl_error"] for level in levels]
        side.errorbar(xs, ys, yerr=errors, fmt="o-", color="#d75f00", ecolor="#999999", capsize=3)
        for x, y, level in zip(xs, ys, levels, strict=True):
            text = f"{level['precision']} bits, {level['type']}"
            inwards = (
                {"ha": "right", "xytext": (-8, 0)} if 2 * x > min(xs) + max(xs) else {"ha": "left", "xytext": (8, 0)}
            )
            side.annotate(text, (x, y), textcoords="offset points", fontsize=8, **inwards)
        side.set_xlabel(label)
        side.set_yscale("log")
        side.margins(x=0.25, y=0.15)
        side.grid(alpha=0.3)
    axes[0].set_ylabel("KL divergence (nats per token)")
    figure.savefig(path, dpi=150)
