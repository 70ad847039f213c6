"""Answers a data set's prompts with one method after another, and leads methods along the reference's answers.

What has been made is kept, and found again; see answers.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pmpd_edge.batch import Batch
from pmpd_edge.bundle import Bundle
from pmpd_edge.errors import PmpdError
from pmpd_edge.evaluate import fidelity
from pmpd_edge.evaluate.answers import Answers, Kept, Store
from pmpd_edge.evaluate.drafted import OneByOne
from pmpd_edge.evaluate.methods import Method
from pmpd_edge.evaluate.prompts import prompt_of, prompts_of, vocabulary
from pmpd_edge.evaluate.results import Answered
from pmpd_edge.evaluate.tasks import Dataset
from pmpd_edge.runner import Pmpd

Progress = Callable[[str, float], None]

PART = 16  # prompts whose distributions are kept together
MOST_LED = 16  # methods, the reference among them, that are led along an answer at a time
_AROUND_A_TURN = 64  # tokens that a chat template may take


@dataclass(frozen=True)
class Asked:
    """What is asked, and with what.

    Attributes:
        prompts: token ids of the first messages.
        n_turns: most messages of an example.
        n_ctx: tokens of a conversation, at most what the model was trained on.
        max_new_tokens: length of each answer at most.
        parallel, n_threads, n_gpu_layers: as `Batch` takes them.
        draft_tokens: of methods that draft, as `Pmpd` takes them.
    """

    dataset: Dataset
    prompts: tuple[tuple[int, ...], ...]
    n_turns: int
    n_ctx: int
    max_new_tokens: int
    parallel: int
    n_threads: int | None
    n_gpu_layers: int
    progress: Progress
    draft_tokens: int | str

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        dataset: Dataset,
        parallel: int,
        n_threads: int | None,
        n_gpu_layers: int,
        progress: Progress,
        draft_tokens: int | str = "auto",
    ) -> Asked:
        """Tokenise the prompts; raises PmpdError where none fits the context."""
        length = dataset.task.max_new_tokens or bundle.schedule.max_new_tokens
        with closing(vocabulary(bundle)) as llm:
            prompts = prompts_of(llm, dataset.task, dataset.examples, progress)
            later = [
                sum(len(llm.tokenize(turn.encode())) + length + _AROUND_A_TURN for turn in example.turns)
                for example in dataset.examples
            ]
        needed = length + max(len(prompt) + more for prompt, more in zip(prompts, later, strict=True))
        n_ctx = min(needed, bundle.context_length)
        if (shortest := min(map(len, prompts))) > n_ctx:
            raise PmpdError(
                f"{dataset.name}: the shortest prompt has {shortest} tokens, the context {n_ctx}", "take another model"
            )
        return cls(
            dataset=dataset,
            prompts=tuple(map(tuple, prompts)),
            n_turns=1 + max(len(example.turns) for example in dataset.examples),
            n_ctx=n_ctx,
            max_new_tokens=length,
            parallel=parallel,
            n_threads=n_threads,
            n_gpu_layers=n_gpu_layers,
            progress=progress,
            draft_tokens=draft_tokens,
        )


class Respondent:
    """A bundle that answers.

    Args:
        bundle: its levels.
        asked: what is asked.
        store: where answers are kept.
    """

    def __init__(self, bundle: Bundle, asked: Asked, store: Store) -> None:
        self._bundle, self._asked, self._store = bundle, asked, store

    def answer(self, methods: Sequence[Method]) -> dict[str, list[Answered]]:
        """The answers to all examples, by method."""
        found: dict[str, list[Answered]] = {}
        with self._batch(self._asked.parallel) as batch:
            found |= {method.name: self._answer(batch, method) for method in methods if not method.drafts}
        if len(found) < len(methods):
            with self._batch(1) as batch:  # closed before the next: both would hold the highest level
                numerics = batch.numerics
            with closing(self._drafting()) as llm:
                one_by_one = OneByOne(llm, numerics, self._asked.draft_tokens)
                found |= {method.name: self._answer(one_by_one, method) for method in methods if method.drafts}
        return found

    def _drafting(self) -> Pmpd:
        asked = self._asked
        return Pmpd(
            self._bundle.path,
            method="lossless",
            n_ctx=asked.n_ctx,
            n_threads=asked.n_threads,
            n_gpu_layers=asked.n_gpu_layers,
        )

    def _answer(self, batch: Batch | OneByOne, method: Method) -> list[Answered]:
        """Turn by turn, as a turn's prompt has the answers to those before."""
        dataset = self._asked.dataset
        kept: list[list[Kept]] = [[] for _ in dataset.examples]
        inputs = {"bundle": self._bundle.fingerprint, "data": dataset.sha256}
        for turn in range(self._asked.n_turns):
            prompts: Mapping[int, Sequence[int]] = dict(enumerate(self._asked.prompts))
            if turn:
                prompts = self._later_prompts(turn, kept)
                inputs = {**inputs, "turn": str(turn), "prompts": _sha256(list(prompts.items()))}
            label = f"answering: {method.name}" + (f", turn {turn + 1}" if turn else "")
            answers = Answers(
                self._store, batch, list(prompts.values()), self._asked.max_new_tokens, inputs, dataset.task.stop
            ).make(method.key, method.prefill, lambda _: method.scheduler(), partial(self._asked.progress, label))
            for index, answer in zip(prompts, answers, strict=True):
                kept[index].append(answer)
        return [Answered("\n\n".join(answer.text for answer in turns).strip(), tuple(turns)) for turns in kept]

    def _later_prompts(self, turn: int, kept: Sequence[Sequence[Kept]]) -> dict[int, list[int]]:
        """The prompts of a later turn, by the examples that have one."""
        dataset = self._asked.dataset
        with closing(vocabulary(self._bundle)) as llm:
            return {
                i: prompt_of(
                    llm, dataset.task, [example.prompt, *example.turns[:turn]], [answer.text for answer in kept[i]]
                )
                for i, example in enumerate(dataset.examples)
                if len(example.turns) >= turn
            }

    def lead(
        self, methods: Sequence[Method], top: Method, answers: Sequence[Answered], limit: int
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Lead methods along the reference's answers.

        Args:
            methods: what is compared.
            top: the reference.
            answers: its own.
            limit: the first so many answers of more than a token; 0 is none.

        Returns:
            Sums over each answer (`fidelity.COLUMNS`), `[n_answers, 6]`, by method.
        """
        first_turns = zip(self._asked.prompts, (answer.turns[0].tokens for answer in answers), strict=False)
        cases = [case for case in first_turns if len(case[1]) > 1][:limit]
        if not cases or not methods:
            return {}
        rows: list[Any] = []
        with self._batch(min(MOST_LED, 1 + len(methods))) as batch:
            for at in range(0, len(cases), PART):
                part = cases[at : at + PART]

                def make(part: Sequence[tuple[Sequence[int], Sequence[int]]] = part, at: int = at) -> Any:
                    found = []
                    for i, (prompt, tokens) in enumerate(part):
                        self._asked.progress("comparing distributions", (at + i) / len(cases))
                        led = fidelity.lead(batch, prompt, tokens, methods, top.prefill)
                        found.append([each.sums() for each in led])
                    return found

                inputs = {
                    "led": [[method.key, method.prefill] for method in methods],
                    "bundle": self._bundle.fingerprint,
                    "answers": _sha256(part),
                    **batch.numerics,
                }
                rows += self._store.get(inputs, make)
        table = np.array(rows, dtype=np.float64)
        return {method.name: table[:, i] for i, method in enumerate(methods)}

    @contextmanager
    def _batch(self, parallel: int) -> Iterator[Batch]:
        asked = self._asked
        with Batch(
            self._bundle,
            n_ctx=asked.n_ctx,
            parallel=parallel,
            n_threads=asked.n_threads,
            n_gpu_layers=asked.n_gpu_layers,
        ) as batch:
            yield batch


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
