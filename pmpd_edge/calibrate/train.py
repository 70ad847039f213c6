"""Trains a bundle's learned scheduler: prompts, labels, networks, the file in the bundle and what the manifest says."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import itertools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmpd_edge import bundle as bundles
from pmpd_edge.batch import PARALLEL, Batch
from pmpd_edge.bundle import Bundle, PredictorFile
from pmpd_edge.calibrate import labels
from pmpd_edge.calibrate.examples import Pair
from pmpd_edge.calibrate.labels import Progress
from pmpd_edge.calibrate.report import Report
from pmpd_edge.errors import PmpdError
from pmpd_edge.schedule.learned import CONFIDENCE

FILE = "predictor.gguf"
STORE = "labels.jsonl"
LONGEST = 512  # tokens of a prompt


@dataclass(frozen=True)
class Options:
    """How a predictor is trained.

    Attributes:
        pairs: (high, low) precisions; by default all pairs of levels below 16 bits.
        n_prompts: cut out of the text.
        max_new_tokens: of the answers; by default the bundle's.
        tolerance: how much of ROUGE-L (0 to 1) an answer may lose against the high level's.
        confidence: at which the report tells costs.
        seed: of the cuts and of the training.
        parallel, n_threads, n_gpu_layers: as `Batch` takes them.
    """

    pairs: tuple[Pair, ...] = ()
    n_prompts: int = labels.PROMPTS
    max_new_tokens: int | None = None
    tolerance: float = 0.0
    confidence: float = CONFIDENCE
    seed: int = 0
    parallel: int = PARALLEL
    n_threads: int | None = None
    n_gpu_layers: int = -1


def train_scheduler(
    bundle: Bundle,
    source: Path | Sequence[Sequence[int]],
    options: Options,
    progress: Progress = lambda label, fraction: None,
) -> tuple[Bundle, list[Report]]:
    """Train a predictor for a bundle and write it into the bundle.

    Labels are kept in the bundle's `labels.jsonl`: a run that is stopped goes on where it was.

    Args:
        bundle: whose levels answer.
        source: a text that prompts are cut out of, or prompts as token ids.
        options: how.
        progress: called with what is being done and the fraction of it.

    Returns:
        The bundle with its predictor, and what it is worth for each pair.

    Raises:
        PmpdError: there are too few levels or prompts, or torch is missing.
    """
    _check_installation()
    bundles.check_writable(bundle)
    pairs = options.pairs or default_pairs(bundle)
    labels.check_pairs(bundle, pairs)
    max_new_tokens = options.max_new_tokens or bundle.schedule.max_new_tokens
    longest = min(LONGEST, bundle.context_length - max_new_tokens)
    if not isinstance(source, Path):
        longest = max(map(len, source), default=0)
    if longest < labels.SHORTEST or longest + max_new_tokens > bundle.context_length:
        raise PmpdError(
            f"prompts of {longest} tokens and answers of {max_new_tokens} do not fit a context of "
            f"{bundle.context_length}",
            "take a smaller --max-new-tokens",
        )
    with Batch(
        bundle,
        n_ctx=longest + max_new_tokens,
        parallel=options.parallel,
        n_threads=options.n_threads,
        n_gpu_layers=options.n_gpu_layers,
    ) as batch:
        prompts: Sequence[Sequence[int]]
        if isinstance(source, Path):
            prompts = labels.cut_prompts(
                batch=batch,
                text=_read(source),
                longest=longest,
                n_prompts=options.n_prompts,
                seed=options.seed,
            )
        else:
            prompts = source
        examples = labels.make_examples(
            batch=batch,
            prompts=prompts,
            pairs=pairs,
            max_new_tokens=max_new_tokens,
            path=bundle.path / STORE,
            tolerance=options.tolerance,
            progress=progress,
        )
    return _train(bundle, examples, options, max_new_tokens, progress)


def default_pairs(bundle: Bundle) -> tuple[Pair, ...]:
    """All pairs of levels below 16 bits, or of all levels where that leaves none."""
    below = [precision for precision in bundle.precisions if precision < 16]
    precisions = below if len(below) > 1 else list(bundle.precisions)
    if len(precisions) < 2:
        raise PmpdError(f"{bundle.path}: one level only", "convert with more: --precisions 8,4")
    return tuple(itertools.combinations(precisions, 2))


def _check_installation() -> None:
    """Raise where something is missing: at the beginning, not after hours of labels."""
    for package in ("torch", "gguf", "rouge_score"):
        if not importlib.util.find_spec(package):
            raise PmpdError(f"training needs the Python package {package}", "pip install 'pmpd-edge[train]'")


def _read(path: Path) -> str:
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            text: str = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PmpdError(f"{path}: not UTF-8 at byte {error.start}", "convert the file to UTF-8") from None
    except (EOFError, OSError, zlib.error) as error:
        raise PmpdError(f"{path}: {getattr(error, 'strerror', None) or error}", "give a text file") from None
    return text


def _train(
    bundle: Bundle, examples: Any, options: Options, max_new_tokens: int, progress: Progress
) -> tuple[Bundle, list[Report]]:
    import torch

    from pmpd_edge.calibrate import network, training

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks of this size gain nothing from more, which wait for each other
    try:
        results = training.train(
            examples=examples,
            classes=labels.CLASSES,
            confidence=options.confidence,
            seed=options.seed,
            progress=progress,
        )
    finally:
        torch.set_num_threads(n_threads)
    path = bundle.path / FILE
    network.write(
        path,
        trained=[result.trained for result in results],
        classes=labels.CLASSES,
        max_new_tokens=max_new_tokens,
        layer=labels.LAYER,
        fingerprint=bundle.fingerprint,
    )
    reports = [result.report for result in results]
    predictor = PredictorFile(
        FILE,
        bundles.sha256_file(path),
        tuple(report.pair for report in reports),
        training={
            "prompts": sum(reports[0].counts),
            "prefill": bundle.prefill,
            "max_new_tokens": max_new_tokens,
            "tolerance": options.tolerance,
            "seed": options.seed,
            "classes": list(labels.CLASSES),
            "pairs": [{**dataclasses.asdict(report), "verdict": report.verdict} for report in reports],
        },
    )
    return bundles.update(bundle, predictor=predictor), reports
