"""What answers are worth: scores with their intervals, and differences between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pmpd_edge.evaluate.metrics import Bootstrap, Metric, Ratio, Score
from pmpd_edge.evaluate.results import Answered, Fidelity

Floats = npt.NDArray[np.float64]


class Judge:
    """Scores answers against right ones.

    Args:
        metrics: by their names.
        references: right answers; examples whose own is empty are left out of the scores.
        seed: of the bootstrap.
    """

    def __init__(self, metrics: Mapping[str, Metric], references: Sequence[str], seed: int = 0) -> None:
        self._metrics, self._n_examples = metrics, len(references)
        self.judged = [i for i, reference in enumerate(references) if reference.strip()]
        self._references = [references[i] for i in self.judged]
        self._bootstraps = {
            name: Bootstrap(metric, len(self.judged), seed) for name, metric in metrics.items() if self.judged
        }
        self._seed = seed

    def rows(self, answers: Sequence[Answered]) -> dict[str, Floats]:
        """Statistics of each judged answer, `[n_judged, n_statistics]`, by metric."""
        texts = [answers[i].text for i in self.judged]
        return {name: self._metrics[name].rows(texts, self._references) for name in self._bootstraps}

    def each(self, rows: Mapping[str, Floats]) -> list[dict[str, float] | None]:
        """The score of each answer alone; None where there is no right one."""
        found: list[dict[str, float] | None] = [None] * self._n_examples
        for row, i in enumerate(self.judged):
            found[i] = {name: round(self._metrics[name].score(table[row]), 4) for name, table in rows.items()}
        return found

    def scores(self, rows: Mapping[str, Floats]) -> dict[str, Score]:
        """The scores of all judged answers."""
        return {name: self._bootstraps[name].score(table) for name, table in rows.items()}

    def differences(self, rows: Mapping[str, Floats], baseline: Mapping[str, Floats]) -> dict[str, Score]:
        """How much more points they get than a baseline's, on the same examples."""
        return {name: self._bootstraps[name].difference(table, baseline[name]) for name, table in rows.items()}

    def fidelity(self, sums: Floats) -> Fidelity:
        """Of a method, from sums over each answer, see `fidelity.COLUMNS`."""
        bootstrap = Bootstrap(Ratio(), len(sums), self._seed)
        steps, steps_after = (int(sums[:, at].sum()) for at in (0, 3))
        kl, top1, kl_after, top1_after = (
            bootstrap.score(sums[:, [of, over]]) for of, over in ((1, 0), (2, 0), (4, 3), (5, 3))
        )
        if not steps_after:
            return Fidelity(kl, top1, None, None, steps, 0)
        return Fidelity(kl, top1, kl_after, top1_after, steps, steps_after)
