"""Evaluates a bundle: answers a task's prompts with each method, and says what the answers are worth.

All that takes long is kept in a file, part by part, so that a run which was stopped goes on where it was and finds what
an undisturbed one does; only speeds are measured anew.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pmpd_edge import __version__, device
from pmpd_edge.batch import PARALLEL
from pmpd_edge.bundle import Bundle
from pmpd_edge.cpu import default_threads
from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate import dense_sparse, methods, metrics, timing
from pmpd_edge.evaluate.answers import Store
from pmpd_edge.evaluate.dense_sparse import DenseSparse
from pmpd_edge.evaluate.judge import Judge
from pmpd_edge.evaluate.methods import Dns, Method
from pmpd_edge.evaluate.metrics import Metric
from pmpd_edge.evaluate.respondent import Asked, Respondent
from pmpd_edge.evaluate.results import Answered, MethodResult, Results, bits_of, shares_of
from pmpd_edge.evaluate.tasks import Dataset
from pmpd_edge.evaluate.timing import Timing
from pmpd_edge.runner import Pmpd, llama_cpp
from pmpd_edge.schedule.spec import format_switches

Progress = Callable[[str, float], None]
Note = Callable[[str], None]

STORE = "answers.jsonl"
_LIBRARIES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rougeL": "rouge-score", "bertscore": "bert-score"}


@dataclass(frozen=True)
class Options:
    """How a bundle is evaluated.

    Attributes:
        methods: names, as `methods.CHOICES` has them.
        draft_tokens: of `lossless`, as `Pmpd` takes them.
        baseline: the method that differences are from; None is `high`, or the first one.
        parallel: answers at a time.
        timed: prompts whose answers are timed, one at a time; 0 times none.
        led: prompts on which distributions are compared with the reference level's; 0 compares none.
        encoder: BERTScore's, see `metrics.make`.
        source: the model that the bundle was made from, where it has no 16-bit level: a directory, a Hub id or a GGUF
            file. It is the reference then, and what `dns` takes its outliers from.
        seed: of the bootstrap.
        n_threads, n_gpu_layers: as `Pmpd` takes them.
    """

    methods: tuple[str, ...] = ("high", "low", "pmpd")
    draft_tokens: int | str = "auto"
    baseline: str | None = None
    parallel: int = PARALLEL
    timed: int = 5
    led: int = 100
    encoder: str | None = None
    source: str | None = None
    seed: int = 0
    n_threads: int | None = None
    n_gpu_layers: int = -1


@dataclass(frozen=True)
class Evaluation:
    """What was found, and what it was found from.

    Attributes:
        references: the right answers; empty where there is none to judge by.
        answers: by method, for each example.
        scores: by method, for each example alone; None where there is no right answer.
    """

    results: Results
    dataset: Dataset
    references: Sequence[str]
    answers: Mapping[str, Sequence[Answered]]
    scores: Mapping[str, Sequence[Mapping[str, float] | None]]


def check_installed() -> None:
    """Raise PmpdError where what draws the plots is missing: now, not after hours."""
    if not importlib.util.find_spec("matplotlib"):
        raise PmpdError("an evaluation draws plots with matplotlib", "pip install 'pmpd-edge[eval]'")


def evaluate(
    bundle: Bundle,
    dataset: Dataset,
    options: Options,
    out: Path,
    progress: Progress = lambda label, fraction: None,
    note: Note = lambda text: None,
) -> Evaluation:
    """Compare methods on a data set.

    Args:
        bundle: what answers.
        dataset: what is asked, and the right answers.
        options: what is compared, and how.
        out: a directory for the answers: a run that was stopped goes on from there.
        progress: called with what is being done and the fraction of it.
        note: called with a line about what is not as one would expect.

    Raises:
        PmpdError: a method or a metric does not fit, or no prompt fits the context.
    """
    return _Run(bundle, dataset, options, out, progress, note).run()


class _Run:
    """An evaluation under way."""

    def __init__(
        self, bundle: Bundle, dataset: Dataset, options: Options, out: Path, progress: Progress, note: Note
    ) -> None:
        self._bundle, self._dataset, self._options = bundle, dataset, options
        self._out, self._progress, self._note = out, progress, note
        self._compared = methods.make(options.methods, bundle)
        self._own = [method for method in self._compared if isinstance(method, Method)]
        self._dns = [method for method in self._compared if isinstance(method, Dns)]
        names = [method.name for method in self._compared]
        if options.baseline is not None and options.baseline not in names:
            raise PmpdError(f"the baseline {options.baseline!r} is not compared", f"choose one of {', '.join(names)}")
        self._left_out: dict[str, str] = {}
        self._metrics = dict(self._make_metrics())
        self._answers: dict[str, list[Answered]] = {}
        self._led: dict[str, Any] = {}
        self._made: dict[str, DenseSparse] = {}

    def _make_metrics(self) -> Iterator[tuple[str, Metric]]:
        for name in self._dataset.task.metrics:
            if name == "bertscore":
                self._progress("looking for BERTScore's encoder", 0.0)
            try:
                yield name, metrics.make(name, self._options.encoder)
            except PmpdError as error:
                if name != "bertscore":  # the only one that needs a model
                    raise
                self._left_out[name] = error.message
                self._note(f"left out: {error}")

    def run(self) -> Evaluation:
        bundle, dataset, options = self._bundle, self._dataset, self._options
        self._out.mkdir(parents=True, exist_ok=True)
        store = Store(self._out / STORE)
        whole = self._with_reference()
        top = methods.uniform("reference", whole.precisions[0], whole)
        asked = Asked.of(
            bundle,
            dataset,
            options.parallel,
            options.n_threads,
            options.n_gpu_layers,
            self._progress,
            options.draft_tokens,
        )
        timings = self._time(asked) if options.timed else {}
        self._answers |= Respondent(bundle, asked, store).answer(self._own)
        respondent = Respondent(whole, asked, store)
        wants_top = dataset.task.reference is None or options.led > 0
        reference = respondent.answer([top])[top.name] if wants_top else []
        self._led |= respondent.lead(self._own, top, reference, options.led)
        for method in self._dns:
            self._add_dns(method, whole, asked, store, reference)
        right = [example.reference for example in dataset.examples]
        if dataset.task.reference is None:
            right = [answer.text for answer in reference]
        return self._judge(right, timings, self._facts(asked, top.prefill))

    def _with_reference(self) -> Bundle:
        """The bundle, with the 16-bit weights among its levels where they are to be had."""
        if self._bundle.precisions[0] == 16:
            return self._bundle
        if self._options.source:
            path = dense_sparse.find_source(self._options.source, self._out, self._progress)
            return dense_sparse.with_16_bits(self._bundle, path)
        if self._dns:  # said now, not after hours
            raise PmpdError(
                f"dns needs the 16-bit weights, which {self._bundle.name} has not",
                "give the model that it was made from with --source",
            )
        self._note(f"no 16-bit level: the reference is that of {self._bundle.precisions[0]} bits")
        return self._bundle

    def _time(self, asked: Asked) -> dict[str, Timing]:
        options = self._options
        prompts = [prompt for prompt in asked.prompts if len(prompt) < asked.n_ctx][: options.timed]
        llm = Pmpd(
            self._bundle.path,
            n_ctx=asked.n_ctx,
            n_threads=options.n_threads,
            n_gpu_layers=options.n_gpu_layers,
        )
        with closing(llm):
            return timing.measure(
                llm,
                self._own,
                prompts,
                asked.max_new_tokens,
                partial(self._progress, "measuring speed"),
                asked.draft_tokens,
            )

    def _add_dns(self, method: Dns, whole: Bundle, asked: Asked, store: Store, reference: Sequence[Answered]) -> None:
        """Make the decomposition, and have it answer; one that cannot be had is left out, with the reason."""
        try:
            made = dense_sparse.make(
                whole,
                method,
                method.bpw or self._bpw_of_progressive(),
                self._out,
                self._options.n_threads,
                self._progress,
            )
        except PmpdError as error:
            self._left_out[method.name] = error.message
            self._note(f"left out: {error}")
            return
        respondent = Respondent(made.bundle, asked, store)
        self._made[method.name] = made
        self._answers |= respondent.answer([made.method])
        top = methods.uniform("reference", 16, made.bundle)
        self._led |= respondent.lead([made.method], top, reference, self._options.led)

    def _bpw_of_progressive(self) -> float:
        """What the first progressive method reads."""
        method = next(method for method in self._own if method.name.startswith("pmpd"))
        return bits_of(self._answers[method.name], method.prefill, self._bpw)[1]

    @property
    def _bpw(self) -> dict[int, float]:
        return {level.precision: self._bundle.bpw(level) for level in self._bundle.levels}

    def _judge(self, references: Sequence[str], timings: Mapping[str, Timing], facts: Mapping[str, Any]) -> Evaluation:
        judge = Judge(self._metrics, references, self._options.seed)
        rows = {name: judge.rows(answers) for name, answers in self._answers.items()}
        if not rows:
            raise PmpdError(f"nothing to compare: {'; '.join(self._left_out.values())}", "choose other methods")
        baseline = next((name for name in (self._options.baseline, "high") if name in rows), next(iter(rows)))
        found = tuple(
            self._result(method.name, judge, rows, baseline, timings)
            for method in self._compared
            if method.name in rows
        )
        results = Results(
            methods=found,
            baseline=baseline,
            facts={**facts, "judged": len(judge.judged)},
            bad_rows=tuple((row.where, row.reason) for row in self._dataset.bad),
            left_out=self._left_out,
        )
        scores = {name: judge.each(table) for name, table in rows.items()}
        return Evaluation(results, self._dataset, references, self._answers, scores)

    def _result(
        self,
        name: str,
        judge: Judge,
        rows: Mapping[str, Mapping[str, Any]],
        baseline: str,
        timings: Mapping[str, Timing],
    ) -> MethodResult:
        answers, made = self._answers[name], self._made.get(name)
        method = made.method if made else next(method for method in self._own if method.name == name)
        bits, bpw = (made.bits, made.parts.bpw) if made else bits_of(answers, method.prefill, self._bpw)
        told = f"{made.parts.type}, and {made.parts.share:.2%} of the weights exactly" if made else ""
        return MethodResult(
            name=name,
            prefill=method.prefill,
            bits=bits,
            bpw=bpw,
            scores=judge.scores(rows[name]),
            differences=judge.differences(rows[name], rows[baseline]),
            finishes=dict(Counter(answer.finish for answer in answers)),
            steps=float(np.mean([len(answer.decode_precisions) for answer in answers])),
            shares=shares_of(answers),
            fidelity=judge.fidelity(self._led[name]) if name in self._led else None,
            timing=timings.get(name),
            note=told,
        )

    def _facts(self, asked: Asked, reference_precision: int) -> dict[str, Any]:
        bundle, dataset, options = self._bundle, self._dataset, self._options
        libraries = {library for name, library in _LIBRARIES.items() if name in self._metrics}
        return {
            "bundle": {"name": bundle.name, "fingerprint": bundle.fingerprint, "source": dict(bundle.source)},
            "levels": {str(level.precision): [bundle.files[f].type for f in level.weights] for level in bundle.levels},
            "prefill": bundle.prefill,
            "schedule": format_switches(bundle.schedule),
            "data": {"name": dataset.name, "sha256": dataset.sha256},
            "task": {**dataset.task.asked, "reference": dataset.task.reference, "metrics": list(self._metrics)},
            "examples": len(dataset.examples),
            "max_new_tokens": asked.max_new_tokens,
            "context": asked.n_ctx,
            "reference_precision": reference_precision,
            "compared_prompts": options.led,
            "timed_prompts": options.timed,
            "parallel": options.parallel,
            "threads": options.n_threads or default_threads(),
            "seed": options.seed,
            "device": device.describe(),
            "versions": {
                "pmpd-edge": __version__,
                "llama-cpp-python": llama_cpp.__version__,
                **{library: version(library) for library in sorted(libraries)},
            },
        }
