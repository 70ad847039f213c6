"""Answers of `lossless`, one at a time: what `Batch` does for other methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pmpd_edge.batch import Answer, Job, detokenize
from pmpd_edge.errors import ContextFullError
from pmpd_edge.stream import Sampling, stream

if TYPE_CHECKING:
    from pmpd_edge.runner import Pmpd


class OneByOne:
    """Has the interface of a `Batch`, as far as making answers needs it.

    Args:
        llm: it is configured anew for every answer.
        numerics: those of a `Batch` of one sequence.
        draft_tokens: as `Pmpd` takes them.
    """

    def __init__(self, llm: Pmpd, numerics: Mapping[str, Any], draft_tokens: int | str = "auto") -> None:
        self._llm, self._draft_tokens = llm, draft_tokens
        self.numerics = {**numerics, "draft_tokens": draft_tokens}

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of an answer; tokens that end one have none."""
        return detokenize(self._llm._model.vocab, tokens)

    def run(self, jobs: Sequence[Job], progress: Callable[[int], None] = lambda n_done: None) -> list[Answer]:
        """Make the answers to all jobs, in their order; see `Batch.run`."""
        answers = []
        for job in jobs:
            answers.append(self._answer(job))
            progress(len(answers))
        return answers

    def _answer(self, job: Job) -> Answer:
        llm = self._llm
        llm.configure(method="lossless", scheduler=job.scheduler, prefill=job.prefill, draft_tokens=self._draft_tokens)
        try:
            with closing(stream(llm, job.prompt, Sampling(), job.max_new_tokens, job.stop)) as given:
                tokens = list(given)
        except ContextFullError:
            return Answer(finish="context")
        finish = tokens[-1].finish
        assert finish
        return Answer([token.id for token in tokens], [token.precision for token in tokens], finish)
