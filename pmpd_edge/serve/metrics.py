"""What the server has done so far, in Prometheus's text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pmpd_edge.serve.embedding import Embedded
from pmpd_edge.serve.worker import Answer, Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Metrics:
    """Counters; requests are counted by the event loop, tokens by the worker's thread."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    totals: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: {"prompt": 0.0, "predicted": 0.0})

    def count_request(self, route: str, status: int) -> None:
        """A request was answered; `route` is one of ours, so that nobody can make more of them."""
        self.requests[route, status] += 1

    def count_answer(self, answer: Answer | Embedded) -> None:
        """An answer ended, at its end or before; or a text is embedded."""
        stats = answer.stats
        self.totals["prompt"] += stats.prompt_tokens - stats.reused_tokens
        self.totals["prompt_reused"] += stats.reused_tokens
        self.totals["switches"] += len(stats.switches)
        self.seconds["prompt"] += stats.prefill_seconds
        self.seconds["predicted"] += stats.decode_seconds
        self.tokens.update(stats.precisions)

    def text(self, worker: Worker) -> str:
        """All of it, and how long the queue is."""
        total = self.totals
        lines = [
            *_metric("requests_total", "counter", "Requests by route and status.", self._requests()),
            *_metric("prompt_tokens_total", "counter", "Prompt tokens that were evaluated.", {"": total["prompt"]}),
            *_metric("prompt_tokens_reused_total", "counter", "Those kept from before.", {"": total["prompt_reused"]}),
            *_metric("prompt_seconds_total", "counter", "Time in prefill.", {"": self.seconds["prompt"]}),
            *_metric("predicted_tokens_total", "counter", "Sampled tokens by precision.", self._tokens()),
            *_metric("predicted_seconds_total", "counter", "Time in decode steps.", {"": self.seconds["predicted"]}),
            *_metric("switches_total", "counter", "Changes of precision in answers.", {"": total["switches"]}),
            *_metric("requests_running", "gauge", "Requests being answered.", {"": worker.running}),
            *_metric("requests_waiting", "gauge", "Requests in the queue.", {"": worker.waiting}),
        ]
        return "\n".join(lines) + "\n"

    def _requests(self) -> Mapping[str, float]:
        return {f'{{route="{route}",status="{status}"}}': n for (route, status), n in sorted(self.requests.items())}

    def _tokens(self) -> Mapping[str, float]:
        return {f'{{precision="{precision}"}}': n for precision, n in sorted(dict(self.tokens).items())}


def _metric(name: str, kind: str, text: str, values: Mapping[str, float]) -> Iterable[str]:
    yield f"# HELP pmpd_{name} {text}"
    yield f"# TYPE pmpd_{name} {kind}"
    for labels, value in values.items():
        yield f"pmpd_{name}{labels} {value}"
