"""Makes the examples that the learned scheduler is trained on, without any right answers.

The reference is what the highest level answers to a prompt. A prompt's label is the smallest share of high steps whose
answer comes as close to the reference as the pair's high level alone (the paper's ROUGE-L rule, PMPD, ICLR 2025).
Labels cost many answers and are kept in a file; keys and values cost a prefill and are made again.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pmpd_edge.batch import Answer, Job
from pmpd_edge.bundle import StaticSchedule, Switch
from pmpd_edge.calibrate.examples import Example, Pair
from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate import metrics
from pmpd_edge.evaluate.answers import Store
from pmpd_edge.schedule.static import StaticScheduler, with_high_steps

if TYPE_CHECKING:
    from pmpd_edge.batch import Batch
    from pmpd_edge.bundle import Bundle
    from pmpd_edge.schedule import Evaluation

Progress = Callable[[str, float], None]
Halves = npt.NDArray[np.float16]

CLASSES = (0.0, 1 / 6, 1 / 3, 2 / 3, 1.0)  # shares of the longest answer; the paper's, and one more where it is cheap
PROMPTS = 256  # as in the paper
SHORTEST = 8  # tokens of a prompt
LAYER = -1
PART = 16  # prompts whose labels are made together and kept together
_BYTES_PER_TOKEN = 32  # more than any tokenizer's average: what lies behind is not looked at


def cut_prompts(
    *, batch: Batch, text: str, longest: int, n_prompts: int = PROMPTS, seed: int = 0
) -> list[tuple[int, ...]]:
    """Cut prompts out of a text: it is divided into parts, and each part's beginning is a prompt of random length.

    No two of them overlap, so that prompts which are held out of training have not been seen in it.

    Args:
        batch: its model's tokenizer is used.
        text: parts begin at its lines, or at words where lines are too long.
        longest: tokens of a prompt at most.
        n_prompts: fewer come out where a text is too short for so many.
        seed: of the lengths.

    Raises:
        PmpdError: the text, or `longest`, is too short for any.
    """
    if longest <= SHORTEST:
        raise PmpdError(f"prompts of at most {longest} tokens", f"leave room for more than {SHORTEST}")
    begin = batch.tokenize("")[:1]  # the token that every prompt of this model begins with, if there is one
    prompts = []
    for number, part in enumerate(_parts(text, n_prompts)):
        tokens = batch.tokenize(part[: longest * _BYTES_PER_TOKEN], add_bos=False)
        most = min(longest - len(begin), len(tokens) - 1)  # what follows is not the end of what is there
        if most >= SHORTEST:
            length = random.Random(f"{seed} {number}").randint(SHORTEST, most)
            prompts.append((*begin, *tokens[:length]))
    if not prompts:
        raise PmpdError(f"a text of {len(text)} characters is too short for prompts of {SHORTEST} tokens", "give more")
    return prompts


def _parts(text: str, n_parts: int) -> list[str]:
    """Divide a text into about equal parts, each of which begins at a line, or else at a word."""
    starts = [0]
    for number in range(1, n_parts):
        earliest, latest = number * len(text) // n_parts, (number + 1) * len(text) // n_parts
        line = text.find("\n", earliest, latest)
        start = line if line >= 0 else text.find(" ", earliest, latest)
        if start > starts[-1]:
            starts.append(start)
    parts = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    return [part.strip() for part in parts]


def make_examples(
    *,
    batch: Batch,
    prompts: Sequence[Sequence[int]],
    pairs: Sequence[Pair],
    max_new_tokens: int,
    path: Path,
    classes: Sequence[float] = CLASSES,
    layer: int = LAYER,
    tolerance: float = 0.0,
    progress: Progress = lambda label, fraction: None,
) -> list[Example]:
    """Read the keys and values of prompts, and label them.

    Left out are prompts that tell nothing: the model ends its answer at once, or ROUGE-L sees no word in the reference.

    Args:
        batch: the bundle, with room for a prompt and its answer.
        prompts: token ids.
        pairs: (high, low) precisions of the bundle.
        max_new_tokens: of the answers.
        path: where labels are kept; a run that was stopped goes on where it was.
        classes: shares of `max_new_tokens` spent at the high precision: rising, the last one is 1.
        layer: whose keys and values are read; -1 is the last.
        tolerance: how much of ROUGE-L (0 to 1) an answer may lose against the high level's.
        progress: called with what is being done and the fraction of it.

    Raises:
        PmpdError: an argument makes no sense, a prompt does not fit, or too few of the answers can be judged.
        NativeError: the layer has no keys and values.
    """
    _check(batch, prompts, pairs, max_new_tokens, classes)
    seen = _keys_values(batch, prompts, layer, progress)
    labeller = _Labeller(batch, pairs, max_new_tokens, classes, tolerance)
    store = Store(path)
    asked = [tuple(prompts[i]) for i in seen]
    labels: list[list[int] | None] = []
    for at in range(0, len(asked), PART):
        part = asked[at : at + PART]

        def make(part: Sequence[tuple[int, ...]] = part, at: int = at) -> Any:
            return labeller.label(part, lambda done: progress("making labels", (at + done * len(part)) / len(asked)))

        labels += store.get({**labeller.inputs(), "prompts": _sha256(part)}, make)
        progress("making labels", (at + len(part)) / len(asked))
    judged = [(i, dict(zip(pairs, found, strict=True))) for i, found in zip(seen, labels, strict=True) if found]
    if len(judged) <= len(asked) / 2:
        raise PmpdError(
            f"ROUGE-L sees words in {len(judged)} of {len(asked)} answers: it knows the letters a to z",
            "take a text in another language",
        )
    return [Example(tuple(prompts[i]), *seen[i], found) for i, found in judged]


def check_pairs(bundle: Bundle, pairs: Sequence[Pair]) -> None:
    """Raise PmpdError where a pair is not a higher and a lower precision of the bundle's."""
    for high, low in pairs:
        if bundle.level(high).precision <= bundle.level(low).precision:
            raise PmpdError(f"the pair {high}-{low}", "name the higher precision first")


def _check(
    batch: Batch, prompts: Sequence[Sequence[int]], pairs: Sequence[Pair], max_new_tokens: int, classes: Sequence[float]
) -> None:
    if not pairs or not prompts:
        raise PmpdError(f"{len(prompts)} prompts for {len(pairs)} pairs of precisions", "give some of both")
    check_pairs(batch.bundle, pairs)
    if len(classes) < 2 or list(classes) != sorted(set(classes)) or classes[0] < 0 or classes[-1] != 1:
        raise PmpdError(f"the classes {', '.join(map(str, classes))}", "let them rise to 1")
    if (needed := max(map(len, prompts)) + max_new_tokens) > batch.n_ctx:
        raise PmpdError(f"a prompt and its answer take {needed} tokens of {batch.n_ctx}", "cut shorter prompts")


def _sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


class _Look:
    """A scheduler that keeps what the prompt left in a layer's cache."""

    def __init__(self, precision: int, layer: int) -> None:
        self.precisions = (precision,)
        self._layer = layer
        self.found: tuple[Halves, Halves] | None = None  # none where the first token ends the answer

    def start(self, prefill: Evaluation) -> None:
        keys, values = prefill.keys_values(self._layer)
        # The cache of a batch is of this type: nothing is lost, and half of the memory won.
        self.found = keys.astype(np.float16), values.astype(np.float16)

    def next(self, step: int, last: Evaluation) -> int:
        return self.precisions[0]


def _keys_values(
    batch: Batch, prompts: Sequence[Sequence[int]], layer: int, progress: Progress
) -> dict[int, tuple[Halves, Halves]]:
    """Keys and values of the prompts, by their indices, but of those to which the model has nothing to say."""
    prefill = batch.bundle.prefill
    looks = [_Look(prefill, layer) for _ in prompts]
    for at in range(0, len(prompts), PART):
        progress("reading keys and values", at / len(prompts))
        part = range(at, min(at + PART, len(prompts)))
        # The scheduler is asked where there is a second token to decide about.
        list(batch.run([Job(prompts[i], looks[i], prefill, max_new_tokens=2) for i in part]))
    progress("reading keys and values", 1.0)
    seen = {i: look.found for i, look in enumerate(looks) if look.found}
    if not seen:
        raise PmpdError("the model ends all its answers at once", "take another text")
    return seen


@dataclass(frozen=True)
class _High:
    """What a pair's high level alone makes of a prompt: the number of decode steps, and ROUGE-L."""

    n_steps: int
    score: float


@dataclass(frozen=True)
class _Run:
    """An answer to make: `steps` decode steps at the high precision, the others at the low one."""

    prompt: int
    prefill: int
    high: int
    low: int
    steps: int


class _Labeller:
    """Answers prompts with more and more high steps, until the answers are good enough."""

    def __init__(
        self, batch: Batch, pairs: Sequence[Pair], max_new_tokens: int, classes: Sequence[float], tolerance: float
    ) -> None:
        self._batch, self._pairs, self._max_new_tokens = batch, pairs, max_new_tokens
        # As the predictor's file will have them: a share of which half a step is over must not be rounded two ways.
        self._steps = [round(float(np.float32(share)) * max_new_tokens) for share in classes]
        self._tolerance = tolerance
        self._rouge = metrics.make("rougeL")

    def inputs(self) -> dict[str, Any]:
        """All that decides about labels, but the prompts."""
        return {
            "labels": True,
            "bundle": self._batch.bundle.fingerprint,
            "prefill": self._batch.bundle.prefill,
            "pairs": self._pairs,
            "steps": self._steps,
            "max_new_tokens": self._max_new_tokens,
            "tolerance": self._tolerance,
            **self._batch.numerics,
        }

    def label(
        self, prompts: Sequence[tuple[int, ...]], progress: Callable[[float], None] = lambda fraction: None
    ) -> list[list[int] | None]:
        """For each prompt the label of each pair, or None where ROUGE-L has nothing to say."""
        made: dict[_Run, Answer] = {}
        references = self._references(prompts, made)
        highs = self._highs(prompts, references, made)
        labels: dict[tuple[int, Pair], int] = {}
        for label, steps in enumerate(self._steps):
            progress((label + 1) / (len(self._steps) + 1))
            waiting = [(i, pair) for i in references for pair in self._pairs if (i, pair) not in labels]
            # An answer that ends before the switch is the high level's own: it is not made again.
            labels |= {(i, pair): label for i, pair in waiting if highs[i, pair[0]].n_steps <= steps}
            runs = {(i, pair): self._run(i, *pair, steps) for i, pair in waiting if (i, pair) not in labels}
            scores = self._scores(self._answers(prompts, list(runs.values()), made), [references[i] for i, _ in runs])
            for (i, pair), score in zip(runs, scores, strict=True):
                if score >= highs[i, pair[0]].score - self._tolerance - 1e-9:
                    labels[i, pair] = label
        return [[labels[i, pair] for pair in self._pairs] if i in references else None for i in range(len(prompts))]

    def _references(self, prompts: Sequence[tuple[int, ...]], made: dict[_Run, Answer]) -> dict[int, str]:
        """The highest level's answers, by the prompts' indices; without those that ROUGE-L sees no words in."""
        highest = self._batch.bundle.precisions[0]
        runs = [_Run(i, highest, highest, highest, 0) for i in range(len(prompts))]
        texts = [self._batch.detokenize(answer.tokens) for answer in self._answers(prompts, runs, made)]
        scores = self._rouge.rows(texts, texts)[:, 0]
        return {i: texts[i] for i in range(len(prompts)) if scores[i] > 0}

    def _highs(
        self, prompts: Sequence[tuple[int, ...]], references: Mapping[int, str], made: dict[_Run, Answer]
    ) -> dict[tuple[int, int], _High]:
        """By the prompts' indices and the pairs' high precisions."""
        keys = [(i, high) for i in references for high in dict.fromkeys(high for high, _ in self._pairs)]
        answers = self._answers(prompts, [self._run(i, high, high, 0) for i, high in keys], made)
        scores = self._scores(answers, [references[i] for i, _ in keys])
        highs = [_High(len(answer.decode_precisions), score) for answer, score in zip(answers, scores, strict=True)]
        return dict(zip(keys, highs, strict=True))

    def _run(self, prompt: int, high: int, low: int, steps: int) -> _Run:
        return _Run(prompt, self._batch.bundle.prefill, high if steps else low, low, steps)

    def _answers(
        self, prompts: Sequence[tuple[int, ...]], runs: Sequence[_Run], made: dict[_Run, Answer]
    ) -> list[Answer]:
        """The answers, which are added to those that have been made; levels that several pairs share are asked once."""
        new = [run for run in dict.fromkeys(runs) if run not in made]
        jobs = []
        for run in new:
            switches = StaticSchedule((Switch(1, run.high), Switch(2, run.low)), self._max_new_tokens)
            scheduler = StaticScheduler(with_high_steps(switches, run.steps))
            jobs.append(Job(prompts[run.prompt], scheduler, run.prefill, self._max_new_tokens))
        made.update(zip(new, self._batch.run(jobs), strict=True))
        return [made[run] for run in runs]

    def _scores(self, answers: Sequence[Answer], references: Sequence[str]) -> list[float]:
        """ROUGE-L of each answer, 0 to 1, rounded as in the paper."""
        if not answers:
            return []
        rows = self._rouge.rows([self._batch.detokenize(answer.tokens) for answer in answers], references)
        return [round(float(score), 3) for score in rows[:, 0]]
